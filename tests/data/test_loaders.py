"""Loaders: the same bytes and labels from each, in the order asked for; closed half way, killed, signalled."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from mal.chain import run_chain
from mal.data import prepare, waiting
from mal.data.ffcv.reader import BetonReader
from mal.data.image_set import IGNORED, Arrays, Files, Store
from mal.data.loader import HIDDEN, Loader, Maps, build_loader, count_workers, in_order, visible_labels
from mal.listing import list_images
from mal.process.faults import Misplaced
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from tests.chains import CPU, StopsAt, chain_config, made_up_images, outcome, python, write_chain
from tests.odd_images import odd_images

COUNT = 50
STREAM = [np.array(indices) for indices in ([3, 1, 49, 1], [0], [7] * 9, list(range(COUNT)))]


def split() -> Arrays:
    return Arrays(made_up_images(COUNT, channels=3), np.arange(COUNT) % 10)


@dataclass(frozen=True)
class Stored:
    """A file of FFCV."""

    beton: Path
    shape: tuple[int, ...]


def stored(path: Path, images: np.ndarray, mode: str = "raw", numbers: Any = None) -> Stored:
    """Images in a file of FFCV, labels all 0: RGB as pixels or JPEG, grey ones as arrays."""
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    colour = images.shape[1] == 3
    field = RGBImageField(write_mode=mode) if colour else NDArrayField(np.dtype("uint8"), images.shape[1:])
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if colour else images
    numbers = range(len(images)) if numbers is None else numbers
    samples = [(image, 0, number) for image, number in zip(pixels, numbers, strict=True)]
    writer = DatasetWriter(str(path), {"image": field, "label": IntField(), "index": IntField()}, num_workers=1)
    writer.from_indexed_dataset(samples)
    return Stored(path, images.shape[1:])


LOADERS = ["memory", "torch", pytest.param("ffcv", marks=pytest.mark.ffcv)]


@pytest.fixture(params=LOADERS)
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> Loader:
    whole: Any = split()
    if request.param == "ffcv":
        labelled = np.arange(0, COUNT, 3)
        labels = visible_labels(COUNT, labelled, whole.labels[labelled])
        return build_loader("ffcv", stored(tmp_path / "x.beton", whole.images), labels, CPU.torch, workers=2)
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
from mal.data.image_set import IGNORED, Arrays
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


# ------------------------------------------------------------------------- files of FFCV


def smooth_images(count: int, side: int) -> np.ndarray:
    """uint8 (count, 3, side, side), which JPEG hardly changes."""
    across = np.linspace(0, 255, side)
    ramps = np.stack([np.add.outer(across, across) / 2, np.add.outer(across, 255 - across) / 2])
    return np.stack([np.stack([ramps[0], ramps[1], np.roll(ramps[0], i, axis=0)]) for i in range(count)]).astype(
        np.uint8
    )


@pytest.mark.ffcv
@pytest.mark.parametrize(("mode", "channels"), [("raw", 3), ("raw", 1), ("jpg", 3), ("proportion", 3)])
def test_ffcv_gives_the_pixels_that_were_stored(tmp_path: Path, mode: str, channels: int) -> None:
    images = smooth_images(12, 40)[:, :channels]
    loader = build_loader("ffcv", stored(tmp_path / "x.beton", images, mode), np.zeros(12), CPU.torch, workers=2)
    indices = np.array([11, 0, 5, 5, 3])
    first = loader.load(indices).images
    assert first.shape == (5, channels, 40, 40)
    difference = np.abs(first.numpy().astype(int) - images[indices])
    assert difference.mean() < 8
    assert mode == "proportion" or (difference.max() == 0) == (mode == "raw")
    # A resumed run decodes the same JPEG to the same pixels, whatever came before it and in whatever thread.
    again = next(iter(loader.batches([indices])))
    assert torch.equal(again.images, first)
    single = torch.cat([loader.load(indices[i : i + 1]).images for i in range(5)])
    assert torch.equal(single, first)


@pytest.mark.ffcv
def test_a_file_that_is_not_what_it_should_be_is_refused(tmp_path: Path) -> None:
    images = smooth_images(12, 40)

    def build(file: Stored) -> Loader:
        return build_loader("ffcv", file, np.zeros(12), CPU.torch, workers=2)

    with pytest.raises(ValueError, match="sample i is not image i"):
        build(stored(tmp_path / "order.beton", images, numbers=[1, 0, *range(2, 12)]))
    with pytest.raises(ValueError, match=r"has images of \[\(3, 40, 40\)\], not \(3, 32, 32\)"):
        build(Stored(stored(tmp_path / "x.beton", images).beton, (3, 32, 32)))
    whole = (tmp_path / "x.beton").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("none", b"x" * 5000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} (was cut|cannot be read)"):
            build(Stored(tmp_path / name, (3, 40, 40)))


@pytest.mark.ffcv
def test_a_jpeg_that_cannot_be_decoded_and_an_error_of_the_stream_reach_the_reader(tmp_path: Path) -> None:
    file = stored(tmp_path / "x.beton", smooth_images(12, 40), "jpg")
    loader = build_loader("ffcv", file, np.zeros(12), CPU.torch, workers=2)
    content = bytearray(file.beton.read_bytes())
    place = [at for at in range(len(content) - 2) if content[at : at + 3] == b"\xff\xd8\xff"][7]
    content[place : place + 2] = b"\0\0"
    file.beton.write_bytes(content)
    loader = build_loader("ffcv", file, np.zeros(12), CPU.torch, workers=2)
    with pytest.raises(ValueError, match="image 7 cannot be decoded"):
        list(loader.batches(in_order(np.arange(12), 4)))

    def fails() -> Any:
        yield np.arange(4)
        raise OSError("of the stream")

    with pytest.raises(OSError, match="of the stream"):
        list(loader.batches(fails()))
    assert len(list(loader.batches(in_order(np.arange(7), 4)))) == 2
    assert [thread.name for thread in threading.enumerate() if "_read_ahead" in thread.name] == []


@pytest.mark.ffcv
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    file = stored(tmp_path / "x.beton", smooth_images(12, 40), "jpg")
    program = f"""
