"""Follow a page of docs/ to the letter in a copy of the checkout, and see that the project's own checks stay green."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.chains import ROOT, environment

FOLDERS = ("mal", "sweeps", "slurm", "analysis", "tests", "benchmarks")


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of docs/PAGE.md in order: language and text."""
    return re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.DOTALL)


def copy_checkout(folder: Path) -> Path:
    """The code and its tests in `folder`, without what running left behind."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile", "environment.yml", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("study"))
    return folder


def run(folder: Path, *words: str) -> str:
    """`python WORDS` in the copy, with its code; what it printed. AssertionError with all of it where it fails."""
    ended = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment(PYTHONPATH=str(folder)), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def check(folder: Path, *tests: str) -> None:
    """The linters on the whole copy, and the given tests of it."""
    run(folder, "-m", "ruff", "check", "--no-cache")
    run(folder, "-m", "ruff", "format", "--check", "--no-cache")
    run(folder, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache" / "pages"))
    run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
