"""The run folder: its names, atomic writes, hashes and committed rounds.

    RUNS/NAME/METHOD/seed-S/config.yaml            the resolved configuration of the chain
    RUNS/NAME/METHOD/seed-S/round-R/               one round; it happened if and only if COMMITTED is there

Everything that leaves a process for another one (a later job, `sweeps/status.py`, `analysis/curves.py`) goes through
this module, which needs the standard library and numpy alone.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# For analysis, which reads a config.yaml and imports this module.
from mal.config.schema import PLACE_KEYS as PLACE_KEYS
from mal.config.schema import deciding as deciding
from mal.files import sha256_file, write_atomic, write_json

CONFIG = "config.yaml"
LOCK = ".lock"
LOG = "log.txt"
LABELED = "labeled.npy"
QUERY = "query.npy"
METRICS = "metrics.json"
PROVENANCE = "provenance.json"
HISTORY = "history.json"
MODEL = "model.safetensors"
FEATURES = "features.npz"
QUERIES = "queries.npz"
ANSWERS = "answers.npz"
COMMITTED = "COMMITTED"
FAILED = "FAILED"
CHECKPOINT = "checkpoint"
SHARED = ".shared"  # of a sweep: what its chains take from each other
PROGRESS = "progress.json"

FORMAT = 1
_ROUND = re.compile(r"round-(\d+)")
_SEED = re.compile(r"seed-(\d+)")


class DamagedRun(ValueError):
    """A file under a run folder is not what was committed there."""


@dataclass(frozen=True)
class Round:
    """One committed round.

    labeled: int64 (n,), sorted absolute pool indices trained on.
    query: int64 (b,), absolute pool indices in order of choice; None in the last round of a chain.
    refused: int64 (k,), sorted, the images that people could not label so far; None where nobody was asked.
    digest: SHA-256 of the round's COMMITTED, which names the round and, through its parent, all rounds before it.
    """

    folder: Path
    number: int
    labeled: np.ndarray
    query: np.ndarray | None
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    digest: str
    refused: np.ndarray | None = None


def chain_folder(runs: Path | str, name: str, method: str, seed: int) -> Path:
    """RUNS/NAME/METHOD/seed-S."""
    return Path(runs) / name / method / f"seed-{seed}"


def round_folder(chain: Path, number: int) -> Path:
    """CHAIN/round-R."""
    return chain / f"round-{number}"


def round_folders(chain: Path) -> list[Path]:
    """The round folders of a chain in order of their number, committed or not."""
    if not chain.is_dir():
        return []
    found = [(int(m[1]), chain / e) for e in os.listdir(chain) if (m := _ROUND.fullmatch(e))]
    return [folder for _, folder in sorted(found)]


def chain_folders(runs: Path | str, name: str) -> list[Path]:
    """Every chain of a sweep (a folder METHOD/seed-S with a configuration), by method, then by seed."""
    found = []
    for config in Path(runs, name).glob(f"*/seed-*/{CONFIG}"):
        if match := _SEED.fullmatch(config.parent.name):
            found.append((config.parent.parent.name, int(match[1]), config.parent))
    return [folder for _, _, folder in sorted(found)]


def sweep_names(runs: Path | str) -> list[str]:
    """The names of the sweeps under a runs folder."""
    return sorted({config.parents[2].name for config in Path(runs).glob(f"*/*/seed-*/{CONFIG}")})


def is_committed(folder: Path) -> bool:
    """Whether the round happened."""
    return (folder / COMMITTED).is_file()


def committed_rounds(chain: Path) -> int:
    """How many rounds of the chain are committed, from round 0; `DamagedRun` where one of them is missing."""
    committed = [is_committed(folder) for folder in round_folders(chain)]
    number = 0
    while is_committed(round_folder(chain, number)):
        number += 1
    if sum(committed) > number:
        missing = round_folder(chain, number) / COMMITTED
        raise DamagedRun(f"{missing} is missing, although a round after it was committed; it was removed.")
    return number


def write_indices(path: Path, indices: np.ndarray) -> None:
    """`write_atomic` of pool indices as an .npy file of int64."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(indices, dtype=np.int64), allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def read_json(path: Path) -> Any:
    """A JSON file, or `DamagedRun` naming it."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedRun(f"{path} is missing, although its round was committed.") from None
    except ValueError as error:
        raise DamagedRun(f"{path} is not valid JSON ({error}); it was cut or edited.") from None


def read_indices(path: Path) -> np.ndarray:
    """An .npy file of one-dimensional int64 indices, or `DamagedRun` naming it."""
    try:
        indices = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DamagedRun(f"{path} is missing, although its round was committed.") from None
    except (ValueError, EOFError, OSError) as error:
        raise DamagedRun(f"{path} is not a readable .npy file ({error}); it was cut or edited.") from None
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype != np.int64:
        raise DamagedRun(f"{path} holds {getattr(indices, 'dtype', type(indices))}, not a list of int64 indices.")
    return indices


def commit(folder: Path, files: dict[str, bytes | np.ndarray | dict[str, Any]]) -> None:
    """Make a round happen: write its files, then COMMITTED with their hashes, then drop the working state.

    Raises FileExistsError where the round is committed already: a committed round is never changed.
    """
    if is_committed(folder):
        raise FileExistsError(f"{folder} is committed already.")
    for name, content in files.items():
        if isinstance(content, np.ndarray):
            write_indices(folder / name, content)
        elif isinstance(content, bytes):
            write_atomic(folder / name, content)
        else:
            write_json(folder / name, content)
    hashes = {name: sha256_file(folder / name) for name in files}
    write_json(folder / COMMITTED, {"format": FORMAT, "files": hashes})
    drop_working_state(folder)


def drop_working_state(folder: Path) -> None:
    """Remove what only an unfinished round needs (also after a kill between commit and this)."""
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    (folder / FAILED).unlink(missing_ok=True)
    for part in folder.glob(".*.tmp"):  # of a writer that was killed
        part.unlink(missing_ok=True)


def read_round(folder: Path) -> Round:
    """A committed round, every file of it checked against its hash; `DamagedRun` says which one is not as committed."""
    marker = folder / COMMITTED
    hashes = verify_hashes(folder)
    if LABELED not in hashes:
        raise DamagedRun(f"{marker} is not a commit of format {FORMAT}; it was edited or cut.")
    query = read_indices(folder / QUERY) if QUERY in hashes else None
    number = _ROUND.fullmatch(folder.name)
    assert number is not None, folder
    return Round(
        folder=folder,
        number=int(number[1]),
        labeled=read_indices(folder / LABELED),
        query=query,
        metrics=read_json(folder / METRICS),
        provenance=read_json(folder / PROVENANCE),
        digest=sha256_file(marker),
        refused=read_answers(folder)[1] if ANSWERS in hashes else None,
    )


def write_answers(folder: Path, labelled: np.ndarray, refused: np.ndarray) -> None:
    """Fix, before a round begins, what people answered: the images to train on, and those refused so far."""
    buffer = io.BytesIO()
    np.savez(buffer, labelled=labelled, refused=refused)
    write_atomic(folder / ANSWERS, buffer.getvalue())


def read_answers(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images to train on and those refused, int64, sorted; or `DamagedRun` naming the file."""
    try:
        with np.load(folder / ANSWERS, allow_pickle=False) as found:
            return found["labelled"].astype(np.int64), found["refused"].astype(np.int64)
    except (ValueError, EOFError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DamagedRun(f"{folder / ANSWERS} cannot be read ({error}); it was cut or edited.") from None


def verify_hashes(folder: Path, names: Container[str] | None = None) -> dict[str, str]:
    """Compare files of a commit, all or those named, with the hashes in COMMITTED; all by name, or `DamagedRun`."""
    committed = read_json(folder / COMMITTED)
    files = committed.get("files") if isinstance(committed, dict) and committed.get("format") == FORMAT else None
    if not isinstance(files, dict):
        raise DamagedRun(f"{folder / COMMITTED} is not a commit of format {FORMAT}; it was edited or cut.")
    for name, expected in files.items():
        path = folder / name
        if names is not None and name not in names:
            continue
        if not path.is_file():
            raise DamagedRun(f"{path} is missing, although its round was committed.")
        if (found := sha256_file(path)) != expected:
            raise DamagedRun(f"{path} is not the file that was committed: SHA-256 {found[:12]}, not {expected[:12]}.")
    return files
