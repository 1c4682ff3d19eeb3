"""What people have answered to a sweep: RUNS/NAME/labels/batch-N, each committed whole or not at all, never changed.

A batch holds answers.csv (index, path, label), where a label is a class's name, MAP or CANNOT_TELL, the maps themselves
as map-INDEX.png, and source.json on the files it came from. The chains of a sweep share what people answered.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mal.config.people import CANNOT_TELL
from mal.run import folder as run_folder
from mal.run.folder import DamagedRun
from mal.run.lock import hold

FOLDER, LOCK, TABLE, SOURCE = "labels", ".lock", "answers.csv", "source.json"
COLUMNS = ("index", "path", "label")
MAP = "map"
UNANSWERED, REFUSED, MAPPED = -1, -2, -3  # beside the classes from 0
LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Answers:
    """Every image that has an answer.

    indices: int64 (n,), sorted; labels: int64 (n,), classes, or REFUSED, or MAPPED where maps has the file.
    """

    indices: np.ndarray
    labels: np.ndarray
    maps: Mapping[int, Path]

    def of(self, indices: np.ndarray) -> np.ndarray:
        """The labels of images, int64 (m,) -> (m,), UNANSWERED where there is none."""
        found = np.full(len(indices), UNANSWERED)
        if len(self.indices):
            at = np.minimum(np.searchsorted(self.indices, indices), len(self.indices) - 1)
            there = self.indices[at] == indices
            found[there] = self.labels[at[there]]
        return found


@dataclass(frozen=True)
class Row:
    """One answer. label: a class's name, MAP or CANNOT_TELL."""

    index: int
    path: str
    label: str


def read(sweep: Path, names: Sequence[str]) -> Answers:
    """All answers of a sweep, each table checked against its hash; names: of the classes. `DamagedRun` names a file."""
    return _read(tuple(batches(sweep)), tuple(names))


@lru_cache(maxsize=4)
def _read(folders: tuple[Path, ...], names: tuple[str, ...]) -> Answers:
    """The answers of batches, which never change."""
    numbers = {name: number for number, name in enumerate(names)} | {CANNOT_TELL: REFUSED, MAP: MAPPED}
    found: dict[int, int] = {}
    maps: dict[int, Path] = {}
    for folder in folders:
        run_folder.verify_hashes(folder, (TABLE,))
        try:
            labels = {int(index): numbers[label] for index, _, label in read_rows(folder / TABLE)}
        except (KeyError, ValueError) as error:
            raise DamagedRun(f"{folder / TABLE} is not of this sweep's classes ({error}).") from None
        found |= labels
        maps |= {index: folder / map_name(index) for index, label in labels.items() if label == MAPPED}
    indices = np.fromiter(found, np.int64, len(found))
    order = np.argsort(indices)
    return Answers(indices[order], np.fromiter(found.values(), np.int64, len(found))[order], maps)


def batches(sweep: Path) -> list[Path]:
    """The folders of committed batches, in their order; `DamagedRun` where one was removed."""
    there = [path for path in (sweep / FOLDER).glob("batch-*") if run_folder.is_committed(path)]
    found = [_batch(sweep, number) for number in range(len(there))]
    if set(found) != set(there):
        raise DamagedRun(f"{sweep / FOLDER}: a batch before {max(there).name} is missing; it was removed.")
    return found


def commit(sweep: Path, rows: Sequence[Row], maps: Mapping[int, bytes], source: Any) -> Path:
    """One more batch, whole or not at all; the caller has locked the store. maps: PNG files by index."""
    folder = _batch(sweep, len(batches(sweep)))
    answers = table(COLUMNS, ((row.index, row.path, row.label) for row in rows))
    files: dict[str, Any] = {TABLE: answers, SOURCE: source}
    run_folder.commit(folder, files | {map_name(index): content for index, content in maps.items()})
    return folder


@contextlib.contextmanager
def locked(sweep: Path) -> Iterator[None]:
    """Nobody else adds to the store meanwhile; ValueError where somebody does for long."""
    folder = sweep / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold(folder / LOCK, LOCK_SECONDS))
        except TimeoutError:
            raise ValueError(f"{folder} is being written by another process: run the same command again.") from None
        yield


def read_rows(path: Path) -> list[list[str]]:
    """The rows of one of our tables without its titles; paths may hold any bytes."""
    return list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8", "surrogateescape"), newline="")))[1:]


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table that `read_rows` reads."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def map_name(index: int) -> str:
    """The file of an image's map in its batch."""
    return f"map-{index}.png"


def _batch(sweep: Path, number: int) -> Path:
    return sweep / FOLDER / f"batch-{number:04d}"
