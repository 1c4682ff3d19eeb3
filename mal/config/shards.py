"""WebDataset's shards: tar archives with KEY.jpg and KEY.cls beside each other, listed without reading the images.

Importing this module imports neither torch nor Pillow.
"""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mal.listing import extensions, some

SPAN = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {0000..0099} in a pattern
MOST_DIGITS = 6  # of a class's number


@dataclass
class Samples:
    """The samples of shards in one folder: SHARD/KEY.EXT, label, bytes, place in the shard, the shard's time in ns."""

    root: Path
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


def find_shards(pattern: str, key: str) -> list[Path]:
    """The shards that a pattern names, sorted: DIR/train-*.tar or DIR/train-{0000..0099}.tar; key: that of the pattern.

    Raises ValueError where there is none, or where they are in several folders.
    """
    if (span := SPAN.search(pattern)) is not None:
        first, last = span.groups()
        numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
        found = [Path(pattern[: span.start()] + number + pattern[span.end() :]) for number in numbers]
        if absent := [str(path) for path in found if not path.is_file()]:
            raise ValueError(f"{key}={pattern}: {some(absent)} are missing.")
    else:
        found = sorted(Path(path) for path in glob.glob(pattern))  # noqa: PTH207  the pattern may be absolute
    if not found:
        raise ValueError(f"{key}={pattern} names no file: give e.g. {key}=DIR/train-*.tar.")
    if strange := [str(path) for path in found if not path.is_file()]:
        raise ValueError(f"{key}={pattern}: {some(strange)} {'is no file' if len(strange) == 1 else 'are no files'}.")
    if len({path.parent for path in found}) > 1:
        raise ValueError(f"{key}={pattern} names files in several folders: put the shards into one.")
    return found


def list_shards(shards: list[Path]) -> Samples:
    """Every sample of the shards, in their order. ValueError naming a shard that is damaged or a wrong sample."""
    samples = Samples(shards[0].parent)
    for path in shards:
        try:
            with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
                images, classes = _members(archive)
                refuse_bad_end(archive)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            packed = ": it is packed, unpack it" if _is_packed(path) else ""
            raise ValueError(f"{path} is not a shard of WebDataset ({str(error)[:200]}){packed}.") from None
        size, time = path.stat().st_size, path.stat().st_mtime_ns
        for name in sorted(images):
            member = images[name]
            if member.offset_data + member.size > size:
                raise ValueError(f"{path} ends in the middle of {member.name}: it is cut; fetch it again.")
            samples.names.append(f"{path.name}/{member.name}")
            samples.labels.append(classes[name])
            samples.sizes.append(member.size)
            samples.offsets.append(member.offset_data)
            samples.times.append(time)
    if not samples:
        raise ValueError(f"{shards[0].parent}: the shards have no KEY.jpg with its KEY.cls in them.")
    return samples


def count_classes(labels: Sequence[int], where: Path | str) -> int:
    """How many classes training labels have; ValueError where one has no image. where: of the images, in words."""
    count = max(labels) + 1
    found = set(labels)
    if count > len(labels) or len(found) < count:
        absent = (str(label) for label in range(min(count, max(found) + 1)) if label not in found)
        raise ValueError(
            f"{where}: the classes {some(islice(absent, 20))} have no image: classes are numbers from 0 without a gap."
        )
    return count


def _is_packed(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def refuse_bad_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive without its end where tarfile saw one: a damaged head or a cut passes for the end there."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut at byte {archive.offset}")


def _members(archive: tarfile.TarFile) -> tuple[dict[str, tarfile.TarInfo], dict[str, int]]:
    """The image and the class of each key, which is a member's name up to the first dot of its last part."""
    images: dict[str, tarfile.TarInfo] = {}
    classes: dict[str, int] = {}
    for member in archive:
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, _, end = name.partition(".")
        key = folder + slash + stem
        if not member.isfile() or name.startswith("."):
            continue
        if f".{end.lower()}" in extensions():
            if key in images:
                raise ValueError(f"the key {key} has two images")
            images[key] = member
        elif end.lower() == "cls":
            content = archive.extractfile(member)
            text = content.read(100).strip() if content is not None else b""
            if not text.isdigit() or len(text) > MOST_DIGITS:
                raise ValueError(f"{member.name} holds {text[:20]!r}, not the number of a class")
            if key in classes:
                raise ValueError(f"the key {key} has two .cls")
            classes[key] = int(text)
    if alone := sorted(images.keys() ^ classes.keys()):
        raise ValueError(f"these keys have no image or no .cls: {some(alone)}")
    return images, classes
