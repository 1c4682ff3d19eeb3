"""Listing image files: trees with one folder per class, and the sizes of many files on shared storage.

Importing this module imports neither torch nor Pillow: the command line counts a user's folders with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found", bound=Sized)
# Pictures, among the formats that Pillow opens, that begin with a mark of their own: no other file passes for one.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000", "QOI", "HEIF")
# Pictures that may be read elsewhere: said by name when they are left out.
OF_PLUGIN = (".heic", ".heif", ".hif")
UNREADABLE = (".avif", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw", ".tga", ".npy")
# Folders that programs leave behind; those whose names begin with a dot besides.
JUNK = ("@eaDir", "#recycle", "@Recycle", "__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN")
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")
THREADS = 16  # that wait for a slow storage side by side
SLOW_PER_S, SURE_SECONDS = 30_000, 0.2  # files listed; fewer, for so long, and the storage is slow
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

    @classmethod
    def of(cls, states: Iterable[tuple[str, int, int]]) -> Images:
        """From name, size and time of each."""
        return cls(*(list(column) for column in zip(*states, strict=True)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.names)

    def states(self) -> Iterable[tuple[str, int, int]]:
        """Name, size and time of each."""
        return zip(self.names, self.sizes, self.times, strict=True)

    def sort(self) -> None:
        """Folder by folder, each sorted: the order of torchvision's ImageFolder, the same on every machine."""
        flat = not any("/" in name for name in self.names)
        order = sorted(range(len(self)), key=self.names.__getitem__ if flat else lambda at: self.names[at].split("/"))
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
            found.left_out[_junk(entry.name, entry.is_dir(follow_symlinks=False))] += 1
        elif _is_folder(entry, found):
            classes.append(entry.name)
        elif not _is_dangling(entry.path, found):
            found.left_out["files beside the classes' folders"] += 1
    each = _each(lambda name: _images(root / name, above), sorted(classes))
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
            f"{f'; there are {left_out}' if left_out else ''}. Remove what is no class."
        )
    return Tree(listed, sum((images.left_out for images in each), found.left_out))


def list_images(root: Path, key: str) -> Images:
    """The images below one folder; ValueError where it is not there, or where a folder or link in it is wrong."""
    images = _images(root, _identity(root, key))
    _refuse(key, images.wrong)
    return images


def file_states(root: Path, names: Sequence[str]) -> Images:
    """The files of these names below `root`, in the order given; size -1 where one is not there."""
    split = [name.rpartition("/")[::2] for name in names]
    folders = sorted({folder for folder, _ in split})
    listed = dict(zip(folders, _each(lambda folder: _states(root / folder), folders), strict=True))
    states = [listed[folder].get(name, (-1, 0)) for folder, name in split]
    return Images(list(names), [size for size, _ in states], [time for _, time in states])


def in_order(names: Iterable[str]) -> list[str]:
    """Paths folder by folder, each sorted: the order of torchvision's ImageFolder, the same on every machine."""
    return sorted(names, key=lambda name: name.split("/"))


def some(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(shown, names[:NAMED])) + more


def shown(name: str) -> str:
    """A name as it can be printed: a terminal would obey what is no text, and hide what is only space."""
    return name if name.isprintable() and name.strip() == name != "" else repr(name)


def say_left_out(counts: Counter[str]) -> str:
    """What was left out, the most first."""
    return some(f"{count} {what}" for what, count in counts.most_common())


def say_difference(first: str, ours: Iterable[str], second: str, theirs: Iterable[str]) -> str:
    """Which names are in one of two sets only, in which, and which of them look alike."""
    ours, theirs = set(ours), set(theirs)
    parts = [
        f"{some(sorted(only))} in {where} only"
        for only, where in ((ours - theirs, first), (theirs - ours, second))
        if only
    ]
    twins = twins_of(ours ^ theirs)
    alike = f" ({some(f'{a!r} and {b!r}' for a, b in twins)} differ in case or in Unicode's form)" if twins else ""
    return "; ".join(parts) + alike


