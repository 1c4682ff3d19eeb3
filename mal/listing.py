"""Listing image files: trees with one folder a class, and the sizes of many files on shared storage.

Importing this module does not import torch: the command line counts a user's folders with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# What torchvision's ImageFolder takes for an image.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
THREADS = 16  # listing waits for the storage, not for the processor
NAMED = 10  # files that an error names, of however many


def list_classes(root: Path, key: str) -> dict[str, dict[str, int]]:
    """The images of a tree ROOT/CLASS/**/NAME: for each class, in sorted order, sizes in bytes by path below the class.

    key: what to set where the folder is wrong, for the message. Raises ValueError.
    """
    if not root.is_dir():
        raise ValueError(f"{key}: {root} is no folder.")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{key}: {root} has no folders in it, one for each class.")
    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(classes, pool.map(lambda name: _images(root / name), classes), strict=True))
    if empty := [name for name, images in found.items() if not images]:
        raise ValueError(f"{key}: no image ({' '.join(EXTENSIONS)}) in {some(str(root / name) for name in empty)}.")
    return found


def list_images(root: Path, key: str) -> dict[str, int]:
    """Sizes in bytes of the images in one folder, by name; ValueError where it is not there."""
    if not root.is_dir():
        raise ValueError(f"{key}: {root} is no folder.")
    return _images(root)


def file_sizes(root: Path, names: Iterable[str]) -> list[int]:
    """Sizes in bytes of files below `root`, -1 for those that are not there; each folder is listed once."""
    split = [name.rpartition("/")[::2] for name in names]
    folders = sorted({folder for folder, _ in split})
    with ThreadPoolExecutor(THREADS) as pool:
        listed = dict(zip(folders, pool.map(lambda folder: _sizes(root / folder), folders), strict=True))
    return [listed[folder].get(name, -1) for folder, name in split]


def in_order(names: Iterable[str]) -> list[str]:
    """Paths folder by folder, each sorted: the order of torchvision's ImageFolder, the same on every machine."""
    return sorted(names, key=lambda name: name.split("/"))


def some(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _images(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in os.scandir(folder):
        if entry.is_dir():
            found |= {f"{entry.name}/{name}": size for name, size in _images(Path(entry.path)).items()}
        elif entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
            found[entry.name] = entry.stat().st_size
    return found


def _sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
