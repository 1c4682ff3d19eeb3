"""Training and test sets: arrays in memory, image files decoded one by one, or a copy prepared for FFCV."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mal.data.decode import MAX_PIXELS, Reading, decode_image, decode_map
from mal.listing import OF_THE_FILES, Images, shown

Decoded = TypeVar("Decoded")
UNKNOWN = -1  # the class of an image that nobody has labelled
IGNORED = 255  # the class of pixels that no loss and no metric counts
BLOCK = 512  # images decoded between two notes


@dataclass(frozen=True)
class Arrays:
    """images: uint8 (N, C, H, W); labels: int64 (N,), or uint8 maps (N, H, W) with IGNORED pixels.

    Or features of a frozen encoder in the images' place: float16 or float32 (N, d, 1, 1), mapped into memory.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        assert self.images.dtype in (np.uint8, np.float16, np.float32)

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
    """Files below a folder, or members of one uncompressed tar archive or of several in a folder, by number.

    root: the folder or the archive; names: bytes (N,), paths below the root, or ARCHIVE/MEMBER; sizes: int64 (N,),
    bytes; offsets: int64 (N,), where a member's data begin in its archive, None for a folder; times: int64 (N,), of
    change in ns, None in one archive. Names are kept as one array: a million of them are then shared with worker
    processes instead of copied.
    """

    root: Path
    names: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray | None = None
    times: np.ndarray | None = None

    @classmethod
    def of(cls, root: Path, images: Images) -> Store:
        """Of images below a folder, in the order given."""
        encoded = os.fsencode("\0".join(images.names)).split(b"\0") if len(images) else []
        sizes, times = (np.array(column, np.int64) for column in (images.sizes, images.times))
        return cls(root, np.array(encoded, np.bytes_), sizes, None, times)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def in_shards(self) -> bool:
        """Whether the files are members of several archives in a folder."""
        return self.offsets is not None and self.root.suffix != ".tar"

    def name(self, index: int) -> str:
        """The path below the root."""
        return os.fsdecode(bytes(self.names[index]))

    def path(self, index: int) -> str:
        """Where the file is, for messages: its path, or the archive's and its place in there."""
        return f"{self.root}{'/' if self.offsets is None else ': '}{shown(self.name(index))}"

    def content(self, index: int, most: int | None = None) -> bytes:
        """The bytes of one file, at most the first `most`.

        Raises ValueError naming the file where it is missing or may not be read, OSError where the storage fails.
        """
        size = int(self.sizes[index]) if most is None else min(most, int(self.sizes[index]))
        try:
            if self.offsets is not None and not self.in_shards:
                return os.pread(_descriptor(self.root), size, int(self.offsets[index]))
            if self.offsets is not None:  # too many archives to keep open
                with (self.root / self.name(index).partition("/")[0]).open("rb", buffering=0) as file:
                    return os.pread(file.fileno(), size, int(self.offsets[index]))
            with (self.root / self.name(index)).open("rb", buffering=0) as file:
                return file.readall() if most is None else file.read(most)
        except FileNotFoundError:
            raise ValueError(f"{self.path(index)} is missing.") from None
        except OSError as error:
            if error.errno not in OF_THE_FILES:
                raise
            raise ValueError(f"{self.path(index)} cannot be read ({error.strerror}).") from None

    def decoded(self, index: int, decode: Callable[[bytes], Decoded], content: bytes | None = None) -> Decoded:
        """What `decode` makes of one file, whose content may be at hand; its ValueError with the file's name."""
        content = self.content(index) if content is None else content
        try:
            return decode(content)
        except ValueError as error:
            raise ValueError(f"{self.path(index)} cannot be read as an image ({error}).") from None

    def subset(self, kept: np.ndarray) -> Store:
        """The files at `kept`, int64 positions."""
        offsets, times = (None if of is None else of[kept] for of in (self.offsets, self.times))
        return Store(self.root, self.names[kept], self.sizes[kept], offsets, times)


@dataclass(frozen=True)
class MapFiles:
    """Label maps as image files: uint8 (H, W), values below `classes` or IGNORED; decoded when they are asked for."""

    store: Store
    size: int
    classes: int
    exif: bool = False
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The maps at `indices` int64 (n,): uint8 (n, H, W)."""
        maps = np.empty((len(indices), self.size, self.size), dtype=np.uint8)
        for row, index in enumerate(indices):
            maps[row] = self.read(int(index))
        return maps

    @property
    def reading(self) -> Reading:
        """How a file becomes a map."""
        return Reading(self.size, "stretch", self.exif, self.max_pixels)

    def read(self, index: int) -> np.ndarray:
        """One map, resized by nearest neighbour (Section 4.1); ValueError naming its file."""
        found = self.store.decoded(index, lambda content: decode_map(content, self.reading))
        self.check_classes(index, found)
        return found

    def check_classes(self, index: int, found: np.ndarray) -> None:
        """Refuse other values than classes, with a ValueError naming the file."""
        if wrong := sorted(set(np.unique(found).tolist()) - {*range(self.classes), IGNORED}):
            raise ValueError(
                f"{self.store.path(index)} has the classes {wrong}, not 0 to {self.classes - 1} or {IGNORED}."
            )

    def subset(self, kept: np.ndarray) -> MapFiles:
        """The maps at `kept`, int64 positions."""
        return replace(self, store=self.store.subset(kept))


Labels = np.ndarray | MapFiles


@dataclass(frozen=True)
class Files:
    """Image files, decoded to RGB and resized one by one.

    labels: int64 (N,), or maps of the same names; size: side in pixels; resize: `square` (the shorter side to `size`,
    then the square at the centre) or `stretch` (both sides to `size`); exif: whether images are turned by their EXIF
    orientation; max_pixels: of one file. The absolute index of an image is its position.
    """

    store: Store
    labels: Labels
    size: int
    resize: str
    left_out: tuple[str, ...] = ()  # corrupt files that a user chose to do without
    exif: bool = False
    max_pixels: int = MAX_PIXELS
    not_images: str = ""  # what lies among the images and is none, in words

    def __len__(self) -> int:
        return len(self.store)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return 3, self.size, self.size

    @property
    def reading(self) -> Reading:
        """How a file becomes an image."""
        return Reading(self.size, self.resize, self.exif, self.max_pixels)

    def read(self, index: int) -> np.ndarray:
        """One image, uint8 (3, H, W); ValueError naming its file where it is missing or cannot be decoded."""
        return self.store.decoded(index, lambda content: decode_image(content, self.reading))

    def without(self, indices: np.ndarray) -> Files:
        """The same files but those at `indices`: the others move up."""
        kept = np.setdiff1d(np.arange(len(self)), indices)
        labels = self.labels.subset(kept) if isinstance(self.labels, MapFiles) else self.labels[kept]
        left_out = (*self.left_out, *(self.store.name(int(i)) for i in indices))
        return replace(self, store=self.store.subset(kept), labels=labels, left_out=left_out)

    def identity(self) -> tuple[np.ndarray, ...]:
        """What the split is recognised by: names, sizes in bytes, labels, and how images are resized."""
        how = np.frombuffer(self.reading.identity().encode(), np.uint8)
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
        return np.load(self.moments_file, mmap_mode="r")

    @property
    def moments_file(self) -> Path:
        """Where the sums of pixels are."""
        return self.folder / f"{self.part}_moments.npy"

    def identity(self) -> tuple[np.ndarray, ...]:
        """What the split is recognised by: the hash of all pixels and labels, and how they were stored."""
        return (np.frombuffer(f"{self.entry['content']} {self.how}".encode(), np.uint8),)


Split = Readable | Prepared
