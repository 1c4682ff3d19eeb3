"""Prepared copies of data sets as FFCV's .beton files: written, checked and read."""
