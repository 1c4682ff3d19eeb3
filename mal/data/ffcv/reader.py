"""The `ffcv` loader: FFCV's files by FFCV's reader and decoder, in the order of our streams.

A thread reads ahead, as many batches as there are buffers, and shares each one among threads that decode without
Python's lock. One file is opened once for a process: streams of any order, length and batch follow each other, with
nothing compiled again. FFCV's own driver is not used: it wants a phase's whole order at once, compiles for each Loader,
keeps half a kilobyte per image, and waits for ever where its thread failed; it does not notice a JPEG that is damaged.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mal.data import waiting
from mal.data.ffcv.library import import_ffcv, library
from mal.process.interrupt import shielded

AHEAD = 3  # batches that are ready or being read while one is used
BLOCK = 2**20  # samples looked at together when a file is opened


class BetonReader:
    """Images of a .beton file: RGB as pixels or JPEG, or arrays (C, H, W); sample i is absolute index i."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        device: torch.device,
        workers: int,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """shape: (C, H, W); workers: threads that decode; look: called now and then while images are waited for.

        Raises ValueError where the file is not of such images.
        """
        self._layout, self._look = _Layout(path, shape), look
        self._device, self._workers = device, workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._buffers = _buffers()
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self._layout.places)

    def get(self, indices: np.ndarray) -> Tensor:
        """See `Reader`."""
        pixels = torch.empty((len(indices), self._layout.bytes), dtype=torch.uint8)
        fills, wait = self._fills(indices, pixels.numpy()), self._wait()
        while futures.wait(fills, waiting.LOOK_SECONDS).not_done:
            wait.on()
        self._check(indices, fills)
        return self._layout.images(pixels).to(self._device)

    def read(self, stream: Iterable[np.ndarray]) -> Generator[tuple[np.ndarray, Tensor], None, None]:
        """See `Reader`."""
        free: queue.SimpleQueue[_Buffer | None] = queue.SimpleQueue()
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        left = threading.Event()
        for buffer in self._buffers:
            free.put(buffer)
        thread = threading.Thread(
            target=self._read_ahead, args=(stream, free, ready, left), name="read ahead", daemon=True
        )
        with shielded():
            thread.start()
        try:
            while (filled := _take(ready, thread, self._wait())) is not None:
                indices, images, buffer = filled
                if self._side is not None:
                    torch.cuda.current_stream(self._device).wait_event(buffer.copied)
                    images.record_stream(torch.cuda.current_stream(self._device))
                yield indices, images
                free.put(buffer)
        finally:
            left.set()
            free.put(None)
            thread.join(waiting.LOOK_SECONDS)
            if thread.is_alive():  # the storage is stuck: what it still fills is given to nobody
                self._buffers = _buffers()

    def _read_ahead(self, stream: Iterable[np.ndarray], free: Any, ready: Any, left: Any) -> None:
        # Whatever happens here must reach who waits for it.
        try:
            for indices in stream:
                buffer = free.get()
                if left.is_set():
                    return
                pixels = buffer.of(len(indices), self._layout.bytes, self._side is not None)
                self._check(indices, self._fills(indices, pixels.numpy()))
                ready.put((indices, self._to_device(buffer, pixels), buffer))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    def _to_device(self, buffer: _Buffer, pixels: Tensor) -> Tensor:
        """On a GPU the copy runs beside the network; the buffer is filled again when it is done."""
        if self._side is None:
            return self._layout.images(pixels)
        with torch.cuda.stream(self._side):
            images = self._layout.images(pixels.to(self._device, non_blocking=True))
            buffer.copied = torch.cuda.Event()
            buffer.copied.record(self._side)
        return images

    def _fills(self, indices: np.ndarray, pixels: np.ndarray) -> list[Future[int]]:
        """The threads' work on one batch, begun."""
        parts = np.linspace(0, len(indices), min(self._workers, len(indices)) + 1).astype(np.int64)
        return [self._threads.submit(self._layout.fill, indices, *part, pixels) for part in itertools.pairwise(parts)]

    def _check(self, indices: np.ndarray, fills: list[Future[int]]) -> None:
        for fill in fills:
            if (row := fill.result()) >= 0:
                raise ValueError(
                    f"{self._layout.path}: image {indices[row]} cannot be decoded; prepare the file again."
                )

    def _wait(self) -> waiting.Wait:
        hint = "the storage is stuck. Launch again when it answers, or choose another loader=."
        return waiting.Wait(f"loader=ffcv: no batch has come from {self._layout.path}", hint, self._look)


