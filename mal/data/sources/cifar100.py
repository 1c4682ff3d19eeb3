"""CIFAR100 in its python version, as torchvision unpacks it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.registry import SOURCES, files_of


@SOURCES.register("cifar100")
def read_cifar100(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """CIFAR100's python version, DATA/cifar-100-python/{train,test} as torchvision unpacks it; no code of it is run."""
    folder = files_of(spec, data, "cifar-100-python")
    return _read_cifar100(folder / "train"), _read_cifar100(folder / "test")


class _PlainUnpickler(pickle.Unpickler):
    """CIFAR100's pickles hold dicts, lists, bytes and numpy arrays; anything else in one is refused."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in an image file")
        return super().find_class(module, name)


def _read_cifar100(path: Path) -> Arrays:
    if not path.is_file():
        raise ValueError(f"{path} is missing: unpack cifar-100-python.tar.gz in the folder that data= names.")
    try:
        with path.open("rb") as file:
            # Written by Python 2: its strings are bytes here. A copy written again by Python 3 may have either.
            loaded = _PlainUnpickler(file, encoding="bytes").load()
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in loaded.items()}
        images = np.asarray(content["data"])
        labels = np.asarray(content["fine_labels"], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not CIFAR100's python version ({error}): it is cut or damaged.") from None
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise ValueError(f"{path}: data is {images.dtype} {images.shape}, not uint8 (N, 3072).")
    return Arrays(images.reshape(-1, 3, 32, 32), labels)
