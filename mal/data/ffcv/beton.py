"""FFCV's .beton files: written by its writer's parts in processes of our own, and read back sample by sample.

FFCV's own driver of the writer waits for ever for a worker that died (a full disk, a file that is not an image).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mal.data.ffcv.prepared import PARTS, sample_hash
from mal.data.ffcv.unfinished import State, Stopped, Unfinished
from mal.data.ffcv.worker_pool import spread
from mal.data.image_set import Files, MapFiles, Readable
from mal.data.pixel_statistics import image_moments
from mal.rng import generator

JPEG = b"\xff\xd8"  # its first bytes
MIN_PAGE, MAX_PAGE = 2**21, 2**31  # FFCV's limits
SAVE_SECONDS = 30.0  # between two moments that a killed writer can go on from


@dataclass(frozen=True)
class Compression:
    """How images are stored: raw, jpg, or mixed (a share of them as JPEG, drawn once for all); quality of the JPEGs."""

    mode: str
    quality: int
    share: float

    def chosen(self, part: str, count: int) -> np.ndarray:
        """Which images are compressed, bool (count,)."""
        if self.mode == "mixed":
            return generator("prepare", part, count).random(count) < self.share
        return np.full(count, self.mode == "jpg")


def stored(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) as the file holds it: (H, W, 3) for colour, as it is for grey."""
    return np.ascontiguousarray(image.transpose(1, 2, 0)) if len(image) == 3 else image


