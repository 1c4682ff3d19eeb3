"""The ledger of a chain: which pool indices are labelled in which round, and the oracle that sells labels.

Indices are absolute everywhere: positions in the dataset's training set. The pool is the sorted subset of them that may
be labelled (all of them, or what an imbalance or `dataset.pool` leaves).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
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
    """What a round starts from.

    labelled: int64, sorted; parent: digest of the round before, None in round 0; refused: int64, sorted, images that
    people could not label, which have left the pool.
    """

    labelled: np.ndarray
    parent: str | None
    refused: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


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
        if before is not None and not _follows(before, committed):
            raise DamagedRun(f"{source} does not follow from the rounds before it; folders of chains were mixed.")
        if committed.query is None and earlier + 1 < number:
            raise DamagedRun(f"{committed.folder} has no query, but there is a round after it.")
        history.append(committed)
    return history


def _follows(before: run_folder.Round, committed: run_folder.Round) -> bool:
    """Whether a round's labelled set is the one before it with the query, or with what people labelled of it."""
    assert before.query is not None
    bought = np.union1d(before.labeled, before.query)
    if committed.refused is None:
        return np.array_equal(committed.labeled, bought)
    kept = np.isin(before.labeled, committed.labeled).all()
    return bool(kept and np.isin(committed.labeled, bought).all())


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
        last = self.last(number)
        if last is None:
            return State(labelled=self.initial, parent=None)
        assert last.query is not None
        return State(labelled=np.union1d(last.labeled, last.query), parent=last.digest)

    def last(self, number: int) -> run_folder.Round | None:
        """The round before round `number`, None for round 0, once all rounds before are checked; or `DamagedRun`."""
        history = read_history(self.chain, number)
        for committed in history:
            self._check(committed)
        if history and history[-1].query is None:
            raise DamagedRun(f"{history[-1].folder} has no query: it was the last round of its chain.")
        return history[-1] if history else None

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
        if committed.number == 0 and not self._is_start(committed):
            raise DamagedRun(f"{source} is not the initial pool of this dataset and seed.")
        if committed.query is not None:
            refused = np.empty(0, np.int64) if committed.refused is None else committed.refused
            candidates = np.setdiff1d(unlabelled(self.pool, committed.labeled), refused)
            check_query(
                committed.query, min(self.budget, len(candidates)), candidates, committed.folder / run_folder.QUERY
            )

    def _is_start(self, committed: run_folder.Round) -> bool:
        """Whether the labelled set of round 0 is what it should be."""
        return np.array_equal(committed.labeled, self.initial)


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
