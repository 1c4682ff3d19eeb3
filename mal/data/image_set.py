"""Training and test sets: arrays in memory, image files decoded one by one, or a copy prepared for FFCV."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = 255  # the class of pixels that no loss and no metric counts
BLOCK = 512  # images decoded between two notes


@dataclass(frozen=True)
class Arrays:
    """images: uint8 (N, C, H, W); labels: int64 (N,), or uint8 maps (N, H, W) with IGNORED pixels."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        assert self.images.dtype == np.uint8

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.images.shape[1:]

    def read(self, index: int) -> np.ndarray:
        """One image, uint8 (C, H, W)."""
        return self.images[index]

    def identity(self) -> tuple[np.ndarray, ...]:
        """What the split is recognised by: every pixel and every label."""
        return self.images, self.labels


@dataclass(frozen=True)
class Store:
    """Files below a folder, or members of an uncompressed tar archive, by number.

    root: the folder or the archive; names: bytes (N,), paths below the root; sizes: int64 (N,), bytes; offsets: int64
    (N,), where a member's data begin in the archive, None for a folder. Names are kept as one array: a million of them
    are then shared with worker processes instead of copied.
    """

    root: Path
    names: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray | None = None

    @classmethod
    def of(cls, root: Path, sizes: dict[str, int], offsets: Iterable[int] | None = None) -> Store:
        """From sizes by name, in the order given."""
        names = np.array([os.fsencode(name) for name in sizes], dtype=np.bytes_)
        at = None if offsets is None else np.fromiter(offsets, np.int64, len(names))
        return cls(root, names, np.fromiter(sizes.values(), np.int64, len(names)), at)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path below the root."""
        return os.fsdecode(bytes(self.names[index]))

    def path(self, index: int) -> str:
        """Where the file is, for messages: its path, or the archive's and its place in there."""
        return f"{self.root}{'/' if self.offsets is None else ': '}{self.name(index)}"

    def content(self, index: int) -> bytes:
        """The bytes of one file; OSError where they cannot be had."""
        if self.offsets is None:
            return (self.root / self.name(index)).read_bytes()
        return os.pread(_descriptor(self.root), int(self.sizes[index]), int(self.offsets[index]))

    def subset(self, kept: np.ndarray) -> Store:
        """The files at `kept`, int64 positions."""
        offsets = None if self.offsets is None else self.offsets[kept]
        return Store(self.root, self.names[kept], self.sizes[kept], offsets)


@dataclass(frozen=True)
class MapFiles:
    """Label maps as image files: uint8 (H, W), values below `classes` or IGNORED; decoded when they are asked for."""

    store: Store
    size: int
    classes: int

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The maps at `indices` int64 (n,): uint8 (n, H, W)."""
        maps = np.empty((len(indices), self.size, self.size), dtype=np.uint8)
        for row, index in enumerate(indices):
            maps[row] = self.read(int(index))
        return maps

    def read(self, index: int) -> np.ndarray:
        """One map, resized by nearest neighbour (Section 4.1); ValueError naming its file."""
        found = _decode(self.store, index, self.size, "map")
        if wrong := sorted(set(np.unique(found).tolist()) - {*range(self.classes), IGNORED}):
            raise ValueError(f"{self.store.path(index)} has the classes {wrong}, not 0 to {self.classes - 1} or 255.")
        return found

    def subset(self, kept: np.ndarray) -> MapFiles:
        """The maps at `kept`, int64 positions."""
        return MapFiles(self.store.subset(kept), self.size, self.classes)


Labels = np.ndarray | MapFiles


@dataclass(frozen=True)
class Files:
    """Image files, decoded to RGB and resized one by one.

    labels: int64 (N,), or maps of the same names; size: side in pixels; resize: `square` (the shorter side to `size`,
    then the square at the centre) or `stretch` (both sides to `size`). The absolute index of an image is its position.
    """

    store: Store
    labels: Labels
    size: int
    resize: str
    left_out: tuple[str, ...] = ()  # corrupt files that a user chose to do without

    def __len__(self) -> int:
        return len(self.store)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return 3, self.size, self.size

    def read(self, index: int) -> np.ndarray:
        """One image, uint8 (3, H, W); ValueError naming its file where it is missing or cannot be decoded."""
        return _decode(self.store, index, self.size, self.resize).transpose(2, 0, 1)

    def without(self, indices: np.ndarray) -> Files:
        """The same files but those at `indices`: the others move up."""
        kept = np.setdiff1d(np.arange(len(self)), indices)
        labels = self.labels
        fewer = (
            MapFiles(labels.store.subset(kept), labels.size, labels.classes) if isinstance(labels, MapFiles) else None
        )
        left_out = (*self.left_out, *(self.store.name(int(i)) for i in indices))
        return Files(
            self.store.subset(kept), labels[kept] if fewer is None else fewer, self.size, self.resize, left_out
        )

    def identity(self) -> tuple[np.ndarray, ...]:
        """What the split is recognised by: names, sizes in bytes, labels, and how images are resized."""
        how = np.frombuffer(f"{self.resize} {self.size}".encode(), np.uint8)
        if isinstance(self.labels, MapFiles):
            return self.store.names, self.store.sizes, self.labels.store.names, self.labels.store.sizes, how
        return self.store.names, self.store.sizes, self.labels, how


Readable = Arrays | Files


Note = Callable[[int, int], None]
"""Told now and then how much of a long pass is done, (done, total): beats a heart, says it, or raises to stop."""


def no_note(done: int, total: int) -> None:
    """Tells nobody."""


def in_memory(split: Readable, note: Note = no_note) -> Arrays:
    """The whole split decoded."""
    if isinstance(split, Arrays):
        return split
    images = np.empty((len(split), *split.shape), dtype=np.uint8)
    for index, image in enumerate(decoded(split, np.arange(len(split)), note)):
        images[index] = image
    return Arrays(images, split.labels[np.arange(len(split))])


def decoded(split: Readable, indices: np.ndarray, note: Note = no_note) -> Iterator[np.ndarray]:
    """The images at `indices`, uint8 (C, H, W) each, in their order, by as many threads as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # Pillow decodes without Python's lock
        for first in range(0, len(indices), BLOCK):
            yield from threads.map(split.read, indices[first : first + BLOCK].tolist())
            note(min(first + BLOCK, len(indices)), len(indices))


