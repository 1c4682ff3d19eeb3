"""Looking at all files of a dataset before anything is trained on them: every bad one is found at once, by name.

`headers` reads the head of each image, and each map of classes as a whole, since a wrong class shows in no head; `full`
decodes all. What was found good is remembered by name, size and time of change.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from mal.data.decode import jpeg_sides, read_head, whole_map
from mal.data.ffcv.worker_pool import spread
from mal.data.image_set import Files, MapFiles

LEVELS = ("full", "headers", "none")
HEAD = 4096  # bytes that tell what most images are
FEW = 512  # files that are looked at without starting processes
LISTED = 1000  # bad files that an error lists


@dataclass
class Checked:
    """What looking at the files of a split found.

    bad: what is wrong with which file, by index; heads: uint64 (N,), a hash of each file's size and first bytes, 0 of
    those not looked at; turned: how many images have another EXIF orientation than their maps.
    """

    bad: dict[int, str]
    heads: np.ndarray
    turned: int = 0


def check_files(
    split: Files, chosen: np.ndarray, level: str, workers: int, said: Callable[[int], None] = lambda done: None
) -> Checked:
    """Look at the files of a split at `chosen`, int64 (n,). level: full or headers; said: told how many are done.

    Raises OSError where the storage fails.
    """
    look = _Look(split, level, chosen)
    if len(chosen) <= FEW:
        bad = {at: wrong for at in range(len(chosen)) if (wrong := look.one(at)) is not None}
        closed = [look.close()]
    else:
        bad, closed = spread(look, len(chosen), workers, said)
    found = {int(chosen[at]): wrong for at, wrong in bad.items()}
    if isinstance(split.labels, MapFiles):
        found |= _renumbered(split.labels, {k: v for palettes, _ in closed for k, v in palettes.items()})
    return Checked(found, look.heads, sum(turned for _, turned in closed))


def refuse_bad(name: str, bad: list[str], way_out: str) -> None:
    """Refuse a dataset with bad files, with a ValueError that lists them."""
    more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    listed = "".join(f"\n  {wrong}" for wrong in bad[:LISTED])
    raise ValueError(f"{name}: {len(bad)} files cannot be used:{listed}{more}\n{way_out}")


class _Look:
    """The work of a process that looks at files."""

    def __init__(self, split: Files, level: str, chosen: np.ndarray) -> None:
        self.split, self.full, self.chosen = split, level == "full", chosen
        shared = mmap.mmap(-1, max(8, 8 * len(split)))  # written by the workers, read by the parent
        self.heads = np.frombuffer(shared, np.uint64)[: len(split)]
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
            self.heads[index] = int.from_bytes(digest.digest(), "little")
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
        classes = maps.store.decoded(index, lambda content: whole_map(content, maps.reading), drawn)
        if (mask.width, mask.height) != (image.width, image.height):
            turned = " They are transposed." if (mask.height, mask.width) == (image.width, image.height) else ""
            hint = " Does dataset.exif=ignore fit?" if image.orientation >= 5 and self.split.exif else ""
            raise ValueError(
                f"{maps.store.path(index)} has {mask.width} x {mask.height} pixels, its image "
                f"{self.split.store.path(index)} {image.width} x {image.height}.{turned}{hint}"
            )
        if mask.palette is not None:
            _check_grey_palette(maps, index, mask.palette)
            self.palettes.setdefault(mask.palette, index)
        maps.check_classes(index, classes)
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
        moved = [(at, grey[0]) for at, grey in enumerate(colours) if grey[0] != at and grey[0] < maps.classes]
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


def keys_of(split: Files, level: str) -> np.ndarray:
    """What each file is remembered by, uint64 (N,): its name, size and time of change, and those of its map."""
    stores = [split.store, *([split.labels.store] if isinstance(split.labels, MapFiles) else [])]
    columns = [column for store in stores for column in (store.names, store.sizes, _times(store))]
    how = f"{level} {split.reading} {os.fspath(split.store.root)}".encode()
    return np.fromiter(
        (
            int.from_bytes(blake2b(b"\0".join(map(bytes, map(_raw, row))) + how, digest_size=8).digest(), "little")
            for row in zip(*columns, strict=True)
        ),
        np.uint64,
        len(split),
    )


def _times(store: Any) -> np.ndarray:
    return np.zeros(len(store), np.int64) if store.times is None else store.times


def _raw(value: Any) -> bytes:
    return value if isinstance(value, bytes) else int(value).to_bytes(8, "little", signed=True)
