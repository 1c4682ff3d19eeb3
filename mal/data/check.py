"""Looking at all files of a dataset before anything is trained on them: every bad one is found at once, by name.

`headers` reads the head of each image, and each map of classes as a whole, since a wrong class shows in no head; `full`
decodes all. What was found good is remembered by name, size and time of change.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from mal.data.cache import keep, recall, recall_any
from mal.data.decode import jpeg_sides, read_head, whole_map
from mal.data.ffcv.worker_pool import WorkersDied, spread
from mal.data.image_set import Files, MapFiles, Store

HEAD = 4096  # bytes that tell what most images are
FEW = 512  # files that are looked at without starting processes
MANY = 50_000
PARTLY = "some files were bad"
Report = Callable[[int], None]


@dataclass
class Checked:
    """What looking at the files of a split found.

    bad: what is wrong with which file, by index; heads: uint64 (N,), a hash of each file's size and first bytes;
    present: of each map which classes are in it, as bits, uint8 (N, 32), (0, 32) without maps; turned: how many images
    have another EXIF orientation than their maps.
    """

    bad: dict[int, str]
    heads: np.ndarray
    present: np.ndarray
    turned: int = 0


def check_remembered(
    split: Files, name: str, level: str, data: Path, said: Report, remember: bool = True
) -> Checked | None:
    """Look at those files of a split that were not found good before; not at MANY where it may not be remembered.

    name: what it is remembered by in the folder of datasets; level: headers or full; said: told how many are done.
    """
    state = _state_of(split)
    for kind in dict.fromkeys(("full", level)):
        if (known := recall(data, f"{name}-{kind}", state)) is not None:
            return Checked({}, known["heads"], known["present"], int(known["turned"]))
    before = recall_any(data, f"{name}-{level}")
    if not remember and before is None and len(split) > MANY:
        return None
    keys, heads, chosen = _keys_of(split), np.zeros(len(split), np.uint64), np.arange(len(split))
    if before is not None and len(before["keys"]) and not isinstance(split.labels, MapFiles):  # palettes are compared
        order = np.argsort(before["keys"])
        at = np.minimum(np.searchsorted(before["keys"], keys, sorter=order), len(order) - 1)
        same = before["keys"][order[at]] == keys
        heads[same], chosen = before["heads"][order[at[same]]], np.flatnonzero(~same)
    if not remember and len(chosen) > MANY:
        return None
    checked = check_files(split, chosen, level, said)
    checked.heads |= heads
    if remember:
        good = np.setdiff1d(np.arange(len(split)), list(checked.bad)) if checked.bad else np.arange(len(split))
        arrays = {"keys": keys[good], "heads": checked.heads[good], "present": checked.present}
        keep(data, f"{name}-{level}", PARTLY if checked.bad else state, arrays | {"turned": np.array(checked.turned)})
    return checked


def check_files(split: Files, chosen: np.ndarray, level: str, said: Report = lambda done: None) -> Checked:
    """Look at the files of a split at `chosen`, int64 (n,). Raises OSError where the storage fails."""
    look = _Look(split, level, chosen)
    if len(chosen) <= FEW:
        wrong = {at: what for at in range(len(chosen)) if (what := look.one(at)) is not None}
        closed = [look.close()]
    else:
        try:
            wrong, closed = spread(look, len(chosen), len(os.sched_getaffinity(0)), said)
        except WorkersDied as error:
            raise ValueError(
                f"{split.store.root} could not be looked at: {error} (check=none does not look)."
            ) from None
    bad = {int(chosen[at]): what for at, what in wrong.items()}
    if isinstance(split.labels, MapFiles):
        bad |= _renumbered(split.labels, {k: v for palettes, _ in closed for k, v in palettes.items()})
    look.heads[list(bad)] = 0
    return Checked(bad, look.heads, look.present, sum(turned for _, turned in closed))


class _Look:
    """The work of a process that looks at files; what it finds goes into memory that is shared with the parent."""

    def __init__(self, split: Files, level: str, chosen: np.ndarray) -> None:
        self.split, self.full, self.chosen = split, level == "full", chosen
        self.heads = np.frombuffer(mmap.mmap(-1, 8 * max(1, len(split))), np.uint64)[: len(split)]
        maps = len(split) if isinstance(split.labels, MapFiles) else 0
        self.present = np.frombuffer(mmap.mmap(-1, 32 * max(1, maps)), np.uint8)[: 32 * maps].reshape(maps, 32)
        self.palettes: dict[bytes, int] = {}
        self.turned = 0

    def open(self) -> None:
        """See `Work`."""

    def one(self, at: int) -> str | None:
        """See `Work`."""
        index = int(self.chosen[at])
        store = self.split.store
        try:
            head = store.content(index, HEAD)
            digest = blake2b(head, digest_size=8, salt=int(store.sizes[index]).to_bytes(8, "little"))
            self.heads[index] = int.from_bytes(digest.digest(), "little") or 1
            if isinstance(self.split.labels, MapFiles):
                self._pair(index, self.split.labels)
            elif self.full:
                self.split.read(index)
            else:
                self._head(index, head)
        except ValueError as error:
            return str(error)
        return None

    def close(self) -> Any:
        """See `Work`."""
        return self.palettes, self.turned

    def _head(self, index: int, head: bytes) -> None:
        sides = jpeg_sides(head)
        if sides is None or sides[0] * sides[1] > self.split.max_pixels:
            self.split.store.decoded(index, lambda content: read_head(content, self.split.reading))

    def _pair(self, index: int, maps: MapFiles) -> None:
        """An image and its map: of the same shape, the map of classes alone."""
        image = self.split.store.decoded(index, lambda content: read_head(content, self.split.reading))
        if self.full:
            self.split.read(index)
        drawn = maps.store.content(index)
        mask = maps.store.decoded(index, lambda content: read_head(content, maps.reading, is_map=True), drawn)
        if (mask.width, mask.height) != (image.width, image.height):
            turned = " They are transposed." if (mask.height, mask.width) == (image.width, image.height) else ""
            hint = " Does dataset.exif=ignore fit?" if image.orientation >= 5 and self.split.exif else ""
            raise ValueError(
                f"{maps.store.path(index)} has {mask.width} x {mask.height} pixels, its image "
                f"{self.split.store.path(index)} {image.width} x {image.height}.{turned}{hint}"
            )
        classes = maps.store.decoded(index, lambda content: whole_map(content, maps.reading), drawn)
        if mask.palette is not None:
            _check_grey_palette(maps, index, mask.palette)
            self.palettes.setdefault(mask.palette, index)
        maps.check_classes(index, classes)
        self.present[index] = np.packbits(np.bincount(classes.ravel(), minlength=256) > 0)
        self.turned += self.split.exif and image.orientation != mask.orientation


def _entries(palette: bytes) -> list[tuple[int, ...]]:
    """The colours of a palette, without what fills it up to 256."""
    colours = [tuple(palette[at : at + 3]) for at in range(0, len(palette) - 2, 3)]
    while len(colours) > 1 and colours[-1] == colours[-2]:
        colours.pop()
    return colours


def _check_grey_palette(maps: MapFiles, index: int, palette: bytes) -> None:
    """Refuse a palette of greys that are classes other than their places: the map was renumbered when it was saved."""
    colours = _entries(palette)
    if all(len(set(colour)) == 1 for colour in colours):
        moved = [(at, grey[0]) for at, grey in enumerate(colours) if grey[0] != at and 0 < grey[0] < maps.classes]
        if moved:
            raise ValueError(
                f"{maps.store.path(index)} has a palette that gives value {moved[0][0]} the grey {moved[0][1]}: were "
                "its classes renumbered when it was saved? Save it as grey values."
            )


def _renumbered(maps: MapFiles, palettes: dict[bytes, int]) -> dict[int, str]:
    """Maps whose palettes give a value another colour than the first map's: they mean different classes by it."""
    wrong: dict[int, str] = {}
    first: dict[int, tuple[tuple[int, ...], int]] = {}
    for palette, index in sorted(palettes.items(), key=lambda item: item[1]):
        for value, colour in enumerate(_entries(palette)):
            known, where = first.setdefault(value, (colour, index))
            if known != colour:
                wrong[index] = (
                    f"{maps.store.path(index)} has the colour {colour} for value {value}, {maps.store.path(where)} has "
                    f"{known}: their classes were renumbered when they were saved. Save them as grey values."
                )
                break
    return wrong


def _columns(split: Files) -> list[np.ndarray]:
    stores = [split.store, *([split.labels.store] if isinstance(split.labels, MapFiles) else [])]
    return [column for store in stores for column in (store.names, store.sizes, _times(store))]


def _how(split: Files) -> bytes:
    classes = split.labels.classes if isinstance(split.labels, MapFiles) else 0
    return f"{split.reading} {classes} {split.store.root}".encode(errors="surrogateescape")


def _times(store: Store) -> np.ndarray:
    return np.zeros(len(store), np.int64) if store.times is None else store.times


def _state_of(split: Files) -> str:
    """What all files together are remembered by."""
    digest = hashlib.sha256(_how(split))
    for column in _columns(split):
        digest.update(str(column.dtype).encode())
        digest.update(np.ascontiguousarray(column).view(np.uint8).data)
    return digest.hexdigest()


def _keys_of(split: Files) -> np.ndarray:
    """What each file is remembered by, uint64 (N,): its name, size and time of change."""
    how = _how(split)
    rows = zip(*(column.tolist() for column in _columns(split)), strict=True)
    keys = (blake2b(repr(row).encode() + how, digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(keys), np.uint64)
