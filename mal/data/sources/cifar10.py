"""CIFAR10's python version, as torchvision unpacks it.

DATA/cifar-10-batches-py/data_batch_1 ... data_batch_5  test_batch
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.cifar100 import read_batch
from mal.data.sources.registry import SOURCES, files_of


@SOURCES.register("cifar10")
def read_cifar10(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """The five batches of training images, in their order, and the test batch; no code of the files is run."""
    folder = files_of(spec, data, "cifar-10-batches-py")
    batches = [_read(folder / f"data_batch_{number}") for number in range(1, 6)]
    images, labels = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
    return Arrays(images, labels), _read(folder / "test_batch")


def _read(path: Path) -> Arrays:
    return read_batch(path, "CIFAR10", "labels", "cifar-10-python.tar.gz")
