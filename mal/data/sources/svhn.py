"""SVHN's cropped digits (format 2), as they were published.

DATA/svhn/train_32x32.mat  test_32x32.mat
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.registry import SOURCES, files_of

DAMAGED = (zlib.error, OSError, EOFError, LookupError, TypeError, ValueError, NotImplementedError)


@SOURCES.register("svhn")
def read_svhn(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """The training and the test images; the digit 0, which the files call 10, is class 0."""
    folder = files_of(spec, data, "svhn")
    return _read(folder / "train_32x32.mat"), _read(folder / "test_32x32.mat")


def _read(path: Path) -> Arrays:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise ValueError(f"{path} is missing: set data= to the folder that holds svhn, or dataset.root=.")
    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = np.asarray(content["X"]), np.asarray(content["y"])
    except (
        MatReadError,
        zlib.error,
        OSError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise ValueError(f"{path} is not SVHN's file of MATLAB ({str(error)[:200]}): it is cut or damaged.") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path}: X is {images.dtype} {images.shape}, not uint8 (32, 32, 3, N).")
    if labels.dtype.kind not in "ui" or labels.size != images.shape[3] or not ((labels >= 1) & (labels <= 10)).all():
        raise ValueError(f"{path}: y is not one of 1 to 10 for each of the {images.shape[3]} images.")
    return Arrays(np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.ravel().astype(np.int64) % 10)