def encode_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The JPEG that FFCV stores for (H, W, 3): uint8 (bytes,)."""
    from ffcv.fields.rgb_image import encode_jpeg as encode

    return encode(image, quality)


def page_size(largest: int) -> int:
    """The smallest power of two that holds 32 samples of `largest` bytes: FFCV wastes up to one of them a page."""
    size = MIN_PAGE
    while size < 32 * largest and size < MAX_PAGE:
        size *= 2
    return size


def write_beton(
    folder: Path,
    part: str,
    split: Readable,
    compression: Compression,
    workers: int,
    said: Callable[[int], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, str]:
    """Write FOLDER/PART.beton with its labels, moments and pixel hashes; what is wrong with which image, by index.

    It goes on where a writer of the same images was stopped or killed; stop: whether this one is to leave. Where
    anything is wrong, what was written is not to be used. Raises `Stopped`, OSError (a full disk) and `WorkersDied`.
    """
    from ffcv.writer import DatasetWriter

    assert part in PARTS
    fields = _fields(split, compression)
    page = page_size(int(np.prod(split.shape)) + int(np.prod(map_shape(split) or 0)))
    unfinished = Unfinished(folder, part, [compression, page, *split.identity()])
    writer = DatasetWriter(str(folder / f".{part}.head"), fields, page_size=page, num_workers=workers)
    writer.num_samples = len(split)
    writer.prepare()
    try:
        state = unfinished.read(_aligned(writer.data_region_start, page), page)
        if state.done == len(split) and state.wrong:
            return state.wrong
        work = _Writing(folder, part, split, compression, fields, writer, fresh=state.done == 0)
        work.go_on(Path(writer.fname), state, page)
        writer.fname = str(unfinished.file)
        while state.done < len(split):
            _write_on(work, state, workers, said, stop)
            unfinished.save(state)
            if stop() and state.done < len(split):
                raise Stopped(f"stopped at {state.done:,} of {len(split):,} images of {part}")
        if not state.wrong:
            writer.finalize(np.concatenate(state.allocations))
    finally:
        Path(folder / f".{part}.head").unlink(missing_ok=True)
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()
    return state.wrong


def _aligned(start: int, page: int) -> int:
    from ffcv.utils import align_to_page

    return int(align_to_page(start, page))


def _write_on(
    work: _Writing, state: State, workers: int, said: Callable[[int], None], stop: Callable[[], bool]
) -> None:
    """Write for SAVE_SECONDS, or until the end or a stop; `state` is then what was reached."""
    reached = [state.done]
    deadline = time.monotonic() + SAVE_SECONDS

    def note(done: int) -> None:
        reached[0] = done
        said(done)

    work.allocate(state.pages)
    wrong, allocations = spread(
        work, len(work.split), workers, note, state.done, lambda: stop() or time.monotonic() > deadline
    )
    work.flush()
    state.done, state.pages = reached[0], work.pages
    state.wrong |= wrong
    state.allocations += allocations
    state.metadata = work.rows(state.done)


def check_beton(
    folder: Path,
    part: str,
    split: Readable,
    compression: Compression,
    workers: int,
    said: Callable[[int], None] = lambda done: None,
) -> dict[int, str]:
    """Read FOLDER/PART.beton back and compare every image, label and index with the source; what is wrong, by index."""
    return spread(_Checking(folder, part, split, compression), len(split), workers, said)[0]


def _fields(split: Readable, compression: Compression) -> dict[str, Any]:
    from ffcv.fields import IntField, NDArrayField, RGBImageField

    colour = split.shape[0] == 3
    image = RGBImageField(jpeg_quality=compression.quality) if colour else NDArrayField(np.dtype("uint8"), split.shape)
    sides = map_shape(split)
    label = IntField() if sides is None else NDArrayField(np.dtype("uint8"), sides)
    return {"image": image, "label": label, "index": IntField()}


def map_shape(split: Readable) -> tuple[int, ...] | None:
    """(H, W) of the label maps; None where labels are single numbers."""
    if isinstance(split.labels, MapFiles):
        return split.labels.size, split.labels.size
    return split.labels.shape[1:] or None


def _label(split: Readable, index: int) -> Any:
    return split.labels.read(index) if isinstance(split.labels, MapFiles) else split.labels[index]


class _Writing:
    """The work of a writing process; the arrays beside the file are shared with the parent through their files."""

    def __init__(
        self,
        folder: Path,
        part: str,
        split: Readable,
        compression: Compression,
        fields: dict[str, Any],
        writer: Any,
        fresh: bool,
    ) -> None:
        self.path, self.split, self.fields, self.writer = folder / f"{part}.beton", split, fields, writer
        self.compressed = compression.chosen(part, len(split))
        sides = map_shape(split)
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "labels": ("<i8", (len(split),)) if sides is None else ("|u1", (len(split), *sides)),
            "moments": ("<i8", (len(split), split.shape[0], 2)),
            "pixels": ("<u8", (len(split),)),
        }
        mode: Any = "w+" if fresh else "r+"
        self.arrays = {
            name: np.lib.format.open_memmap(folder / f"{part}_{name}.npy", mode, np.dtype(kind), shape)
            for name, (kind, shape) in arrays.items()
        }

    def go_on(self, head: Path, state: State, page: int) -> None:
        """Bring file and memory to a state; head: the beginning of the file."""
        self.page, self.start = page, self.writer.data_region_start
        if state.pages:
            os.truncate(self.path, _aligned(self.start, page) + state.pages * page)
        else:
            shutil.copyfile(head, self.path)
        np.frombuffer(self.writer.metadata_sm.buf, np.uint8)[: len(state.metadata)] = state.metadata

    def allocate(self, pages: int) -> None:
        """Write behind the first `pages` pages from now on."""
        from ffcv.memory_allocator import MemoryAllocator

        self.allocator = MemoryAllocator(str(self.path), self.start, self.page)
        self.allocator.next_page_allocated.value = self.allocator.next_page_written.value = pages

    @property
    def pages(self) -> int:
        """Written so far."""
        return int(self.allocator.next_page_written.value)

    def rows(self, count: int) -> np.ndarray:
        """FFCV's metadata of the first samples, uint8."""
        size = count * self.writer.metadata_type.itemsize
        return np.frombuffer(self.writer.metadata_sm.buf, np.uint8)[:size].copy()

    def open(self) -> None:
        self.metadata = np.frombuffer(self.writer.metadata_sm.buf, dtype=self.writer.metadata_type)
        self.allocator.__enter__()

    def one(self, index: int) -> str | None:
        from ffcv.writer import handle_sample

        try:
            image, label = self.split.read(index), _label(self.split, index)
        except ValueError as error:
            return str(error)
        pixels = stored(image)
        self.arrays["labels"][index] = label
        self.arrays["moments"][index] = image_moments(image)
        self.arrays["pixels"][index] = sample_hash(pixels, label)
        if len(image) == 3:
            self.fields["image"].write_mode = "jpg" if self.compressed[index] else "raw"
        sample = pixels, label, index
        handle_sample(sample, index, self.metadata.dtype.names, self.metadata, self.allocator, self.fields)
        return None

    def close(self) -> Any:
        from ffcv.types import ALLOC_TABLE_TYPE

        self.allocator.__exit__(None, None, None)
        return np.array(self.allocator.allocations, dtype=ALLOC_TABLE_TYPE)

    def flush(self) -> None:
        for array in self.arrays.values():
            array.flush()


