"""What a chain has asked people for, and whether enough of it is answered for its next round to begin.

What is asked for is committed: CHAIN/initial/ for round 0, the round before for the others, each with query.npy,
to_label.csv and to_label.html. Importing this module imports neither torch nor Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mal.config.people import FILES
from mal.config.schema import Chain
from mal.labels import journal, store
from mal.labels.store import REFUSED, UNANSWERED, Answers
from mal.run import folder as run_folder

INITIAL, TO_LABEL, SHEET = "initial", "to_label.csv", "to_label.html"
COLUMNS = ("index", "path", "rank", "guess", "reason", "label")


@dataclass(frozen=True)
class Waiting:
    """A chain that cannot go on yet.

    asked, given: images; needed: how many must be answered; noted: answered on the page, and not taken yet.
    """

    asked: int
    given: int
    needed: int
    noted: int = 0

    def __str__(self) -> str:
        enough = f", {self.needed} are enough" if self.needed < self.asked else ""
        noted = f", {self.noted} on the page" if self.noted else ""
        return f"waits for {self.asked} labels ({self.given} given{noted}{enough})"


def asking_folder(chain: Path, number: int) -> Path:
    """Where what round `number` needs was asked for."""
    return run_folder.round_folder(chain, number - 1) if number else chain / INITIAL


def awaited(chain: Path, config: Chain) -> Waiting | None:
    """What the chain's next round waits for; None where it can begin, has begun, or nobody is asked."""
    if config.dataset.oracle != FILES:
        return None
    number = run_folder.committed_rounds(chain)
    folder = asking_folder(chain, number)
    if number >= config.rounds or not run_folder.is_committed(folder):
        return None
    if (run_folder.round_folder(chain, number) / run_folder.ANSWERS).is_file():
        return None
    asked = run_folder.read_indices(folder / run_folder.QUERY)
    answers = store.read(chain.parents[1], config.dataset.class_names or [])
    found, noted = lacking(asked, answers, config.labels.enough), journal.read(chain.parents[1])
    still = set(asked[answers.of(asked) == UNANSWERED].tolist())
    return replace(found, noted=len(noted.keys() & still)) if found and noted else found


def lacking(asked: np.ndarray, answers: Answers, enough: float) -> Waiting | None:
    """What is missing of the answers to `asked`, int64 (n,); None where the answered share is enough."""
    given = int((answers.of(asked) != UNANSWERED).sum())
    needed = math.ceil(enough * len(asked) - 1e-9)
    return None if given >= needed else Waiting(len(asked), given, needed)


def taken(asked: np.ndarray, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """The images of `asked` that have a label, and those refused."""
    labels = answers.of(asked)
    return asked[(labels != UNANSWERED) & (labels != REFUSED)], asked[labels == REFUSED]


@dataclass(frozen=True)
class Asked:
    """Every image that the chains of a sweep have asked for, in order of choice.

    paths: by index; open: those without an answer that a round which has not begun waits for.
    """

    paths: dict[int, str]
    open: list[int]

    @cached_property
    def by_name(self) -> dict[str, list[int]]:
        """Indices by the last part of their path."""
        return self._grouped(lambda path: path.rpartition("/")[2])

    @cached_property
    def by_stem(self) -> dict[str, list[int]]:
        """The same by that part without its ending."""
        return self._grouped(lambda path: path.rpartition(".")[0].rpartition("/")[2])

    def _grouped(self, key: Callable[[str], str]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for index, path in self.paths.items():
            found.setdefault(key(path), []).append(index)
        return found


def read_asked(chains: Sequence[Path], answers: Answers) -> Asked:
    """What chains have asked for, from their committed to_label.csv; the newest round of each first."""
    paths: dict[int, str] = {}
    awaited: dict[int, None] = {}
    for chain in chains:
        newest = run_folder.committed_rounds(chain)
        for number in range(newest, -1, -1):
            rows = _read_request(asking_folder(chain, number))
            paths = {int(row[0]): row[1] for row in rows} | paths
            begun = (run_folder.round_folder(chain, number) / run_folder.ANSWERS).is_file()
            if number == newest and not begun:
                awaited |= dict.fromkeys(int(row[0]) for row in rows)
    indices = np.fromiter(awaited, np.int64, len(awaited))
    return Asked(paths, indices[answers.of(indices) == UNANSWERED].tolist())


def _read_request(folder: Path) -> list[list[str]]:
    """The rows of a to_label.csv; none where nothing was asked for there."""
    if not run_folder.is_committed(folder) or not (folder / TO_LABEL).is_file():
        return []
    run_folder.verify_hashes(folder, (TO_LABEL,))
    return store.read_rows(folder / TO_LABEL)
