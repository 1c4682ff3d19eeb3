"""The ledger of a chain: which pool indices are labelled in which round, and the oracle that sells labels.

Indices are absolute everywhere: positions in the dataset's training set. The pool is the sorted subset of them that may
be labelled (all of them, or what an imbalance or `dataset.pool` leaves).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mal.rng import generator
from mal.run import folder as run_folder
from mal.run.folder import DamagedRun


def initial_labelled(pool: np.ndarray, count: int, dataset: str, seed: int) -> np.ndarray:
    """The labels of round 0: a uniform draw from (dataset, seed) alone, so the same for every method.

    pool: int64 (N,) absolute indices. Returns int64 (count,), sorted.
    """
    if count > len(pool):
        raise ValueError(f"initial={count} is more than the {len(pool)} images of the pool of {dataset}.")
    return np.sort(generator("initial", dataset, seed).choice(pool, size=count, replace=False))


def unlabelled(pool: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """The pool without the labelled: int64, sorted."""
    return np.setdiff1d(pool, labelled, assume_unique=True)


def check_labelled(labelled: np.ndarray, pool: np.ndarray, source: Path | str) -> None:
    """Refuse labelled indices that are not sorted, unique and of this pool, with `DamagedRun` naming the file."""
    if len(labelled) == 0 or np.any(np.diff(labelled) <= 0):
        raise DamagedRun(f"{source}: the labelled indices are empty, unsorted or repeated; the file was edited.")
    if len(strangers := np.setdiff1d(labelled, pool)):
        raise DamagedRun(f"{source}: {len(strangers)} indices, e.g. {strangers[0]}, are not of this pool.")


def check_query(query: np.ndarray, budget: int, candidates: np.ndarray, source: Path | str) -> None:
    """Refuse a query that is not `budget` distinct unlabelled indices, with `DamagedRun` naming its source."""
    if len(query) != budget:
        raise DamagedRun(f"{source}: {len(query)} indices where the budget is {budget}.")
    if len(np.unique(query)) < len(query):
        raise DamagedRun(f"{source}: an index is queried twice.")
    if len(strangers := np.setdiff1d(query, candidates)):
        raise DamagedRun(f"{source}: {len(strangers)} queried indices, e.g. {strangers[0]}, are not unlabelled.")


@dataclass(frozen=True)
class State:
    """What a round starts from. labelled: int64, sorted; parent: digest of the round before, None in round 0."""

    labelled: np.ndarray
    parent: str | None


def read_history(chain: Path, number: int) -> list[run_folder.Round]:
    """The rounds before round `number`, each checked against its hashes and against the one before it.

    Raises `DamagedRun` where a file was changed, or where a round does not follow from its predecessor.
    """
    history: list[run_folder.Round] = []
    for earlier in range(number):
        committed = run_folder.read_round(run_folder.round_folder(chain, earlier))
        source = committed.folder / run_folder.LABELED
        before = history[-1] if history else None
        if committed.provenance.get("parent") != (before.digest if before else None):
            raise DamagedRun(f"{committed.folder} does not follow the round before it: its parent's hash differs.")
        if before is not None:
            assert before.query is not None
            if not np.array_equal(committed.labeled, np.union1d(before.labeled, before.query)):
                raise DamagedRun(f"{source} does not follow from the rounds before it; folders of chains were mixed.")
        if committed.query is None and earlier + 1 < number:
            raise DamagedRun(f"{committed.folder} has no query, but there is a round after it.")
        history.append(committed)
    return history


class Ledger:
    """The labelled set of each round of one chain, read from its committed rounds and checked against the pool."""

    def __init__(
        self,
        chain: Path,
        pool: np.ndarray,
        pool_hash: str,
        initial: np.ndarray,
        budget: int,
        fingerprint: str,
        alike: Collection[str] = (),
        same_pool: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """pool, initial: int64 sorted; pool_hash: of the pool's images and labels; fingerprint: its configuration's.

        alike: fingerprints, same_pool: hashes of rounds by another loader that gave the same bytes.
        """
        self.chain, self.pool, self.pool_hash = chain, pool, pool_hash
        self.initial, self.budget, self.fingerprint = initial, budget, fingerprint
        self.alike, self.same_pool = alike, same_pool

    def state(self, number: int) -> State:
        """What round `number` starts from; raises `DamagedRun` where a round before it is not what it should be."""
        history = read_history(self.chain, number)
        for committed in history:
            self._check(committed)
        if not history:
            return State(labelled=self.initial, parent=None)
        last = history[-1]
        if last.query is None:
            raise DamagedRun(f"{last.folder} has no query: it was the last round of its chain.")
        return State(labelled=np.union1d(last.labeled, last.query), parent=last.digest)

    def _check(self, committed: run_folder.Round) -> None:
        source = committed.folder / run_folder.LABELED
        pool_hash = str(committed.provenance.get("pool"))
        if pool_hash != self.pool_hash and pool_hash not in self.same_pool():
            raise DamagedRun(
                f"{committed.folder} was run on another pool ({pool_hash[:12]}) than the dataset gives now "
                f"({self.pool_hash[:12]}): check data= or use another name=."
            )
        if committed.provenance.get("fingerprint") not in (self.fingerprint, *self.alike):
            raise DamagedRun(
                f"{committed.folder} was run with another configuration than {self.chain / run_folder.CONFIG} holds "
                "now: put that file back as it was launched, or use another name=."
            )
        check_labelled(committed.labeled, self.pool, source)
        if committed.number == 0 and not np.array_equal(committed.labeled, self.initial):
            raise DamagedRun(f"{source} is not the initial pool of this dataset and seed.")
        if committed.query is not None:
            candidates = unlabelled(self.pool, committed.labeled)
            check_query(committed.query, self.budget, candidates, committed.folder / run_folder.QUERY)


class Labels(Protocol):
    """Labels in memory or in files."""

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


class Oracle:
    """Sells labels, and counts: the one way from an index to its label. Methods never hold one."""

    def __init__(self, labels: Labels) -> None:
        """labels: int64 (N,) or uint8 (N, H, W) of the whole training set, by absolute index."""
        self._labels = labels

    def label(self, indices: np.ndarray) -> np.ndarray:
        """The labels of `indices`, in their order."""
        return self._labels[indices]