import numpy as np, torch
from pathlib import Path
from mal.data.ffcv.reader import BetonReader
threads = torch.get_num_threads()
reader = BetonReader(Path({str(file.beton)!r}), (3, 40, 40), torch.device("cpu"), 2)
next(reader.read([np.arange(12)]))
from mal.data.ffcv import _decode
stats = _decode.fill.stats
print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()), torch.get_num_threads() - threads)
"""
    found = [python("-c", program) for _ in range(2)]
    assert [each.stderr for each in found] == ["", ""]
    assert found[1].stdout.split() == ["0", "1", "0"]


def test_without_ffcv_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"FFCV is not installed.*loader=torch"):
        build_loader("ffcv", Stored(Path("x"), (3, 8, 8)), np.zeros(1), CPU.torch)


def test_files_that_do_not_fit_into_memory_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large:
        shape = (3, 256, 256)

        def __len__(self) -> int:
            return 1_281_167

    monkeypatch.setattr("mal.data.loader.available_memory", lambda: 2**30)
    with pytest.raises(ValueError, match=r"1281167 images .* take 234\.6 GiB, and 1\.0 GiB are free.*loader=torch"):
        build_loader("memory", Large(), np.zeros(1_281_167), CPU.torch)


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_chain(tmp_path_factory.mktemp("memory"), chain_config())
    run_chain(folder, None, Interrupt())
    return outcome(folder)


@pytest.mark.parametrize("kind", LOADERS[1:])
def test_a_chain_is_the_same_by_any_loader_wherever_it_is_interrupted(
    tmp_path: Path, undisturbed: dict[str, Any], kind: str
) -> None:
    if kind == "ffcv":
        assert prepare.main(["dataset=digits", f"data={tmp_path}", "workers=1"]) == 0
    folder = write_chain(tmp_path, chain_config(f"loader={kind}", "workers=1", f"data={tmp_path}"))
    attempts = 0
    while run_folder.committed_rounds(folder) < 2:
        attempts += 1
        try:
            run_chain(folder, None, StopsAt(7 + 5 * attempts))
        except Interrupted:
            assert attempts < 12
    assert attempts > 2
    assert outcome(folder) == undisturbed


# ------------------------------------------------------------------------- waiting for workers


def test_batches_beyond_the_shared_memory_are_refused_before_anything_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from shutil import _ntuple_diskusage as usage  # type: ignore[attr-defined]

    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**26, 2**26, 500))
    loader = build_loader("torch", split(), np.arange(COUNT), CPU.torch, workers=2)
    with pytest.raises(Misplaced, match=r"workers=2 keep ready take 0\.0 MiB of /dev/shm.*--shm-size.*lower workers="):
        next(loader.batches(iter(STREAM)))


@dataclass(frozen=True)
class Slow:
    """Images that never come."""

    labels: Any = None
    shape: tuple[int, ...] = (3, 8, 8)

    def __len__(self) -> int:
        return COUNT

    def read(self, index: int) -> np.ndarray:
        time.sleep(3600)
        raise AssertionError


def test_a_wait_for_images_answers_a_stop_and_ends_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 1)

    def stop() -> None:
        raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        next(build_loader("torch", Slow(), np.arange(COUNT), CPU.torch, look=stop).batches(iter(STREAM)))
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0)
    with pytest.raises(TimeoutError, match="no batch has come from the 1 worker processes"):
        next(build_loader("torch", Slow(), np.arange(COUNT), CPU.torch).batches(iter(STREAM)))


@pytest.mark.ffcv
@pytest.mark.parametrize("way", ["stream", "get"])
def test_a_wait_for_a_copy_answers_a_stop_and_ends_in_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    assert prepare.main(["dataset=digits", f"data={tmp_path}", "workers=1"]) == 0
    beton = tmp_path / "prepared" / "digits-raw" / "train.beton"
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.1)
    answers = threading.Event()

    def read(look: Callable[[], None]) -> None:
        reader = BetonReader(beton, (1, 8, 8), CPU.torch, 1, look)
        fill = reader._layout.fill
        monkeypatch.setattr(reader._layout, "fill", lambda *args: (answers.wait(60), fill(*args))[1])
        indices = np.arange(4)
        next(reader.read(iter([indices]))) if way == "stream" else reader.get(indices)

    def stop() -> None:
        raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        read(stop)
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0)
    with pytest.raises(TimeoutError, match=r"no batch has come from .*train\.beton for 0 s: the storage is stuck"):
        read(lambda: None)
    answers.set()


def test_a_workers_error_is_that_of_the_file(tmp_path: Path) -> None:
    odd = odd_images()
    for name in ("plain.jpg", "bad_cut.jpg"):
        (tmp_path / name).write_bytes(odd[name])
    store = Store.of(tmp_path, list_images(tmp_path, "key"))
    files = Files(store, np.zeros(2, np.int64), 8, "square")
    loader = build_loader("torch", files, np.zeros(2, np.int64), CPU.torch)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/bad_cut\.jpg cannot be read as an image") as refusal:
        list(loader.batches(iter([np.array([0, 1])])))
    assert "worker process" not in str(refusal.value)
