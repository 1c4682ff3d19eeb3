"""Scans: every index exactly once, blocks on disk, resumed behind the last; in as large parts as the device holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mal.data.loader import MemoryLoader
from mal.process.interrupt import Interrupt, Interrupted
from mal.run.heartbeat import Progress, read_progress
from mal.training.scan import Scanner
from tests.chains import CPU, made_up_images, plain_augmentation

COUNT, BATCH = 103, 10
INDICES = np.random.default_rng(0).permutation(COUNT)[:95]


def images() -> np.ndarray:
    """Each with its number in its first two pixels."""
    found = np.zeros((COUNT, 1, 4, 4), dtype=np.uint8)
    found[:, 0, 0, 0], found[:, 0, 0, 1] = np.arange(COUNT) % 100, np.arange(COUNT) // 100
    return found


class Looks:
    """A function of a scan that notes whom it has seen, and asks to stop during batch `stop`."""

    def __init__(self, interrupt: Interrupt, stop: int | None = None) -> None:
        self.interrupt, self.stop, self.batches, self.seen = interrupt, stop, 0, list[int]()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.batches += 1
        if self.batches == self.stop:
            self.interrupt.cause = "a test"
        pixels = (images * 255).round().long()[:, 0, 0]
        numbers = pixels[:, 0] + 100 * pixels[:, 1]
        self.seen.extend(numbers.tolist())
        return {"number": numbers, "pair": torch.stack([numbers, -numbers], dim=1) / 7}


def attempt(folder: Path, stop: int | None = None, phase: str = "score", **changes: Any) -> tuple[Any, list[int]]:
    """One process's scan; nothing of an earlier one but the disk is known."""
    interrupt = Interrupt()
    looks = Looks(interrupt, stop)
    model = changes.pop("model", nn.Linear(2, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(changes.pop("weight", 0.5))
    indices = changes.pop("indices", INDICES)
    options: dict[str, Any] = {"batch": BATCH, "folder": folder / "checkpoint", "identity": "a round"}
    scanner = Scanner(plain_augmentation(), CPU, Progress(folder, 0, interrupt), **(options | changes))
    loader = MemoryLoader(images(), np.zeros(COUNT, dtype=np.int64), CPU.torch)
    try:
        return scanner.scan(phase, loader, indices, looks, model), looks.seen
    except Interrupted:
        return None, looks.seen


def check(found: dict[str, np.ndarray], indices: np.ndarray = INDICES) -> None:
    assert np.array_equal(found["number"], indices)
    assert np.array_equal(found["pair"], np.stack([indices, -indices], axis=1).astype(np.float32) / np.float32(7))


@pytest.mark.parametrize("stop", [1, 2, 5, 9])
def test_an_interrupted_scan_goes_on_behind_its_last_batch(tmp_path: Path, stop: int) -> None:
    nothing, first = attempt(tmp_path, stop)
    assert nothing is None
    assert first == INDICES[: stop * BATCH].tolist()
    found, second = attempt(tmp_path)
    assert first + second == INDICES.tolist()  # each exactly once, over both
    check(found)
    beat = read_progress(tmp_path)
    assert beat is not None
    assert beat["steps"] == 95
    assert beat["step"] >= stop * BATCH  # noted once per second, but at the start of a phase always


def test_a_scan_interrupted_again_and_again_takes_each_image_once(tmp_path: Path) -> None:
    seen, found = [], None
    while found is None:
        found, now = attempt(tmp_path, stop=2)
        seen += now
        assert len(seen) <= len(INDICES)
    assert seen == INDICES.tolist()
    check(found)
    again, now = attempt(tmp_path)  # a round interrupted behind its scan has it on disk
    assert now == []
    check(again)


def test_a_short_scan_writes_nothing(tmp_path: Path) -> None:
    found, _ = attempt(tmp_path)
    check(found)
    assert list((tmp_path / "checkpoint").glob("scan*")) == []


def test_a_killed_scan_goes_on_behind_its_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    call = Looks.__call__

    def killed(self: Looks, images: Tensor) -> dict[str, Tensor]:
        if self.batches == 4:
            raise Killed
        return call(self, images)

    monkeypatch.setattr(Looks, "__call__", killed)
    with pytest.raises(Killed):
        attempt(tmp_path, save_seconds=0.0)
    monkeypatch.undo()
    assert len(list((tmp_path / "checkpoint").glob("scan-score-0-*.ckpt"))) == 4
    found, seen = attempt(tmp_path)
    assert seen == INDICES[4 * BATCH :].tolist()
    check(found)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "another round"},
        {"weight": 0.25},
        {"phase": "features"},
        {"batch": 5},
        {"indices": INDICES[::-1].copy()},
    ],
)
def test_blocks_of_another_scan_are_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    attempt(tmp_path, stop=4)
    found, seen = attempt(tmp_path, **change)
    indices = change.get("indices", INDICES)
    assert seen == indices.tolist()
    check(found, indices)


def test_a_damaged_block_costs_what_came_since_the_one_before(tmp_path: Path, caplog: Any) -> None:
    attempt(tmp_path, stop=6, save_seconds=0.0)
    path = tmp_path / "checkpoint" / "scan-score-0-2.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    found, seen = attempt(tmp_path)
    assert "cut or damaged" in caplog.text
    assert seen == INDICES[2 * BATCH :].tolist()
    check(found)


# ------------------------------------------------------------------------- memory of the device


def test_a_scan_that_the_device_cannot_hold_is_halved_and_the_part_remembered(tmp_path: Path) -> None:
    loader = MemoryLoader(made_up_images(50), np.arange(50), CPU.torch)
    scanner = Scanner(plain_augmentation(), CPU, Progress(tmp_path, 0, Interrupt()), batch=32)
    asked: list[int] = []

    def sums(images: Tensor) -> dict[str, Tensor]:
        asked.append(len(images))
        if len(images) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"sum": images.sum(dim=(1, 2, 3))}

    found = scanner.scan("score", loader, np.arange(50), sums)["sum"]
    expected = made_up_images(50).astype(np.float32).sum(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert asked == [32, 16, 8, 8, 8, 8, 8, 8, 2]
    asked.clear()
    scanner.scan("score", loader, np.arange(16), sums)
    assert asked == [8, 8]


def test_memory_too_small_for_one_image_is_an_error(tmp_path: Path) -> None:
    loader = MemoryLoader(made_up_images(4), np.arange(4), CPU.torch)
    scanner = Scanner(plain_augmentation(), CPU, Progress(tmp_path, 0, Interrupt()), batch=4)

    def fails(images: Tensor) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        scanner.scan("score", loader, np.arange(4), fails)
