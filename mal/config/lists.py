"""Text files beside images: lists of images with their classes, lists of classes.

Importing this module imports neither torch nor Pillow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mal.listing import in_order, some


def read_lists(train: Path, test: Path) -> tuple[tuple[dict[str, int], dict[str, int]], list[str]]:
    """Two lists of `path label` or `path,label`, one image a line: labels by path, sorted, and the classes' names.

    Labels are numbers from 0, or names, which are numbered in sorted order. Raises ValueError naming file and line.
    """
    rows = [_read_list(path) for path in (train, test)]
    for path, found in zip((train, test), rows, strict=True):
        if not found:
            raise ValueError(f"{path} lists no image.")
    names = names_of(label for found in rows for label in found.values())
    lists = [_numbered(path, found, names) for path, found in zip((train, test), rows, strict=True)]
    if absent := sorted(set(range(len(names))) - set(lists[0].values())):
        raise ValueError(f"{train} has no image of the classes {some(names[at] for at in absent)}.")
    return (lists[0], lists[1]), names


def names_of(labels: Iterable[str]) -> list[str]:
    """The classes that labels are of: all numbers up to the largest, or the names in sorted order."""
    labels = set(labels)
    if labels and all(label.isdecimal() for label in labels):
        return [str(number) for number in range(max(map(int, labels)) + 1)]
    return sorted(labels)


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


def _read_list(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of images ({error}).") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, comma, label = line.rpartition("," if "," in line else "\t" if "\t" in line else " ")
        name, label = name.strip().removeprefix("./"), label.strip()
        if number == 1 and comma and not label.isdecimal() and "." not in name:
            continue  # a line of titles
        if not name or not label or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not `path label`, with a path below the folder.")
        if found.setdefault(name, label) != label:
            raise ValueError(f"{path}, line {number}: {name} is there before, with the label {found[name]}.")
    return found


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
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path} names a class twice: {some(sorted(set(twice)))}.")
    return names