def check_deep(
    folder: Path, part: str, split: Files, workers: int, said: Callable[[int], None] = lambda done: None
) -> dict[int, str]:
    """Which images of a copy have other pixels than its source, among those whose files may have more than 8 bits."""
    return spread(_Deep(folder, part, split), len(split), workers, said)[0]


class _Deep:
    """Compares the hash of what a copy holds with the source, but for JPEGs: these have 8 bits."""

    def __init__(self, folder: Path, part: str, split: Files) -> None:
        self.folder, self.part, self.split = folder, part, split

    def open(self) -> None:
        self.hashes = np.load(self.folder / f"{self.part}_pixels.npy", mmap_mode="r")

    def one(self, index: int) -> str | None:
        if self.split.store.content(index, len(JPEG)) == JPEG:
            return None
        try:
            found = sample_hash(stored(self.split.read(index)), _label(self.split, index))
        except ValueError as error:
            return str(error)
        return None if found == self.hashes[index] else self.split.store.path(index)

    def close(self) -> None:
        return None


class _Checking:
    """The work of a process that reads back."""

    def __init__(self, folder: Path, part: str, split: Readable, compression: Compression) -> None:
        from ffcv.reader import Reader

        self.folder, self.part, self.split, self.quality = folder, part, split, compression.quality
        self.compressed = compression.chosen(part, len(split))
        self.reader = Reader(str(folder / f"{part}.beton"))
        order = np.argsort(self.reader.alloc_table["ptr"])
        self.table = self.reader.alloc_table[order]
        assert len(self.reader.metadata) == len(split)

    def open(self) -> None:
        self.content = np.memmap(self.folder / f"{self.part}.beton", np.uint8, mode="r")
        self.arrays = {
            name: np.load(self.folder / f"{self.part}_{name}.npy", mmap_mode="r")
            for name in ("labels", "moments", "pixels")
        }

    def one(self, index: int) -> str | None:
        try:
            image, label = self.split.read(index), _label(self.split, index)
        except ValueError as error:
            return str(error)
        pixels = stored(image)
        beside = {"labels": label, "moments": image_moments(image), "pixels": sample_hash(pixels, label)}
        for name, value in beside.items():
            if not np.array_equal(self.arrays[name][index], value):
                return f"{self.part}_{name}.npy has something else at {index} than the source."
        image_at, label_at, index_at = self.reader.metadata[index].tolist()
        if index_at != index:
            return f"sample {index} has the index {index_at}."
        same = label_at == label if np.ndim(label) == 0 else np.array_equal(self._bytes(label_at), label.ravel())
        if not same:
            return f"sample {index} has another label than the source."
        return self._wrong_image(index, image_at, pixels)

    def _wrong_image(self, index: int, at: Any, pixels: np.ndarray) -> str | None:
        expected = pixels.reshape(-1)
        if isinstance(at, tuple):
            mode, width, height, at = at
            if (height, width) != pixels.shape[:2] or mode == self.compressed[index]:  # FFCV: 0 is JPEG, 1 is raw
                return f"sample {index} has another size or is stored otherwise than it should be."
            if self.compressed[index]:
                expected = encode_jpeg(pixels, self.quality)
                if not _decodes(self._bytes(at), pixels.shape):
                    return f"sample {index} cannot be decoded."
        if not np.array_equal(self._bytes(at), expected):
            return f"sample {index} has another image than the source."
        return None

    def _bytes(self, at: int) -> np.ndarray:
        entry = self.table[np.searchsorted(self.table["ptr"], at)]
        return self.content[at : at + int(entry["size"])]

    def close(self) -> None:
        return None


def _decodes(content: np.ndarray, shape: tuple[int, ...]) -> bool:
    import cv2

    image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    return image is not None and image.shape == shape


def sync(folder: Path) -> None:
    """Wait until all files of a folder have reached the disk."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
