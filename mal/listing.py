"""Listing image files: trees with one folder per class, and the sizes of many files on shared storage.

Importing this module imports neither torch nor Pillow: the command line counts a user's folders with it.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

# Pictures, among the formats that Pillow opens, that begin with a mark of their own: no other file passes for one.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000", "QOI")
# Pictures that may be read elsewhere: said by name when they are left out.
UNREADABLE = (".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw", ".tga", ".npy")
# Folders that programs leave behind; those whose names begin with a dot besides.
JUNK = ("@eaDir", "#recycle", "@Recycle", "__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN")
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")
THREADS = 16  # listing waits for the storage, not for the processor
NAMED = 10  # files that an error names, of however many
OF_THE_FILES = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass
class Images:
    """Image files below a folder: their paths, sizes in bytes, times of change in ns; and how many files are none.

    left_out: how many of what; wrong: what is wrong with folders and links.
    """

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def states(self) -> Iterable[tuple[str, int, int]]:
        """Name, size and time of each."""
        return zip(self.names, self.sizes, self.times, strict=True)

    def sort(self) -> None:
        """Folder by folder, each sorted: the order of torchvision's ImageFolder, the same on every machine."""
        order = sorted(range(len(self)), key=lambda at: self.names[at].split("/"))
        self.names = [self.names[at] for at in order]
        self.sizes = [self.sizes[at] for at in order]
        self.times = [self.times[at] for at in order]


@dataclass
class Tree:
    """The images of each class, in sorted order, and what was left out."""

    classes: dict[str, Images]
    left_out: Counter[str]


def list_classes(root: Path, key: str) -> Tree:
    """The images of a tree ROOT/CLASS/**/NAME. key: what to set where the folder is wrong, for the message.

    Raises ValueError that names every folder and link that is wrong.
    """
    above = _identity(root, key)
    classes, found = [], Images()
    for entry in _entries(root, found):
        if _is_junk(entry.name):
            found.left_out[_junk(entry)] += 1
        elif _is_folder(entry, found):
            classes.append(entry.name)
        elif not _is_dangling(entry, found):
            found.left_out["files beside the classes' folders"] += 1
    with ThreadPoolExecutor(THREADS) as pool:
        each = list(pool.map(lambda name: _images(root / name, above), sorted(classes)))
    listed = dict(zip(sorted(classes), each, strict=True))
    _refuse(key, [*found.wrong, *(wrong for images in each for wrong in images.wrong)])
    if not classes:
        inside = any(_ending(entry.name) in extensions() for entry in _entries(root, found))
        hint = f" It has images: it is one folder too low. Set {key}={root.parent}." if inside else ""
        raise ValueError(f"{key}: {root} has no folders in it, one for each class.{hint}")
    _refuse_too_deep(root, key, listed)
    if empty := [name for name, images in listed.items() if not images]:
        left_out = say_left_out(sum((listed[name].left_out for name in empty), Counter()))
        raise ValueError(
            f"{key}: no image ({' '.join(sorted(extensions()))}) in {some(str(root / name) for name in empty)}"
            f"{f'; there are {left_out}' if left_out else ''}."
        )
    return Tree(listed, sum((images.left_out for images in each), found.left_out))


def list_images(root: Path, key: str) -> Images:
    """The images below one folder; ValueError where it is not there, or where a folder or link in it is wrong."""
    images = _images(root, _identity(root, key))
    _refuse(key, images.wrong)
    return images


def file_states(root: Path, names: Iterable[str]) -> list[tuple[int, int]]:
    """Size in bytes and time of change in ns of files below `root`, (-1, 0) where one is not there."""
    split = [name.rpartition("/")[::2] for name in names]
    folders = sorted({folder for folder, _ in split})
    with ThreadPoolExecutor(THREADS) as pool:
        listed = dict(zip(folders, pool.map(lambda folder: _states(root / folder), folders), strict=True))
    return [listed[folder].get(name, (-1, 0)) for folder, name in split]


def in_order(names: Iterable[str]) -> list[str]:
    """Paths folder by folder, each sorted: the order of torchvision's ImageFolder, the same on every machine."""
    return sorted(names, key=lambda name: name.split("/"))


