"""Analysis: from committed rounds to curves, tables and figures.

`from analysis import load` reads them into a notebook: `load("runs", "digits").tidy` is a frame of one row a round.
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, which needs pandas, only when it is asked for: the command lines answer mistakes without it."""
    if name == "load":
        from analysis.reading import load

        return load
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
