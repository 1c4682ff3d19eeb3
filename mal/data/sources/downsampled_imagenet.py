"""ImageNet at 32x32 or 64x64 (Chrabaszcz, Loshchilov and Hutter, 2017), in its official pickles or .npz files.

    DATA/imagenet32/train_data_batch_1[.npz] ... train_data_batch_10[.npz]  val_data[.npz]
    DATA/imagenet64/ likewise

Importing this module imports no heavy package.
"""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.registry import SOURCES, files_of
from mal.data.unpickle import unpickle

BATCHES = 10
# What zip, zlib, numpy's parser of headers and the pickle machine raise.
DAMAGED = (ValueError, OSError, KeyError, AttributeError, EOFError, NotImplementedError, SyntaxError, TypeError)
DAMAGED += (zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # type: ignore[assignment]


@SOURCES.register("downsampled_imagenet")
def read_downsampled_imagenet(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """All batches in their order and the validation images; labels, 1 to 1000 in the files, are 0 to 999 here."""
    folder = files_of(spec, data, spec.name)
    training = [_path(folder, f"train_data_batch_{number}") for number in range(1, BATCHES + 1)]
    return _joined(training, spec), _joined([_path(folder, "val_data")], spec)


def _path(folder: Path, stem: str) -> Path:
    for path in (folder / stem, folder / f"{stem}.npz"):
        if path.is_file():
            return path
    raise ValueError(
        f"{folder / stem}[.npz] is missing: set data= to the folder that holds {folder.name}, or dataset.root= to the "
        "one that holds the batches."
    )


def _joined(paths: list[Path], spec: Spec) -> Arrays:
    """The images of several files, in one array; one file at a time is in memory besides."""
    images = np.empty((0, 3, spec.size, spec.size), np.uint8)
    labels = []
    for path in paths:
        pixels, numbers = _read(path, spec.size)
        first = len(images)
        images.resize((first + len(pixels), *images.shape[1:]), refcheck=False)
        images[first:] = pixels.reshape(-1, 3, spec.size, spec.size)
        labels.append(numbers)
    return Arrays(images, np.concatenate(labels))


def _read(path: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, 3 S S) and labels int64 (N,) from 0."""
    content = path.read_bytes()
    try:
        if path.suffix == ".npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                pixels, labels = file["data"], file["labels"]
        else:
            found = unpickle(content)
            named = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
            pixels, labels = np.asarray(named["data"]), np.asarray(named["labels"])
    except DAMAGED as error:
        raise ValueError(
            f"{path} is not a batch of downsampled ImageNet ({str(error)[:200]}): it is cut or damaged."
        ) from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * size * size:
        raise ValueError(f"{path}: data is {pixels.dtype} {pixels.shape}, not uint8 (N, {3 * size * size}).")
    if labels.dtype.kind not in "ui" or labels.shape != (len(pixels),) or (labels.size and labels.min() < 1):
        raise ValueError(f"{path}: labels are not a whole number from 1 for each of the {len(pixels)} images.")
    return pixels, labels.astype(np.int64) - 1
