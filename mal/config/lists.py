"""Text files beside images: lists of images with their classes, lists of classes.

Importing this module imports neither torch nor Pillow.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from mal.listing import in_order, some

SEPARATORS = (",", "\t", ";", " ")
MOST_CLASSES = 1_000_000


def read_lists(
    train: Path, test: Path, roots: tuple[Path, Path]
) -> tuple[tuple[dict[str, int], dict[str, int]], list[str]]:
    """Two lists of `path label` or `path,label`, one image a line: labels by path, sorted, and the classes' names.

    Labels are numbers from 0, or names, which are numbered in sorted order; roots: the folders that the paths are
    below. Raises ValueError naming file and line.
    """
    rows = [_read_list(path, root) for path, root in zip((train, test), roots, strict=True)]
    for path, found in zip((train, test), rows, strict=True):
        if not found:
            raise ValueError(f"{path} lists no image.")
    try:
        names = names_of(label for found in rows for label in found.values())
    except ValueError as error:
        raise ValueError(f"{train}: {error}") from None
    lists = [_numbered(path, found, names) for path, found in zip((train, test), rows, strict=True)]
    if absent := sorted(set(range(len(names))) - set(lists[0].values())):
        numbers = ": labels are to be numbers from 0 without a gap, or names" if names[0] == "0" else ""
        raise ValueError(f"{train} has no image of the classes {some(names[at] for at in absent)}{numbers}.")
    return (lists[0], lists[1]), names


def names_of(labels: Iterable[str]) -> list[str]:
    """The classes that labels are of: all numbers up to the largest, or the names in sorted order."""
    labels = set(labels)
    if not any(map(_is_number, labels)):
        return sorted(labels)
    if strange := sorted(label for label in labels if not label.isdecimal()):
        raise ValueError(f"labels are whole numbers from 0, or names, not both: {some(strange)}.")
    if (most := max(map(int, labels))) >= MOST_CLASSES:
        raise ValueError(f"{most} is no label: give numbers from 0 without a gap, or names.")
    return [str(number) for number in range(most + 1)]


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def read_list(path: Path, names: Sequence[str]) -> dict[str, int]:
    """One list as above by classes that are known: labels by path, sorted; ValueError where one is none of them."""
    return _numbered(path, _read_list(path), names)


def labels_in(path: Path) -> set[str]:
    """The labels that a list has, as they are written."""
    return set(_read_list(path).values())


def _numbered(path: Path, found: dict[str, str], names: Sequence[str]) -> dict[str, int]:
    numbers = {name: number for number, name in enumerate(names)}
    if all(name.isdecimal() for name in names):
        found = {image: str(int(label)) if label.isdecimal() else label for image, label in found.items()}
    if wrong := sorted(set(found.values()) - set(numbers)):
        raise ValueError(f"{path} has labels that are no class: {some(wrong)}. The classes are {some(names)}.")
    return {image: numbers[found[image]] for image in in_order(found)}


def _read_list(path: Path, root: Path | None = None) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of images, in UTF-8 ({error}).") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, label = _columns(line)
        if number == 1 and not label.isdecimal() and "." not in name:
            continue  # a line of titles
        name = name.removeprefix("./").removeprefix(f"{root}/")
        if not name or not label or "/" in label or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(
                f"{path}, line {number}: {line[:80]!r} is not `path label`, with a path below {root or 'its folder'}."
            )
        if found.setdefault(name, label) != label:
            raise ValueError(f"{path}, line {number}: {name} is there before, with the label {found[name]}.")
    return found


def _columns(line: str) -> tuple[str, str]:
    """Path and label of a line: its last column is the label."""
    between = next((mark for mark in SEPARATORS if mark in line), " ")
    try:
        *name, label = next(csv.reader([line.strip()], delimiter=between))
    except csv.Error:  # far too long, say
        return "", ""
    return between.join(name).strip(), label.strip()


def test_part(images: Path) -> str:
    """Which folder beside `train` holds the test images: val or test."""
    return "test" if (images / "test").is_dir() and not (images / "val").is_dir() else "val"


def read_class_list(path: Path) -> list[str]:
    """The names in a list of classes, one per line; ValueError where it cannot be read or names one twice."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of classes, a name a line ({error}).") from None
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{path} names no class: give a name on each line.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path} names a class twice: {some(sorted(set(twice)))}.")
    return names