def twins_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in case, outer spaces or how Unicode composes their letters: they look alike."""
    seen: dict[str, str] = {}
    twins = []
    for name in sorted(names):
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold().strip(), name)
        if other != name:
            twins.append((other, name))
    return twins


@cache
def extensions() -> frozenset[str]:
    """What the names of the files that can be read here end in, in lower case, with the dot."""
    from PIL import Image

    open_formats()
    return frozenset(end for end, name in Image.EXTENSION.items() if name in FORMATS and name in Image.OPEN)


def open_formats() -> None:
    """Make Pillow know all its formats, and HEIF where the plugin for it is installed (pip install pillow-heif)."""
    from PIL import Image

    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def _each(look: Callable[[str], Found], folders: Sequence[str]) -> list[Found]:
    """What `look` finds in each folder; by threads where the storage is slow: else these wait for Python's lock."""
    found: list[Found] = []
    seen, began = 0, time.monotonic()
    for folder in folders:
        found.append(look(folder))
        seen += 1 + len(found[-1])
        spent = time.monotonic() - began
        if spent > SURE_SECONDS and seen < SLOW_PER_S * spent:
            break
    with ThreadPoolExecutor(THREADS) as pool:
        return [*found, *pool.map(look, folders[len(found) :])]


def _identity(root: Path, key: str) -> tuple[tuple[int, int], ...]:
    try:
        if not root.is_dir():
            raise ValueError(f"{key}: {root} is not a folder.")
        state = root.stat()
    except OSError as error:
        raise ValueError(f"{key}: {root} cannot be read ({error.strerror}).") from None
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


def _junk(name: str, is_folder: bool) -> str:
    return f"folders {name}" if is_folder else "hidden files"


def _is_folder(entry: os.DirEntry[str], found: Images) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        _note(found, entry.path, error)
        return False


def _is_dangling(path: str, found: Images) -> bool:
    """Whether a path is a link to nothing, which is noted."""
    if not Path(path).is_symlink() or Path(path).exists():
        return False
    if not (found.wrong and found.wrong[-1].startswith(f"{path} ")):  # noted by another name already
        found.wrong.append(f"{path} is a link to {Path(path).readlink()}, which is not there")
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
    _walk(str(root), "", found, above)
    found.sort()
    return found


def _walk(folder: str, below: str, found: Images, above: tuple[tuple[int, int], ...]) -> None:
    """Add what is in a folder; above: device and inode of the folders around it."""
    others, known = [], extensions()
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        return _note(found, folder, error)
    try:
        # Of a million files almost all are plain ones: their states are asked for below the folder that is open.
        with os.scandir(handle) as entries:
            for entry in entries:
                name = entry.name
                if _is_junk(name) or not entry.is_file(follow_symlinks=False):
                    others.append(name)
                elif (end := _ending(name)) in known:
                    state = entry.stat()
                    found.names.append(below + name)
                    found.sizes.append(state.st_size)
                    found.times.append(state.st_mtime_ns)
                else:
                    found.left_out[_no_image(end)] += 1
    except OSError as error:
        return _note(found, folder, error)
    finally:
        os.close(handle)
    for name in others:
        _look_at(folder, name, below, found, above)
    return None


def _look_at(folder: str, name: str, below: str, found: Images, above: tuple[tuple[int, int], ...]) -> None:
    """Add a folder, or what a link leads to; note what else is no plain file."""
    path = f"{folder}/{name}"
    if _is_junk(name):
        found.left_out[_junk(name, Path(path).is_dir())] += 1
        return
    try:
        state = Path(path).stat()
    except OSError as error:
        if error.errno != errno.ENOENT or not _is_dangling(path, found):
            _note(found, path, error)
        return
    end = _ending(name)
    if stat.S_ISDIR(state.st_mode):
        if (inner := (state.st_dev, state.st_ino)) in above:
            found.wrong.append(f"{path} is a link to a folder that it is in")
        else:
            _walk(path, f"{below}{name}/", found, (*above, inner))
    elif not stat.S_ISREG(state.st_mode):
        found.left_out["pipes, sockets or devices"] += 1
    elif end in extensions():
        found.names.append(below + name)
        found.sizes.append(state.st_size)
        found.times.append(state.st_mtime_ns)
    else:
        found.left_out[_no_image(end)] += 1


def _no_image(end: str) -> str:
    if end in OF_PLUGIN:
        return f"{end}, not read here without pip install pillow-heif"
    return f"{end or 'without an ending'}{', a format not read here' * (end in UNREADABLE)}"


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    if not folder.is_dir():
        return {}
    states = {}
    for entry in os.scandir(folder):
        if entry.is_file():
            state = entry.stat()
            states[entry.name] = state.st_size, state.st_mtime_ns
    return states
