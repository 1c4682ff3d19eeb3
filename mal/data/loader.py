"""Loaders: a stream of steps' indices in, batches of uint8 images, labels and absolute indices out.

A reader knows where images are and how to get many of them; a loader is a reader and the labels that were bought. What
it gives does not depend on the kind of reader; augmentation and normalisation happen afterwards, on whole batches
(mal.data.augment). `memory` keeps the images on the device, `torch` decodes them in worker processes, `ffcv` reads the
files that `python -m mal.data.prepare` wrote.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mal.data.image_set import IGNORED, Arrays, Note, check_size, in_memory, no_note
from mal.process.memory import available_memory
from mal.rng import generator

HIDDEN = -1  # the label of an image whose label has not been bought


@dataclass(frozen=True)
class Batch:
    """What a loader gives: images uint8 (B, C, H, W) on the device; indices int64 (B,), absolute.

    labels, on the device: int64 (B,), HIDDEN where not bought, or maps uint8 (B, H, W), IGNORED where not bought.
    The next batch of the same iterator may overwrite the images: clone what is to be kept.
    """

    images: Tensor
    labels: Tensor
    indices: np.ndarray


class Labels(Protocol):
    """Labels by absolute index, in memory or read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """Those of `indices` int64 (B,): int64 (B,), or maps uint8 (B, H, W)."""
        ...


class Reader(Protocol):
    """Images by absolute index, on the device; one per process, whatever is visible in a round."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def get(self, indices: np.ndarray) -> Tensor:
        """Those of `indices` int64 (B,): uint8 (B, C, H, W), new memory; also while a stream is being read."""
        ...

    def read(self, stream: Iterable[np.ndarray]) -> Generator[tuple[np.ndarray, Tensor], None, None]:
        """For each int64 (B,) of the stream: it and its images; work goes on ahead of what is asked, until close().

        One stream at a time.
        """
        ...


class MemoryReader:
    """All images on the device as uint8."""

    def __init__(self, images: np.ndarray, device: torch.device) -> None:
        """images: uint8 (N, C, H, W)."""
        self._images, self._device = to_device(images, device), device

    def __len__(self) -> int:
        return len(self._images)

    def get(self, indices: np.ndarray) -> Tensor:
        """See `Reader`."""
        return self._images.index_select(0, to_device(indices, self._device))

    def read(self, stream: Iterable[np.ndarray]) -> Generator[tuple[np.ndarray, Tensor], None, None]:
        """See `Reader`."""
        for indices in stream:
            yield indices, self.get(indices)


@dataclass(frozen=True)
class Maps:
    """Maps of classes. values: uint8 (n, H, W); rows: int64 (N,), where in values the map of each image is."""

    values: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 (B, H, W)."""
        return self.values[self.rows[indices]]


class Loader:
    """The images of a reader, with the labels that were bought and HIDDEN elsewhere."""

    def __init__(self, reader: Reader, labels: Labels, device: torch.device) -> None:
        assert len(labels) == len(reader), (len(labels), len(reader))
        self._reader, self._labels, self._device = reader, labels, device

    def __len__(self) -> int:
        return len(self._reader)

    def showing(self, labels: Labels) -> Loader:
        """The same images with other visible labels."""
        return Loader(self._reader, labels, self._device)

    def load(self, indices: np.ndarray) -> Batch:
        """One batch: `indices` int64 (B,), absolute."""
        return self._batch(indices, self._reader.get(indices))

    def batches(self, stream: Iterable[np.ndarray]) -> Generator[Batch, None, None]:
        """The batches of a stream of indices, in its order. Close it where it is left before its end."""
        with contextlib.closing(self._reader.read(stream)) as read:
            for indices, images in read:
                yield self._batch(indices, images)

    def _batch(self, indices: np.ndarray, images: Tensor) -> Batch:
        return Batch(images, to_device(self._labels[indices], self._device), indices)


class MemoryLoader(Loader):
    """Arrays on the device."""

    def __init__(self, images: np.ndarray, labels: Labels, device: torch.device) -> None:
        """images: uint8 (N, C, H, W)."""
        super().__init__(MemoryReader(images, device), labels, device)


def build_loader(
    kind: str,
    split: Any,
    labels: Labels,
    device: torch.device,
    workers: int = 1,
    note: Note = no_note,
    look: Callable[[], None] = lambda: None,
) -> Loader:
    """The loader that the key `loader` names, of the images of a split; labels: those that may be seen.

    workers: processes or threads that read ahead; note: told while files are decoded into memory; look: called now and
    then while a batch is waited for, may raise. Raises ValueError where `kind` does not go with what the split is.
    """
    if kind == "memory":
        require_memory((split,), device)
        return MemoryLoader(in_memory(split, note).images, labels, device)
    if kind == "torch":
        from mal.data.loader_torch import TorchReader

        return Loader(TorchReader(split, device, workers, look), labels, device)
    assert kind == "ffcv", kind
    from mal.data.ffcv.reader import BetonReader

    return Loader(BetonReader(split.beton, split.shape, device, workers, look), labels, device)


def require_memory(splits: Sequence[Any], device: torch.device) -> None:
    """Refuse, before any of it is read, what will not fit into memory together; ValueError."""
    on_gpu = device.type == "cuda"
    # Arrays are in the host's memory already; a GPU gets a copy.
    splits = [split for split in splits if on_gpu or not isinstance(split, Arrays)]
    if splits:
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
        check_size(sum(map(len, splits)), splits[0].shape, free, "free on the GPU" if on_gpu else "free")


def count_workers(workers: int, threads: int) -> int:
    """Workers of a chain: the key `workers`, 0 for its threads or, else, all cores that Slurm gave; never more."""
    cores = len(os.sched_getaffinity(0))
    return min(workers or threads or cores, cores)


def visible_labels(count: int, labelled: np.ndarray, labels: np.ndarray) -> Labels:
    """Labels by absolute index as a method may see them: those bought, HIDDEN elsewhere. Returns int64 (count,).

    labels: int64 (L,); for maps, uint8 (L, H, W), it returns `Maps`, of which those not bought are ignored everywhere.
    """
    if labels.ndim == 3:
        rows = np.full(count, len(labels))
        rows[labelled] = np.arange(len(labels))
        return Maps(np.concatenate([labels, np.full((1, *labels.shape[1:]), IGNORED, np.uint8)]), rows)
    visible = np.full(count, HIDDEN, dtype=np.int64)
    visible[labelled] = labels
    return visible


class TrainingStream:
    """The indices of training step t as a pure function of (key, t): epoch after epoch, each a new permutation.

    Batches run over the epochs' borders, so every one is full and every image comes once per epoch. A set smaller than
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


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of the array on the device; on the CPU it may share its memory."""
    # A read-only array (a file's buffer) would be shared with the tensor on the CPU, which torch warns of.
    tensor = torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
    return tensor.to(device, non_blocking=True)
