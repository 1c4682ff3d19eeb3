"""Taking people's files into a sweep's store: all is checked, every fault is named, then all of it is committed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from mal.config.frozen import load_chain
from mal.config.people import CANNOT_TELL, FILES
from mal.config.registry import nearest
from mal.config.schema import Chain
from mal.files import sha256_file
from mal.labels import store
from mal.labels.asking import Asked, read_asked
from mal.labels.formats import Said, read_file
from mal.labels.store import MAP, REFUSED, UNANSWERED, Answers, Row
from mal.listing import some
from mal.run import folder as run_folder
from mal.run.heartbeat import now

LISTED = 20  # faults that an error names, of however many
UPLOADED = re.compile(r"(?:.*/)?data/upload/(?:\d+/)?[0-9a-f]{8}-")  # where Label Studio keeps what was uploaded


@dataclass
class Taken:
    """What an import came to.

    rows, maps: what is new; before: how many answers were there already, the same; disagreements: images that
    annotators see differently, in words; undecided: those without a majority; missing: paths that lack an answer.
    """

    rows: list[Row] = field(default_factory=list)
    maps: dict[int, bytes] = field(default_factory=dict)
    before: int = 0
    disagreements: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def chains_of(sweep: Path) -> list[tuple[Path, Chain]]:
    """The chains of a sweep that ask people, each with its configuration; ValueError where there is none."""
    chains = [(folder, load_chain(folder / run_folder.CONFIG)) for folder in _folders(sweep)]
    found = [(folder, config) for folder, config in chains if config.dataset.oracle == FILES]
    if not found:
        raise ValueError(f"{sweep} asks nobody for labels: launch it with oracle={FILES}.")
    return found


def import_files(sweep: Path, files: Sequence[Path]) -> Taken:
    """Take what files say, each of one annotator at least, into the store of a sweep: all of it, or nothing.

    Raises ValueError that lists what is wrong, each with file and line.
    """
    said = [each for file in files for each in read_file(file)]
    if not said:
        raise ValueError(f"{', '.join(map(str, files))}: no image has a label there.")
    sources = [{"file": str(file), "sha256": sha256_file(file) if file.is_file() else None} for file in files]
    return take(sweep, said, {"files": sources, "time": now()})


def take(sweep: Path, said: Sequence[Said], source: object) -> Taken:
    """Check answers, merge those of several annotators, and commit what is new."""
    chains = chains_of(sweep)
    config = chains[0][1]
    names = tuple(config.dataset.class_names or [])
    with store.locked(sweep):
        answers = store.read(sweep, names)
        asked = read_asked([folder for folder, _ in chains], answers)
        taken = Merger(asked, answers, names, map_check(config)).merge(said)
        if taken.rows:
            store.commit(sweep, taken.rows, taken.maps, source)
    return taken


class Fault(ValueError):
    """What is wrong with one answer."""


@dataclass(frozen=True)
class Merger:
    """Makes one answer per image of what annotators said.

    names: of the classes; check_map: raises `Fault` for a map (PNG file, path of its image) that is wrong; None where
    images have one class each.
    """

    asked: Asked
    answers: Answers
    names: tuple[str, ...]
    check_map: Callable[[bytes, str], None] | None = None

    def merge(self, said: Sequence[Said]) -> Taken:
        """The new answers; ValueError that lists all that is wrong."""
        faults: list[str] = []
        votes: dict[int, dict[str, Said]] = {}
        for each in said:
            try:
                index = find_image(each, self.asked)
                self._check_label(each)
                if (other := votes.setdefault(index, {}).setdefault(each.annotator, each)) is not each:
                    raise Fault(_twice(other, each))
            except Fault as fault:
                faults.append(f"{each.where}: {fault}.")
        taken = Taken()
        for index, by in votes.items():
            try:
                self._decide(taken, index, list(by.values()))
            except Fault as fault:
                faults.append(f"{next(iter(by.values())).where}: {fault}.")
        if faults:
            more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
            listed = "".join(f"\n  {fault}" for fault in faults[:LISTED])
            raise ValueError(f"{len(faults)} faults, so nothing was taken:{listed}{more}")
        new = {row.index for row in taken.rows}
        taken.missing = [self.asked.paths[index] for index in self.asked.open if index not in new]
        return taken

    def _check_label(self, said: Said) -> None:
        label = _plain(said)
        if label == CANNOT_TELL:
            return
        if self.check_map is not None:
            if not said.map:
                raise Fault(f"{label!r} is no map: images of this sweep need one each, as PNG files in a folder")
        elif said.map:
            raise Fault("it is a map, and images of this sweep have one class each")
        elif label not in self.names:
            raise Fault(f"{label!r} is no class{_hint(label, self.names)}")

    def _decide(self, taken: Taken, index: int, said: Sequence[Said]) -> None:
        """Settle one image: by majority, and as it was answered before."""
        path, counts = self.asked.paths[index], Counter((_plain(each), each.map) for each in said)
        (label, content), most = counts.most_common(1)[0]
        if len(counts) > 1:
            told = ", ".join(f"{count} x {name}" for (name, _), count in counts.most_common())
            if 2 * most <= len(said):
                taken.undecided.append(f"{path}: {told}")
                return
            taken.disagreements.append(f"{path}: {told}")
        if label == MAP and self.check_map is not None:
            self.check_map(content, path)
        if (before := self._before(index)) is None:
            taken.rows.append(Row(index, path, label))
            taken.maps |= {index: content} if label == MAP else {}
        elif before == (label, content):
            taken.before += 1
        else:
            raise Fault(f"{path} was labelled {before[0]} before, and what was taken does not change")

    def _before(self, index: int) -> tuple[str, bytes] | None:
        """What was answered before: the label, and the PNG file of a map; None where nothing was."""
        known = int(self.answers.of(np.array([index]))[0])
        if known == store.MAPPED:
            return MAP, self.answers.maps[index].read_bytes()
        named = {UNANSWERED: None, REFUSED: (CANNOT_TELL, b"")}
        return named[known] if known < 0 else (self.names[known], b"")


@cache
def _hint(label: str, names: tuple[str, ...]) -> str:
    return f"{nearest(label, names) or '.'} The classes: {some(names)}, or {CANNOT_TELL}"


def _plain(said: Said) -> str:
    return CANNOT_TELL if said.label.lower() == CANNOT_TELL else said.label


def _twice(first: Said, second: Said) -> str:
    """What is wrong with two answers of one annotator."""
    if _plain(first) == _plain(second) and first.map == second.map:
        return f"the image is there twice, first in {first.where}"
    return f"it contradicts {first.where}, which says {_plain(first)!r}, not {_plain(second)!r}"


# ------------------------------------------------------------------------- which image


def find_image(said: Said, asked: Asked) -> int:
    """The index of the image that is meant; `Fault` where it was not asked for, or several may be meant."""
    if said.index is not None:
        path = asked.paths.get(said.index)
        if path is None:
            raise Fault(f"index {said.index} was not asked for")
        if said.path is not None and said.path != path:
            raise Fault(f"index {said.index} is {path}, not {said.path}")
        return said.index
    assert said.path is not None
    given = _below(said.path)
    found = _matching(UPLOADED.sub("", given, count=1), asked, said.exact) if UPLOADED.match(given) else []
    found = found or _matching(given, asked, said.exact)
    if not found:
        raise Fault(f"{said.path} was not asked for")
    if len(found) > 1:
        raise Fault(f"{said.path} may be {' or '.join(asked.paths[at] for at in found[:3])}: give more of the path")
    return found[0]


def _below(path: str) -> str:
    """A path as tools write it, without what comes before it: Label Studio's local files, an address's escapes."""
    local = path.partition("?d=")[2] or path
    return unquote(local).replace("\\", "/").removeprefix("./").lstrip("/")


def _matching(given: str, asked: Asked, exact: bool) -> list[int]:
    """The asked images whose path agrees with a given one in all parts that both have, the most of them."""
    parts = given.split("/")
    near = asked.by_name if exact else asked.by_stem
    scores: dict[int, int] = {}
    for index in near.get(parts[-1], []):
        path = asked.paths[index] if exact else asked.paths[index].rpartition(".")[0]
        theirs = path.split("/")
        common = min(len(parts), len(theirs))
        if parts[-common:] == theirs[-common:]:
            scores[index] = common
    return [index for index, score in scores.items() if score == max(scores.values())]


def _folders(sweep: Path) -> list[Path]:
    return run_folder.chain_folders(sweep.parent, sweep.name)


# ------------------------------------------------------------------------- maps


def map_check(config: Chain) -> Callable[[bytes, str], None] | None:
    """What refuses a map that is wrong for its image, with a `Fault`; None where images have one class each."""
    spec = config.dataset
    if spec.task != "segmentation":
        return None
    from mal.data.decode import Reading, read_head, whole_map
    from mal.data.image_set import IGNORED

    images, how = images_folder(config), Reading(spec.size, "stretch", spec.exif != "ignore", spec.max_pixels)

    def check(content: bytes, path: str) -> None:
        try:
            found = whole_map(content, how)
        except ValueError as error:
            raise Fault(f"it cannot be read as a map ({error})") from None
        if wrong := sorted(set(np.unique(found).tolist()) - {*range(spec.classes), IGNORED}):
            raise Fault(f"it has the classes {wrong}, not 0 to {spec.classes - 1} or {IGNORED}")
        head = read_head((images / path).read_bytes(), how)
        if found.shape != (head.height, head.width):
            raise Fault(f"it is {found.shape[1]} x {found.shape[0]}, and its image {head.width} x {head.height}")

    return check


def images_folder(config: Chain) -> Path:
    """What the paths of to_label.csv are below."""
    spec = config.dataset
    return Path(spec.train_images) if spec.train_images else Path(spec.root or "") / "images" / "train"