def some(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def say_left_out(counts: Counter[str]) -> str:
    """What was left out, the most first."""
    return some(f"{count} {what}" for what, count in counts.most_common())


def say_difference(first: str, ours: Iterable[str], second: str, theirs: Iterable[str]) -> str:
    """Which names are in one of two sets only, in which, and which of them look alike."""
    ours, theirs = set(ours), set(theirs)
    parts = [
        f"{some(_shown(name) for name in sorted(only))} in {where} only"
        for only, where in ((ours - theirs, first), (theirs - ours, second))
        if only
    ]
    twins = twins_of(ours ^ theirs)
    alike = f" ({some(f'{a!r} and {b!r}' for a, b in twins)} differ in case or in Unicode's form)" if twins else ""
    return "; ".join(parts) + alike


def twins_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in case or in how Unicode composes their letters, so that they look alike."""
    seen: dict[str, str] = {}
    twins = []
    for name in sorted(names):
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            twins.append((other, name))
    return twins


@cache
def extensions() -> frozenset[str]:
    """What the names of the files that can be read here end in, in lower case, with the dot."""
    from PIL import Image

    Image.init()
    return frozenset(end for end, name in Image.EXTENSION.items() if name in FORMATS and name in Image.OPEN)


def _shown(name: str) -> str:
    return name if name.isprintable() and name.strip() == name != "" else repr(name)


def _identity(root: Path, key: str) -> tuple[tuple[int, int], ...]:
    if not root.is_dir():
        raise ValueError(f"{key}: {root} is not a folder.")
    state = root.stat()
    return ((state.st_dev, state.st_ino),)


def _refuse(key: str, wrong: Sequence[str]) -> None:
    if wrong:
        raise ValueError(f"{key}: {some(wrong)}. Mend or remove {'it' if len(wrong) == 1 else 'them'}.")


def _refuse_too_deep(root: Path, key: str, listed: dict[str, Images]) -> None:
    """Refuse a folder whose folders are not classes but hold them."""
    if any("/" not in name for images in listed.values() for name in images.names):
        return
    inner = [name for name in listed if len(listed) == 1 or name.lower() in PARTS]
    if len(inner) == len(listed) and all(listed.values()):
        raise ValueError(
            f"{key}: {root} holds {some(inner)}, with folders but no image in {'it' if len(inner) == 1 else 'them'}: "
            f"it is one folder too high. Set {key}={root / inner[0]}."
        )


def _ending(name: str) -> str:
    """Of a file's name, in lower case, with the dot; cheaper than a Path."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def _junk(entry: os.DirEntry[str]) -> str:
    return f"folders {entry.name}" if entry.is_dir(follow_symlinks=False) else "hidden files"


def _is_folder(entry: os.DirEntry[str], found: Images) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        _note(found, entry.path, error)
        return False


def _is_dangling(entry: os.DirEntry[str], found: Images) -> bool:
    """Whether an entry is a link to nothing, which is noted."""
    if not entry.is_symlink() or Path(entry.path).exists():
        return False
    if not (found.wrong and found.wrong[-1].startswith(f"{entry.path} ")):  # noted by another name already
        found.wrong.append(f"{entry.path} is a link to {Path(entry.path).readlink()}, which is not there")
    return True


def _note(found: Images, path: str, error: OSError) -> None:
    """What is wrong with one file or folder; an error of the storage is raised as it is."""
    if error.errno not in OF_THE_FILES:
        raise error
    what = "is a link that leads to itself" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
    found.wrong.append(f"{path} {what}")


def _entries(folder: Path, found: Images) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        _note(found, str(folder), error)
        return []


def _images(root: Path, above: tuple[tuple[int, int], ...]) -> Images:
    found = Images()
    _walk(root, "", found, above)
    found.sort()
    return found


def _walk(folder: Path, below: str, found: Images, above: tuple[tuple[int, int], ...]) -> None:
    """Add what is in a folder; above: device and inode of the folders around it."""
    for entry in _entries(folder, found):
        if _is_junk(entry.name):
            found.left_out[_junk(entry)] += 1
        elif _is_folder(entry, found):
            state = entry.stat()
            if (inner := (state.st_dev, state.st_ino)) in above:
                found.wrong.append(f"{entry.path} is a link to a folder that it is in")
            else:
                _walk(Path(entry.path), f"{below}{entry.name}/", found, (*above, inner))
        elif (end := _ending(entry.name)) not in extensions():
            found.left_out[f"{end or 'without an ending'}{', a format not read here' * (end in UNREADABLE)}"] += 1
        elif not _is_dangling(entry, found):
            try:
                state = entry.stat()
            except OSError as error:
                _note(found, entry.path, error)
                continue
            found.names.append(below + entry.name)
            found.sizes.append(state.st_size)
            found.times.append(state.st_mtime_ns)


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    if not folder.is_dir():
        return {}
    states = {}
    for entry in os.scandir(folder):
        if entry.is_file():
            state = entry.stat()
            states[entry.name] = state.st_size, state.st_mtime_ns
    return states
