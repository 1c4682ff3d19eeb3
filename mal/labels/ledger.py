"""The labelled set of each round where people are asked: what they labelled of what a round had asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mal.config.people import FILES
from mal.config.schema import Chain
from mal.data.dataset import Dataset, same_pool
from mal.data.decode import Reading, decode_map
from mal.data.image_set import UNKNOWN, Files, Labels
from mal.labels import store
from mal.labels.asking import asking_folder, lacking, taken
from mal.run import folder as run_folder
from mal.run.folder import DamagedRun
from mal.run.ledger import Ledger, Oracle, State, check_labelled, initial_labelled, unlabelled


class PeoplesLedger(Ledger):
    """The ledger of a chain whose labels people give.

    A round begins with what was answered by then, and keeps to it: answers.npz in its folder. What comes later stays in
    the store, for an image that is asked for again.
    """

    def __init__(self, known: np.ndarray, names: list[str], enough: float, *arguments: Any) -> None:
        """known: int64, sorted, the images whose labels were there at first; names: of the classes."""
        super().__init__(*arguments)
        self.known, self.names, self.enough = known, names, enough

    def to_ask(self, number: int) -> np.ndarray | None:
        """The images of the initial pool that have no label, where people are still to be asked for them."""
        folder = asking_folder(self.chain, 0)
        if number or not len(self.initial) or run_folder.is_committed(folder):
            return None
        return self.initial

    def state(self, number: int) -> State:
        """What round `number` starts from, fixed now if it was not; ValueError where too little is answered."""
        last, folder = self.last(number), run_folder.round_folder(self.chain, number)
        if not (folder / run_folder.ANSWERS).is_file():
            self._fix(folder, last, number)
        labelled, refused = run_folder.read_answers(folder)
        check_labelled(labelled, self.pool, folder / run_folder.ANSWERS)
        return State(labelled, last.digest if last else None, refused)

    def _fix(self, folder: Path, last: run_folder.Round | None, number: int) -> None:
        before, refused = (self.known, np.empty(0, np.int64)) if last is None else (last.labeled, last.refused)
        assert refused is not None
        if run_folder.is_committed(asking := asking_folder(self.chain, number)):
            run_folder.verify_hashes(asking, (run_folder.QUERY,))
            asked = run_folder.read_indices(asking / run_folder.QUERY)
            answers = store.read(self.chain.parents[1], self.names)
            if found := lacking(asked, answers, self.enough):
                raise DamagedRun(f"{asking} {found}, and round {number} was started all the same.")
            labelled, new = taken(asked, answers)
            before, refused = np.union1d(before, labelled), np.union1d(refused, new)
        if not len(before):
            raise ValueError(f"{asking}: none of the initial images got a label: choose others by another name=.")
        run_folder.write_answers(folder, before, refused)

    def _is_start(self, committed: run_folder.Round) -> bool:
        return bool(np.isin(committed.labeled, np.union1d(self.known, self.initial)).all())


def bookkeeping(chain: Path, config: Chain, dataset: Dataset) -> tuple[Ledger, Oracle]:
    """The ledger and the oracle of a chain: those of the data set's own labels, or those of people's."""
    pool, name = dataset.pool, config.dataset.name
    alike: tuple[Any, ...] = (config.fingerprint(), config.fingerprints(), partial(same_pool, dataset))
    if config.dataset.oracle != FILES:
        initial = initial_labelled(pool, config.initial, name, config.seed)
        return Ledger(chain, pool, dataset.digest, initial, config.budget, *alike), dataset.oracle
    assert isinstance(dataset.train, Files)
    names, segmentation = config.dataset.class_names or [], config.dataset.task == "segmentation"
    known = known_images(pool, dataset.train.labels)
    initial = peoples_initial(pool, known, config.initial, name, config.seed)
    ledger = PeoplesLedger(
        known, names, config.labels.enough, chain, pool, dataset.digest, initial, config.budget, *alike
    )
    return ledger, Oracle(GivenLabels(chain.parents[1], names, dataset.train, segmentation))


def peoples_initial(pool: np.ndarray, known: np.ndarray, count: int, dataset: str, seed: int) -> np.ndarray:
    """The images that round 0 asks for: as the built-in oracle's, fewer by those that have a label already."""
    missing = max(0, count - len(known))
    return initial_labelled(unlabelled(pool, known), missing, dataset, seed)


def known_images(pool: np.ndarray, labels: Labels) -> np.ndarray:
    """The images of a pool whose label was there at first, int64, sorted."""
    assert isinstance(labels, np.ndarray)
    return pool[labels[pool] != UNKNOWN]


class GivenLabels:
    """The labels that were there at first, and those that people gave, read anew whenever they are asked for."""

    def __init__(self, sweep: Path, names: list[str], train: Files, segmentation: bool) -> None:
        self.sweep, self.names, self.train, self.segmentation = sweep, names, train, segmentation

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Classes int64 (n,), or maps uint8 (n, H, W)."""
        answers = store.read(self.sweep, self.names)
        if self.segmentation:
            return self._maps([answers.maps[int(index)] for index in indices])
        assert isinstance(self.train.labels, np.ndarray)
        first = self.train.labels[indices]
        return np.where(first == UNKNOWN, answers.of(indices), first)

    def _maps(self, paths: list[Path]) -> np.ndarray:
        for folder in sorted({path.parent for path in paths}):
            run_folder.verify_hashes(folder, {path.name for path in paths if path.parent == folder})
        how = Reading(self.train.size, "stretch", self.train.exif, self.train.max_pixels)
        maps = np.empty((len(paths), how.size, how.size), np.uint8)
        for row, path in enumerate(paths):
            maps[row] = decode_map(path.read_bytes(), how)
        return maps