class _Buffer:
    """Memory of a batch, kept from one to the next; copied: when a GPU has what was last in it."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.copied: Any = None

    def of(self, count: int, size: int, pinned: bool) -> Tensor:
        """uint8 (count, size)."""
        if self.copied is not None:
            self.copied.synchronize()
        if self._memory.numel() < count * size:
            self._memory = torch.empty(count * size, dtype=torch.uint8, pin_memory=pinned)
        return self._memory[: count * size].view(count, size)


def _buffers() -> list[_Buffer]:
    return [_Buffer() for _ in range(AHEAD + 1)]


class _Layout:
    """Where the images of a file are in it: of each its place and, among JPEGs, its size; checked as a whole."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        library()  # before the loops that call it
        from mal.data.ffcv import _decode

        self.path, self.bytes, self._shape = path, int(np.prod(shape)), shape
        try:
            reader = _mapped(path)
            names = list(reader.handlers)
            images, numbers = (reader.metadata[f"f{names.index(name)}"] for name in ("image", "index"))
        except (OSError, ValueError, AssertionError, LookupError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} cannot be read as a file of FFCV ({error}): prepare it again.") from None
        self._pixels_last = images.dtype.names is None  # (C, H, W) as an array; FFCV's images are (H, W, C)
        if self._pixels_last:
            stored = {tuple(reader.handlers["image"].shape)}
            self.places, self._sizes = images.astype(np.int64), np.empty(0, np.uint32)
        else:
            stored = {(3, int(h), int(w)) for h in np.unique(images["height"]) for w in np.unique(images["width"])}
            self.places, self._sizes = images["data_ptr"].astype(np.int64), _sizes(reader, images)
        if stored != {shape}:
            raise ValueError(f"{path} has images of {sorted(stored)}, not {shape}: prepare it again.")
        _check_order(path, numbers)
        self._content = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        if self.places.max() + (self._sizes.max() if self._sizes.size else self.bytes) > len(self._content):
            raise ValueError(f"{path} was cut: it has {len(self._content)} bytes; prepare it again.")
        self._fill = _decode.fill

    def fill(self, indices: np.ndarray, first: int, last: int, pixels: np.ndarray) -> int:
        """Rows first to last of uint8 (B, bytes); the first that cannot be decoded, else -1."""
        sides = [np.uint32(side) for side in self._shape[1:]]
        return int(self._fill(indices, first, last, self.places, self._sizes, self._content, pixels, *sides))

    def images(self, pixels: Tensor) -> Tensor:
        """uint8 (B, bytes) as (B, C, H, W)."""
        channels, height, width = self._shape
        if self._pixels_last:
            return pixels.view(-1, channels, height, width)
        return pixels.view(-1, height, width, channels).permute(0, 3, 1, 2)


def _sizes(reader: Any, images: np.ndarray) -> np.ndarray:
    """Bytes of each image that is a JPEG, 0 of raw ones, uint32 (N,); empty where there is no JPEG."""
    raw = images["mode"] == 1
    if raw.all():
        return np.empty(0, np.uint32)
    order = np.argsort(reader.alloc_table["ptr"])
    found = np.searchsorted(reader.alloc_table["ptr"], images["data_ptr"], sorter=order)
    sizes = reader.alloc_table["size"][order[found]].astype(np.uint32)
    sizes[raw] = 0
    return sizes


def _check_order(path: Path, numbers: np.ndarray) -> None:
    for first in range(0, len(numbers), BLOCK):
        block = numbers[first : first + BLOCK]
        if not np.array_equal(block, np.arange(first, first + len(block))):
            raise ValueError(f"{path}: sample i is not image i of its source; prepare it again.")


def _mapped(path: Path) -> Any:
    """FFCV's reader of a file's tables, which stay on disk."""
    reader, types = import_ffcv("reader"), import_ffcv("types")

    class Mapped(reader.Reader):  # type: ignore[name-defined]
        def read_metadata(self) -> None:
            start = types.HeaderType.itemsize + self.field_descriptors.nbytes
            shape = (int(self.num_samples),)
            self.metadata = np.memmap(path, self.metadata_type, "r", start, shape).view(np.ndarray)

        def read_allocation_table(self) -> None:
            start = int(self.header["alloc_table_ptr"])
            self.alloc_table = np.memmap(path, types.ALLOC_TABLE_TYPE, "r", start).view(np.ndarray)

    return Mapped(str(path))


def _take(ready: Any, thread: threading.Thread, wait: waiting.Wait) -> Any:
    """What the thread has ready: a batch or None; raises its error."""
    while True:
        try:
            found = ready.get(timeout=waiting.LOOK_SECONDS)
            break
        except queue.Empty:
            if not thread.is_alive():
                raise RuntimeError("The thread that reads images ahead has gone.") from None
            wait.on()
    if isinstance(found, BaseException):
        raise found
    return found
