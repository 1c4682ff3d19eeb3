"""Loaders: a stream of steps' indices in, batches of uint8 images, labels and absolute indices out.

`memory` keeps the images on the device. What a loader gives is independent of how: augmentation and normalisation
happen afterwards, on whole batches (mal.data.augment).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mal.rng import generator

HIDDEN = -1  # the label of an image whose label has not been bought


@dataclass(frozen=True)
class Batch:
    """images: uint8 (B, C, H, W) on the device; labels: int64 (B,), HIDDEN where not bought; indices: int64 (B,)."""

    images: Tensor
    labels: Tensor
    indices: np.ndarray


class MemoryLoader:
    """All images on the device as uint8, with the labels that were bought and HIDDEN elsewhere."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        """images: uint8 (N, C, H, W); labels: int64 (N,)."""
        self._images = _to_device(images, device)
        self._labels = _to_device(labels, device)
        self._device = device

    def __len__(self) -> int:
        return len(self._images)

    def load(self, indices: np.ndarray) -> Batch:
        """One batch: `indices` int64 (B,), absolute."""
        at = torch.from_numpy(np.ascontiguousarray(indices)).to(self._device, non_blocking=True)
        return Batch(self._images.index_select(0, at), self._labels.index_select(0, at), indices)

    def batches(self, stream: Iterable[np.ndarray]) -> Iterator[Batch]:
        """The batches of a stream of indices, in its order."""
        return map(self.load, stream)


def visible_labels(count: int, labelled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels by absolute index as a method may see them: those bought, HIDDEN elsewhere. Returns int64 (count,)."""
    visible = np.full(count, HIDDEN, dtype=np.int64)
    visible[labelled] = labels
    return visible


class TrainingStream:
    """The indices of training step t as a pure function of (key, t): epoch after epoch, each a new permutation.

    Batches run over the epochs' borders, so every one is full and every image comes once an epoch. A set smaller than
    a batch is given whole at each step.
    """

    def __init__(self, indices: np.ndarray, batch: int, key: tuple[int | str, ...]) -> None:
        self._indices, self._key = indices, key
        self.batch = min(batch, len(indices))
        self._permutations: dict[int, np.ndarray] = {}

    def step(self, t: int) -> np.ndarray:
        """int64 (batch,) absolute indices of step t, from 0."""
        first, count = t * self.batch, len(self._indices)
        at = np.arange(first, first + self.batch)
        epochs = range(at[0] // count, at[-1] // count + 1)
        return np.concatenate([self._epoch(epoch)[at[at // count == epoch] % count] for epoch in epochs])

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = generator(*self._key, "epoch", epoch).permutation(self._indices)
        return self._permutations[epoch]


def in_order(indices: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Every index exactly once, in the given order, the last batch smaller: for scoring and evaluation."""
    return (indices[first : first + batch] for first in range(0, len(indices), batch))


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    # A read-only array (a file's buffer) shares its memory with the tensor on the CPU; nothing ever writes to it.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.to(device)
