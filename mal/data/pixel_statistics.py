"""Mean and deviation of a pool's pixels, from exact sums: the same bits whichever way the images are read."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mal.data.cache import computed
from mal.data.dataset import Dataset
from mal.data.image_set import Arrays, Files, Prepared

SAY_SECONDS = 30
BLOCK = 512  # images decoded between two looks at whether to stop

log = logging.getLogger(__name__)


def image_moments(image: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of each channel of uint8 (C, H, W): int64 (C, 2)."""
    flat = image.reshape(len(image), -1).astype(np.float64)  # whole numbers below 2^53: exact
    return np.stack([flat.sum(axis=1), np.einsum("cp,cp->c", flat, flat)], axis=1).astype(np.int64)


def pixel_statistics(dataset: Dataset, check: Callable[[], None] = lambda: None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of the pool's images, scaled to [0, 1]; labels are not needed.

    check: called now and then while image files are decoded, may raise. Those of files are kept in the data folder.
    """
    train, pool = dataset.train, dataset.pool
    pixels = train.shape[1] * train.shape[2] * len(pool)
    if isinstance(train, Prepared):
        return statistics(train.moments[pool].sum(axis=0), pixels)
    if isinstance(train, Arrays):
        return statistics(array_moments(train.images[pool]), pixels)
    name = f"{dataset.spec.name}-moments-{dataset.digest[:12]}"
    found = computed(dataset.data, name, dataset.digest, lambda: {"moments": _decoded_moments(train, pool, check)})
    return statistics(found["moments"], pixels)


def array_moments(images: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of each channel of uint8 (N, C, H, W), by histogram: int64 (C, 2)."""
    values = np.arange(256, dtype=np.int64)
    counts = np.stack([np.bincount(images[:, c].ravel(), minlength=256) for c in range(images.shape[1])])
    return np.stack([counts @ values, counts @ values**2], axis=1)


def _decoded_moments(files: Files, pool: np.ndarray, check: Callable[[], None]) -> np.ndarray:
    def moments_of(index: np.int64) -> np.ndarray:
        return image_moments(files.read(int(index)))

    total = np.zeros((files.shape[0], 2), dtype=np.int64)
    began = said = time.monotonic()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # Pillow decodes without Python's lock
        for first in range(0, len(pool), BLOCK):
            for moments in threads.map(moments_of, pool[first : first + BLOCK]):
                total += moments
            check()
            if (now := time.monotonic()) - said > SAY_SECONDS:
                done, said = min(first + BLOCK, len(pool)), now
                left = (now - began) * (len(pool) - done) / done
                log.info("mean of the pixels: %d of %d images, %.0f s left", done, len(pool), left)
    return total


def statistics(moments: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """From sums and sums of squares (C, 2) over so many pixels; whole numbers until the last division."""
    mean, std = [], []
    for total, squares in moments.tolist():
        mean.append(total / (255 * pixels))
        std.append(max(math.sqrt((pixels * squares - total * total) / (255 * pixels) ** 2), 1e-6))
    return np.array(mean), np.array(std)
