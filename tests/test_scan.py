"""One pass over a pool, in as large parts as the device holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from chains import CPU, made_up_images, plain_augmentation
from torch import Tensor

from mal.data.loader import MemoryLoader
from mal.interrupt import Interrupt
from mal.progress import Progress
from mal.scan import Scanner


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
