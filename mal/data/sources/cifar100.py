"""CIFAR100 in its python version, as torchvision unpacks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.registry import SOURCES, files_of
from mal.data.unpickle import unpickle


@SOURCES.register("cifar100")
def read_cifar100(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """CIFAR100's python version, DATA/cifar-100-python/{train,test} as torchvision unpacks it; no code of it is run."""
    folder = files_of(spec, data, "cifar-100-python")
    return _read_cifar100(folder / "train"), _read_cifar100(folder / "test")


def _read_cifar100(path: Path) -> Arrays:
    return read_batch(path, "CIFAR100", "fine_labels", "cifar-100-python.tar.gz")


def read_batch(path: Path, name: str, labels: str, archive: str) -> Arrays:
    """One of CIFAR's files, uint8 (N, 3, 32, 32); labels: the key of its labels; archive: what it was unpacked from.

    Raises ValueError where it is missing, cut, damaged or of another kind.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: unpack {archive} in the folder that data= names.")
    try:
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in _read(path).items()}
        images, numbers = np.asarray(content["data"]), np.asarray(content[labels])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not {name}'s python version ({str(error)[:200]}): it is cut or damaged.") from None
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise ValueError(f"{path}: data is {images.dtype} {images.shape}, not uint8 (N, 3072).")
    if numbers.dtype.kind not in "ui" or numbers.ndim != 1:
        raise ValueError(f"{path}: {labels} is {numbers.dtype} {numbers.shape}, not whole numbers (N,).")
    return Arrays(images.reshape(-1, 3, 32, 32), numbers.astype(np.int64))


def _read(path: Path) -> dict[Any, Any]:
    content = unpickle(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content
