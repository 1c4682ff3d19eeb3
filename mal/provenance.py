"""Which code runs: its commit, and whether it was changed since. Needs no torch, so that a launcher can compare."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from mal import results


@cache
def git_state() -> tuple[str | None, bool | None]:
    """The commit of the code that runs and whether it was changed since; None where git does not know."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()


def other_code(chain: Path) -> str | None:
    """A warning where the chain's last committed round was run by another commit than this one; None where not."""
    committed = results.committed_rounds(chain)
    if not committed:
        return None
    try:
        before = results.read_json(results.round_folder(chain, committed - 1) / results.PROVENANCE).get("git_commit")
    except results.DamagedRun:  # said by whoever goes on with the chain
        return None
    commit, _ = git_state()
    if before is None or commit is None or before == commit:
        return None
    return f"round {committed - 1} was run by commit {before[:9]}, the code now is {commit[:9]}"
