"""Mean and deviation of a pool's pixels or features, from exact sums: the same bits however images are read."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from mal.data.cache import computed, keep, recall
from mal.data.dataset import Dataset, prepared_twin
from mal.data.decode import PIXELS
from mal.data.image_set import Arrays, Files, Note, Prepared, decoded, no_note

ROWS = 2**14  # of features, added up together
SAVE_SECONDS = 30.0  # between two saves of a pass over image files


def image_moments(image: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of each channel of uint8 (C, H, W): int64 (C, 2)."""
    flat = image.reshape(len(image), -1).astype(np.float64)  # whole numbers below 2^53: exact
    return np.stack([flat.sum(axis=1), np.einsum("cp,cp->c", flat, flat)], axis=1).astype(np.int64)


def pixel_statistics(dataset: Dataset, note: Note = no_note) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of the pool's images, scaled to [0, 1]; labels are not needed.

    note: told how many image files are decoded, of how many; may raise to stop. A prepared copy has the sums of every
    image, also for a chain that reads the files themselves. Else they are computed once for all chains, and kept in the
    data folder as they grow: what was stopped or killed goes on.
    """
    train, pool = dataset.train, dataset.pool
    pixels = train.shape[1] * train.shape[2] * len(pool)
    if isinstance(train, Arrays) and train.images.dtype != np.uint8:
        name = f"{dataset.spec.name}-features-{dataset.digest[:12]}"
        kept = computed(dataset.data, name, dataset.digest, lambda: feature_statistics(train.images, pool))
        return kept["mean"], kept["std"]
    if isinstance(train, Arrays):
        return statistics(array_moments(train.images[pool]), pixels)
    if (copy := prepared_twin(dataset)) is not None:
        return statistics(copy.moments[pool].sum(axis=0), pixels)
    assert not isinstance(train, Prepared)
    name, identity = f"{dataset.spec.name}-moments-{dataset.digest[:12]}", f"{dataset.digest} {PIXELS}"
    found = computed(
        dataset.data,
        name,
        identity,
        lambda: {"moments": _decoded_moments(train, pool, note, (dataset.data, name, f"part of {identity}"))},
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


def _decoded_moments(files: Files, pool: np.ndarray, note: Note, place: tuple[Path, str, str]) -> np.ndarray:
    """The sums over the files at `pool`; place: folder, name and identity by which what is done of it is kept."""
    before = recall(*place) or {"moments": np.zeros((files.shape[0], 2), np.int64), "done": np.array(0)}
    first, total = int(before["done"]), before["moments"]
    reached, saved = before, time.monotonic()

    def noted(done: int, _: int) -> None:
        nonlocal reached, saved
        reached = {"moments": total.copy(), "done": np.array(first + done)}
        if time.monotonic() - saved > SAVE_SECONDS:
            keep(*place, reached)
            saved = time.monotonic()
        note(first + done, len(pool))

    try:
        for image in decoded(files, pool[first:], noted):
            total = total + image_moments(image)
    except BaseException:  # a signal, a file that cannot be read, a storage that fails
        if reached is not before:
            keep(*place, reached)
        raise
    return total


def statistics(moments: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """From sums and sums of squares (C, 2) over so many pixels; whole numbers until the last division."""
    mean, std = [], []
    for total, squares in moments.tolist():
        mean.append(total / (255 * pixels))
        std.append(max(math.sqrt((pixels * squares - total * total) / (255 * pixels) ** 2), 1e-6))
    return np.array(mean), np.array(std)
