"""Whether this Python has what the toolkit needs, in one line instead of a traceback; the standard library alone."""

from __future__ import annotations

import importlib.util
import sys

LOWEST = (3, 11)
# Modules of pyproject.toml's dependencies: what every command needs, and what computing and drawing need.
COMMANDS = ("numpy", "omegaconf", "yaml", "hydra", "filelock", "psutil", "rich", "submitit")
ROUNDS = ("torch", "torchvision", "safetensors", "scipy", "sklearn", "numba", "threadpoolctl", "PIL")
REPORTS = ("numpy", "pandas", "scipy", "matplotlib", "seaborn", "jinja2", "PIL")


def require(modules: tuple[str, ...] = COMMANDS) -> None:
    """Raise ImportError, in one line, for an older Python or one without a module."""
    if sys.version_info < LOWEST:
        raise ImportError(f"Python {LOWEST[0]}.{LOWEST[1]} or newer is needed")
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"No module named {', '.join(repr(name) for name in missing)}")