def check_size(count: int, shape: tuple[int, ...], limit: float, where: str) -> None:
    """Refuse loader=memory for `count` images of `shape` (C, H, W) where they take more than `limit` bytes; ValueError.

    where: what those bytes are, e.g. "free on the GPU".
    """
    needed = count * int(np.prod(shape))
    if needed > limit:
        raise ValueError(
            f"loader=memory: {count} images of {shape} take {needed / 2**30:.1f} GiB, and {limit / 2**30:.1f} GiB are "
            f"{where}. Use loader=torch, or python -m mal.data.prepare and loader=ffcv."
        )


def hash_arrays(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over arrays: types, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _decode(store: Store, index: int, size: int, resize: str) -> np.ndarray:
    """An image file resized: uint8 (H, W, 3), or (H, W) for a map."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(store.content(index))) as image:
            if resize == "map":
                return np.asarray(_grey(image).resize((size, size), Image.Resampling.NEAREST))
            colour = image.convert("RGB")
            return np.asarray(_square(colour, size) if resize == "square" else _stretch(colour, size))
    except FileNotFoundError:
        raise ValueError(f"{store.path(index)} is missing.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # What Pillow raises for a file that is no image, cut, or absurdly large.
        raise ValueError(f"{store.path(index)} cannot be read as an image ({error}).") from None


def _grey(image: Any) -> Any:
    if image.mode not in ("L", "P"):
        raise ValueError(f"its mode is {image.mode}, not 8-bit classes")
    return image


def _stretch(image: Any, size: int) -> Any:
    return image.resize((size, size), _bilinear())


def _square(image: Any, size: int) -> Any:
    """As torchvision's Resize(size), CenterCrop(size): the same pixels."""
    short, long = sorted(image.size)
    longer = int(size * long / short)
    width, height = (longer, size) if image.width > image.height else (size, longer)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), _bilinear()).crop((left, top, left + size, top + size))


def _bilinear() -> Any:
    from PIL import Image

    return Image.Resampling.BILINEAR  # Pillow's takes the mean of the pixels where it shrinks


@cache
def _descriptor(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


@dataclass(frozen=True)
class Prepared:
    """The training or the test set of a prepared copy; `entry` is its part of the manifest."""

    folder: Path
    part: str
    shape: tuple[int, ...]
    mode: str
    how: str
    entry: dict[str, Any]

    def __len__(self) -> int:
        return int(self.entry["count"])

    @property
    def beton(self) -> Path:
        """The file that FFCV reads."""
        return self.folder / f"{self.part}.beton"

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,), or maps uint8 (N, H, W); mapped into memory."""
        return np.load(self.folder / f"{self.part}_labels.npy", mmap_mode="r")

    @cached_property
    def moments(self) -> np.ndarray:
        """Sum and sum of squares of each channel of each image, before any compression: int64 (N, C, 2)."""
        return np.load(self.folder / f"{self.part}_moments.npy", mmap_mode="r")

    def identity(self) -> tuple[np.ndarray, ...]:
        """What the split is recognised by: the hash of all pixels and labels, and how they were stored."""
        return (np.frombuffer(f"{self.entry['content']} {self.how}".encode(), np.uint8),)


Split = Readable | Prepared
