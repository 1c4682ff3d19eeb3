"""Analysis: from committed rounds to curves, tables and figures."""
