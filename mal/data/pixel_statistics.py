"""Mean and deviation of a pool's pixels or features, from exact sums: the same bits however images are read."""

from __future__ import annotations

import math

import numpy as np

from mal.data.cache import computed
from mal.data.dataset import Dataset
from mal.data.image_set import Arrays, Files, Note, Prepared, decoded, no_note

ROWS = 2**14  # of features, added up together


def image_moments(image: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of each channel of uint8 (C, H, W): int64 (C, 2)."""
    flat = image.reshape(len(image), -1).astype(np.float64)  # whole numbers below 2^53: exact
    return np.stack([flat.sum(axis=1), np.einsum("cp,cp->c", flat, flat)], axis=1).astype(np.int64)


def pixel_statistics(dataset: Dataset, note: Note = no_note) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of the pool's images, scaled to [0, 1]; labels are not needed.

    note: told how many image files are decoded, of how many. What was found in files is kept in the data folder: the
    launch, or the first job where that could not write, computes it for all that follow.
    """
    train, pool = dataset.train, dataset.pool
    pixels = train.shape[1] * train.shape[2] * len(pool)
    if isinstance(train, Prepared):
        return statistics(train.moments[pool].sum(axis=0), pixels)
    if isinstance(train, Arrays) and train.images.dtype != np.uint8:
        name = f"{dataset.spec.name}-features-{dataset.digest[:12]}"
        kept = computed(dataset.data, name, dataset.digest, lambda: feature_statistics(train.images, pool))
        return kept["mean"], kept["std"]
    if isinstance(train, Arrays):
        return statistics(array_moments(train.images[pool]), pixels)
    name = f"{dataset.spec.name}-moments-{dataset.digest[:12]}"
    found = computed(
        dataset.data,
        name,
        dataset.digest,
        lambda: {"moments": _decoded_moments(train, pool, note)},
        lambda: note(0, len(pool)),
    )
    return statistics(found["moments"], pixels)


def feature_statistics(images: np.ndarray, pool: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and deviation (d,) of features (N, d, 1, 1) over the pool, int64 indices, in float64."""
    total, squares = np.zeros(images.shape[1]), np.zeros(images.shape[1])
    for first in range(0, len(pool), ROWS):
        rows = images[pool[first : first + ROWS], :, 0, 0].astype(np.float64)
        total += rows.sum(axis=0)
        squares += np.einsum("nd,nd->d", rows, rows)
    mean = total / len(pool)
    return {"mean": mean, "std": np.sqrt(np.maximum(squares / len(pool) - mean**2, 1e-12))}


def array_moments(images: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of each channel of uint8 (N, C, H, W), by histogram: int64 (C, 2)."""
    values = np.arange(256, dtype=np.int64)
    counts = np.stack([np.bincount(images[:, c].ravel(), minlength=256) for c in range(images.shape[1])])
    return np.stack([counts @ values, counts @ values**2], axis=1)


def _decoded_moments(files: Files, pool: np.ndarray, note: Note) -> np.ndarray:
    total = np.zeros((files.shape[0], 2), dtype=np.int64)
    for image in decoded(files, pool, note):
        total += image_moments(image)
    return total


def statistics(moments: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """From sums and sums of squares (C, 2) over so many pixels; whole numbers until the last division."""
    mean, std = [], []
    for total, squares in moments.tolist():
        mean.append(total / (255 * pixels))
        std.append(max(math.sqrt((pixels * squares - total * total) / (255 * pixels) ** 2), 1e-6))
    return np.array(mean), np.array(std)
