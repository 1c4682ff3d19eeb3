"""Work shared among processes: each index once, failures collected, deaths noticed, nobody left behind."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.data.ffcv.worker_pool import CHUNK, WorkersDied, spread


@pytest.fixture(autouse=True)
def _others() -> None:
    OTHERS.update(multiprocessing.active_children())  # of tests before, which keep theirs until they are collected


OTHERS: set[Any] = set()


def left_behind() -> set[Any]:
    return set(multiprocessing.active_children()) - OTHERS


class Squares:
    """Writes the square of each index where the parent can see it; odd things happen at some."""

    def __init__(self, path: Path, count: int) -> None:
        self.array = np.lib.format.open_memmap(path, "w+", np.int64, (count,))

    def open(self) -> None:
        self.mine = 0

    def one(self, index: int) -> str | None:
        self.array[index] += index**2
        self.mine += 1
        return f"{index} is round" if index % 50 == 0 else None

    def close(self) -> int:
        return self.mine


@pytest.mark.parametrize(("count", "workers"), [(1, 4), (CHUNK, 2), (5 * CHUNK + 3, 3)])
def test_every_index_is_done_once_and_what_is_wrong_is_told(tmp_path: Path, count: int, workers: int) -> None:
    work = Squares(tmp_path / "a.npy", count)
    told: list[int] = []
    wrong, closed = spread(work, count, workers, told.append)
    assert np.array_equal(work.array, np.arange(count) ** 2)
    assert wrong == {index: f"{index} is round" for index in range(0, count, 50)}
    assert sum(closed) == count == told[-1]
    assert told == sorted(told)
    assert left_behind() == set()


class Killed(Squares):
    def one(self, index: int) -> str | None:
        if index == 3 * CHUNK:
            os.kill(os.getpid(), signal.SIGKILL)
        return None


class FullDisk(Squares):
    def close(self) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Broken(Squares):
    def one(self, index: int) -> str | None:
        raise RuntimeError("a defect")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [(Killed, WorkersDied, "died"), (Broken, WorkersDied, "died"), (FullDisk, OSError, "No space left")],
)
def test_a_worker_that_fails_ends_the_work(
    tmp_path: Path, kind: type[Squares], error: type[Exception], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error, match=message):
        spread(kind(tmp_path / "a.npy", 8 * CHUNK), 8 * CHUNK, 2)
    assert left_behind() == set()
    assert ("RuntimeError: a defect" in capfd.readouterr().err) == (kind is Broken)


class Stuck(Squares):
    """Images that never come."""

    def one(self, index: int) -> str | None:
        time.sleep(3600)
        return None


def test_a_worker_that_is_stuck_ends_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mal.data.waiting.PATIENCE_SECONDS", 0.5)
    with pytest.raises(WorkersDied, match=r"no image has been done for \d s: the storage is stuck"):
        spread(Stuck(tmp_path / "a.npy", 10), 10, 1)
    assert left_behind() == set()


def test_stopping_the_parent_stops_the_workers(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread(Squares(tmp_path / "a.npy", 4), 4, 1, stop)
    assert left_behind() == set()
