"""Minimax Active Learning (MAL) and what it is compared with."""

__version__ = "0.1.0"
