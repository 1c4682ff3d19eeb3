"""Loaders: the same bytes and labels from each, in the order asked for; closed half way, killed, signalled."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from chains import CPU, chain_config, made_up_images, outcome, python, write_chain

from mal import results
from mal.chain import run_chain
from mal.data.loader import HIDDEN, Loader, Maps, build_loader, count_workers, in_order, visible_labels
from mal.data.splits import IGNORED, Arrays
from mal.interrupt import Interrupt, Interrupted

COUNT = 50
STREAM = [np.array(indices) for indices in ([3, 1, 49, 1], [0], [7] * 9, list(range(COUNT)))]


def split() -> Arrays:
    return Arrays(made_up_images(COUNT, channels=3), np.arange(COUNT) % 10)


@pytest.fixture(params=["memory", "torch"])
def loader(request: pytest.FixtureRequest) -> Loader:
    whole = split()
    labelled = np.arange(0, COUNT, 3)
    labels = visible_labels(COUNT, labelled, whole.labels[labelled])
    return build_loader(request.param, whole, labels, CPU.torch, workers=2)


def test_batches_come_as_asked_for_with_the_labels_that_were_bought(loader: Loader) -> None:
    whole = split()
    for _ in range(2):  # one loader serves one stream after another
        seen = 0
        for indices, batch in zip(STREAM, loader.batches(STREAM), strict=True):
            assert batch.images.dtype == torch.uint8
            assert np.array_equal(batch.images.numpy(), whole.images[indices])
            assert np.array_equal(batch.indices, indices)
            expected = np.where(indices % 3 == 0, whole.labels[indices], HIDDEN)
            assert batch.labels.tolist() == expected.tolist()
            seen += 1
        assert seen == len(STREAM)
    one = loader.load(np.array([4, 3]))
    assert np.array_equal(one.images.numpy(), whole.images[[4, 3]])
    assert one.labels.tolist() == [HIDDEN, 3]
    assert len(loader) == COUNT


def test_a_stream_left_half_way_does_not_leak_into_the_next(loader: Loader) -> None:
    whole = split()
    asked = 0

    def endless() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield np.arange(asked % 40, asked % 40 + 5)

    for _ in range(3):
        batches = loader.batches(endless())
        next(batches)
        during = loader.load(np.array([11]))
        assert np.array_equal(during.images.numpy(), whole.images[[11]])
        batches.close()
    assert asked <= 3 * 12  # no more than a few batches ahead
    found = [batch.images.numpy().copy() for batch in loader.batches(STREAM)]
    assert all(np.array_equal(images, whole.images[indices]) for images, indices in zip(found, STREAM, strict=True))
    again = loader.showing(np.full(COUNT, HIDDEN))
    assert (again.load(np.arange(COUNT)).labels == HIDDEN).all()


def test_a_loader_draws_nothing_from_torchs_random_state(loader: Loader) -> None:
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    list(loader.batches(STREAM))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_workers_of_torch_never_get_the_signals_of_a_job() -> None:
    whole = split()
    loader = build_loader("torch", whole, whole.labels, CPU.torch, workers=2)
    before = set(psutil.Process().children())
    batches = loader.batches(in_order(np.arange(COUNT), 5))
    next(batches)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    for worker in workers:
        for number in Interrupt.SIGNALS:
            os.kill(worker.pid, number)
    assert len(list(batches)) == 9
    assert {worker.pid for worker in workers} == {w.pid for w in psutil.Process().children()} - {b.pid for b in before}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()  # this process still gets them


def test_a_process_that_leaves_in_the_middle_of_a_stream_ends_at_once() -> None:
    program = """
import numpy as np, torch
from mal.data.loader import build_loader, in_order
from mal.data.splits import IGNORED, Arrays
split = Arrays(np.zeros((50, 1, 8, 8), np.uint8), np.zeros(50, np.int64))
loader = build_loader("torch", split, split.labels, torch.device("cpu"), workers=2)
batches = loader.batches(in_order(np.arange(50), 5))
next(batches)
raise RuntimeError("left with a reference to all of it")
"""
    ended = python("-c", program)
    assert "left with a reference" in ended.stderr
    assert ended.returncode == 1


def test_an_image_that_cannot_be_read_is_an_error_that_names_it() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Broken(Arrays):
        def read(self, index: int) -> np.ndarray:
            if index == 7:
                raise ValueError("x/7.jpg cannot be read as an image")
            return super().read(index)

    whole = split()
    loader = build_loader("torch", Broken(whole.images, whole.labels), whole.labels, CPU.torch, workers=1)
    with pytest.raises(ValueError, match=r"x/7\.jpg cannot be read"):
        list(loader.batches(in_order(np.arange(COUNT), 5)))
    assert len(list(loader.batches([np.array([1])]))) == 1


# ------------------------------------------------------------------------- labels


def test_maps_are_those_that_were_bought_and_all_ignored_elsewhere() -> None:
    maps = np.random.default_rng(0).integers(0, 19, (2, 4, 6), dtype=np.uint8)
    visible = visible_labels(10, np.array([2, 7]), maps)
    assert isinstance(visible, Maps)
    found = visible[np.array([7, 0, 2, 7])]
    assert found.dtype == np.uint8
    assert np.array_equal(found[[0, 2, 3]], maps[[1, 0, 1]])
    assert (found[1] == IGNORED).all()
    loader = build_loader("memory", Arrays(made_up_images(10), np.zeros(10, np.int64)), visible, CPU.torch)
    batch = loader.load(np.array([2, 3]))
    assert np.array_equal(batch.labels[0].numpy(), maps[0])
    assert (batch.labels[1] == IGNORED).all()
    nothing = visible_labels(10, np.empty(0, np.int64), np.empty((0, 4, 6), np.uint8))
    assert (nothing[np.arange(10)] == IGNORED).all()


def test_workers_are_those_asked_for_but_never_more_than_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert [count_workers(*pair) for pair in ((0, 0), (0, 2), (3, 2), (9, 0), (0, 64))] == [4, 2, 3, 4, 4]


# ------------------------------------------------------------------------- chains


class StopsAt(Interrupt):
    """Asked to stop at the n-th time that somebody looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    @property
    def requested(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.cause = "a test"
        return self.cause is not None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_chain(tmp_path_factory.mktemp("memory"), chain_config())
    run_chain(folder, None, Interrupt())
    return outcome(folder)


@pytest.mark.parametrize("kind", ["torch"])
def test_a_chain_is_the_same_by_any_loader_wherever_it_is_interrupted(
    tmp_path: Path, undisturbed: dict[str, Any], kind: str
) -> None:
    folder = write_chain(tmp_path, chain_config(f"loader={kind}", "workers=1"))
    attempts = 0
    while results.committed_rounds(folder) < 2:
        attempts += 1
        try:
            run_chain(folder, None, StopsAt(7 + 5 * attempts))
        except Interrupted:
            assert attempts < 12
    assert attempts > 2
    assert outcome(folder) == undisturbed
