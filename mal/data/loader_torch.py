"""The `torch` loader: worker processes decode whole batches, as torch's DataLoader has them."""

from __future__ import annotations

import atexit
import dataclasses
import itertools
import multiprocessing
import shutil
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mal.data import waiting
from mal.process.faults import Misplaced
from mal.process.interrupt import shielded

AHEAD = 2  # batches that each worker may have ready
SHARED = Path("/dev/shm")  # where Linux keeps what processes share


class TorchReader:
    """Images of files or arrays, by worker processes that stay from one stream to the next.

    At most AHEAD batches per worker are ready before they are asked for, in shared memory, pinned where there is a GPU.
    """

    def __init__(self, split: Any, device: torch.device, workers: int, look: Callable[[], None] = lambda: None) -> None:
        """split: `shape` (C, H, W), `len`, and `read(index)`, which gives an image as uint8 (C, H, W).

        look: called now and then while a batch is waited for, may raise.
        """
        self._look, self._bytes = look, int(np.prod(split.shape))
        self._images, self._device, self._workers = _Images(split), device, workers
        self._order = _Order()
        self._processes: DataLoader[Any] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def get(self, indices: np.ndarray) -> Tensor:
        """See `Reader`; read in this process."""
        return _whole(self._images.__getitems__(indices))[1].to(self._device)

    def read(self, stream: Iterable[np.ndarray]) -> Generator[tuple[np.ndarray, Tensor], None, None]:
        """See `Reader`."""
        stream = iter(stream)
        first = list(itertools.islice(stream, 1))
        if first:
            require_shared_memory((self._workers * AHEAD + 1) * len(first[0]) * self._bytes, self._workers)
        self._order.follow(itertools.chain(first, stream))
        # A stream left before its end leaves batches on their way: the next one waits for them and drops them.
        batches = self._start()
        while (batch := self._next(batches)) is not None:
            indices, images = _whole(batch)
            yield indices, images.to(self._device, non_blocking=True)

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch, None at the end; TimeoutError where none comes."""
        what = f"loader=torch: no batch has come from the {self._workers} worker processes"
        hint = f"the storage is stuck, or {SHARED} is full. Lower workers=, or choose loader=memory or ffcv."
        wait = waiting.Wait(what, hint, self._look)
        while True:
            try:
                return next(batches, None)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
            wait.on()

    def _start(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        if self._processes is None:
            self._processes = DataLoader(
                self._images,
                batch_sampler=self._order,  # type: ignore[arg-type]  # arrays of indices instead of lists
                num_workers=self._workers,
                prefetch_factor=AHEAD,
                collate_fn=_as_it_is,
                pin_memory=self._device.type == "cuda",
                persistent_workers=True,
                timeout=waiting.LOOK_SECONDS,
                generator=torch.Generator(),  # what it draws for the workers leaves torch's own random state alone
            )
        before = set(multiprocessing.active_children())
        with shielded():
            iterator = iter(self._processes)
        _RUNNING.add(iterator)
        _WORKERS.update(set(multiprocessing.active_children()) - before)
        return iterator


class _Order:
    """The batches of indices of one stream after another, as torch's samplers are asked for them."""

    def __init__(self) -> None:
        self._stream: Iterator[np.ndarray] = iter(())

    def follow(self, stream: Iterable[np.ndarray]) -> None:
        self._stream = iter(stream)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._stream


class _Images(Dataset[Any]):
    """The images of a split without its labels."""

    def __init__(self, split: Any) -> None:
        self._read = dataclasses.replace(split, labels=np.empty(0, np.int64)).read
        self._shape, self._count = split.shape, len(split)

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, indices: np.ndarray) -> tuple[np.ndarray, Tensor | ValueError | OSError]:
        """A batch, or what is wrong with one of its files: torch would wrap an error into the worker's traceback."""
        images = torch.empty((len(indices), *self._shape), dtype=torch.uint8)
        try:
            for row, index in zip(images.numpy(), indices, strict=True):
                row[...] = self._read(int(index))
        except (ValueError, OSError) as error:
            return indices, error
        return indices, images


def require_shared_memory(needed: int, workers: int) -> None:
    """Refuse, by `Misplaced`, batches that do not fit into what processes share: its lack is told to nobody."""
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else needed
    if needed > free:
        raise Misplaced(
            f"loader=torch: the batches that workers={workers} keep ready take {needed / 2**20:.1f} MiB of {SHARED}, "
            f"which has {free / 2**20:.1f} MiB free: enlarge it (docker run --shm-size=1g), lower workers= or the "
            "batch (task.batch=, minimax.batch=), or choose loader=memory or ffcv."
        )


def _whole(batch: tuple[np.ndarray, Tensor | ValueError | OSError]) -> tuple[np.ndarray, Tensor]:
    indices, images = batch
    if isinstance(images, ValueError | OSError):
        raise images
    return indices, images


_RUNNING: weakref.WeakSet[Any] = weakref.WeakSet()
_WORKERS: set[Any] = set()


@atexit.register
def _end_workers() -> None:
    # Python ends its children by SIGTERM, which these never get, and waits for them: they are told before that.
    for iterator in list(_RUNNING):
        iterator._shutdown_workers()  # as torch does when nobody refers to it any more
    for worker in _WORKERS:
        worker.kill()


def _as_it_is(batch: Any) -> Any:
    return batch
