"""Which code runs: its hash, its commit, and a copy that later edits do not reach.

A launch keeps the packages that its processes need under RUNS/NAME/code/HASH, and starts them from there. So what was
launched goes on as it was launched while somebody edits the checkout. Needs no torch, so that a launcher can compare.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mal.files import sha256_file, write_json
from mal.run import folder as run_folder

CODE = "code"
ORIGIN = "ORIGIN.json"
PACKAGES = ("mal", "slurm")  # what a chain's process and a job import of ours
WHEEL = "mal_commands"  # the folder in which a wheel has all packages but mal (setup.py)
SUFFIXES = (".py", ".yaml", ".html", ".typed")
# What decides results is under the hash: the code, and the YAML files by which a job checks its chain. What the others
# say (datasets, clusters, presets, defaults) is in the chain's config.yaml, under its fingerprint as far as it decides.
HASHED_YAML = ("mal/conf/method", "mal/conf/backbone")
CACHES = (".pyc", ".nbi", ".nbc")  # of Python and numba: valid in a copy that keeps the times of the files


@cache
def code_hash() -> str:
    """Twelve hexadecimal digits for the code that runs, edited or not, in git or not."""
    return _hash_of(_sources())


def keep_code(sweep: Path) -> Path:
    """Copy the code under a sweep's folder RUNS/NAME, once for each hash; the copy's folder, RUNS/NAME/code/HASH."""
    folder = sweep.resolve() / CODE
    if (kept := folder / _hash_of(_sources())).is_dir():
        with contextlib.suppress(OSError):
            kept.touch()  # in use: sweeps/prune.py leaves young copies
        return kept
    part = folder / f".{socket.gethostname()}-{os.getpid()}"
    part.mkdir(parents=True)
    try:
        for package, source in _sources().items():
            shutil.copytree(source, part / package, ignore=_others)
        commit, dirty = git_state()
        write_json(part / ORIGIN, {"git_commit": commit, "git_dirty": dirty})
        kept = folder / _hash_of(
            {package: part / package for package in PACKAGES}
        )  # of what was copied, even if somebody has edited meanwhile
        part.rename(kept)
    except OSError:
        if not kept.is_dir():  # else another launcher was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return kept


def code_variables(kept: Path, before: str = "") -> dict[str, str]:
    """The environment in which `python -m` takes our packages from a copy, not from the folder it is started in.

    before: the PYTHONPATH that stays behind it.
    """
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([str(kept), *([before] if before else [])])}


@cache
def git_state() -> tuple[str | None, bool | None]:
    """The commit of the code that runs and whether it was changed since; None where git does not know."""
    if (_root() / ORIGIN).is_file():
        origin = run_folder.read_json(_root() / ORIGIN)
        return origin["git_commit"], origin["git_dirty"]
    try:
        _git("ls-files", "--error-unmatch", __file__)  # an installed package may lie in a checkout of something else
        commit = _git("rev-parse", "HEAD")
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def other_code(chain: Path) -> str | None:
    """A warning where the chain's last committed round was run by other code than this; None where not."""
    committed = run_folder.committed_rounds(chain)
    if not committed:
        return None
    try:
        before = run_folder.read_json(run_folder.round_folder(chain, committed - 1) / run_folder.PROVENANCE)
    except run_folder.DamagedRun:  # said by whoever goes on with the chain
        return None
    if before.get("code") in (None, code_hash()):
        return None
    commits = [str(commit)[:9] for commit in (before.get("git_commit"), git_state()[0])]
    return (
        f"round {committed - 1} was run by code {before['code']} (commit {commits[0]}), "
        f"the code now is {code_hash()} (commit {commits[1]})"
    )


@cache
def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def installed() -> bool:
    """Whether this is an installed wheel, not a checkout or a copy of one."""
    return (_root() / WHEEL).is_dir()


def commands_folder() -> Path:
    """The folder of all packages but mal: beside mal in a checkout and in a copy, a folder of their own in a wheel."""
    return _root() / WHEEL if installed() else _root()


def _sources() -> dict[str, Path]:
    return {package: (_root() if package == "mal" else commands_folder()) / package for package in PACKAGES}


def _hash_of(folders: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            name = f"{package}/{path.relative_to(folder).as_posix()}"
            if path.suffix == ".py" or (path.suffix == ".yaml" and name.startswith(HASHED_YAML)):
                digest.update(f"{name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()[:12]


def _others(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if not (n.endswith((*SUFFIXES, *CACHES)) or Path(folder, n).is_dir())]


def _git(*words: str) -> str:
    command = ["git", "-C", str(_root()), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
