"""What a launch finds out about a dataset's files before anything is submitted: bad files, counts, doubts.

Files that cannot be used are listed all at once; with dataset.skip_corrupt=true they are left out of the chain, by name
in its frozen configuration, whatever the loader.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mal.config.people import FILES
from mal.config.schema import Dataset as Spec
from mal.data.check import Checked, check_remembered
from mal.data.dataset import leave_out, read_source
from mal.data.ffcv.prepared import open_prepared
from mal.data.image_set import Files, MapFiles, Prepared, Split
from mal.listing import shown, some, twins_of

LISTED = 1000  # bad files that an error lists
MOST_LEFT_OUT = 10_000
COMPARED = 100  # test images compared whole with the training images that begin alike
SAY_SECONDS = 5
PARTS = ("train", "test")


@dataclass(frozen=True)
class Survey:
    """spec: the dataset's section, without what is left out; splits: its images likewise; lines: what is to be said."""

    spec: Spec
    splits: tuple[Split, Split]
    lines: list[str]


def survey(
    spec: Spec,
    data: Path,
    loader: str,
    level: str,
    initial: int,
    remember: bool = True,
    cheap: Callable[[Split, Split], None] = lambda train, test: None,
) -> Survey:
    """Look at a dataset as its chains will read it; cheap: refuses what needs no look into files, before that.

    level: full, headers or none; initial: labels of round 0, for a warning; remember: whether what was found good is
    kept for the next launch; where it may not be, many files are not looked at. Raises ValueError listing the bad ones.
    """
    whole: list[Split] = list(open_prepared(spec, data) if loader == "ffcv" else read_source(spec, data))
    cheap(whole[0], whole[1])
    checks: list[Checked | None] = [None, None]
    if level != "none":
        checks = [_checked(spec, part, split, level, data, remember) for part, split in zip(PARTS, whole, strict=True)]
    left_out = _left_out(spec, whole, checks)
    settled = spec
    as_before = loader == "ffcv" and (len(whole[0]), len(whole[1])) == (spec.train, spec.test)
    if (left_out and not as_before) or spec.skip_unpaired:
        counts = [_count(part, split, left_out) for part, split in zip(PARTS, whole, strict=True)]
        names = sorted({*(spec.left_out or []), *left_out}) or None
        settled = dataclasses.replace(spec, left_out=names, train=counts[0], test=counts[1])
    train, test = (
        leave_out(split, left_out, part) if isinstance(split, Files) else split
        for part, split in zip(PARTS, whole, strict=True)
    )
    lines = [_counted(settled, [train, test]), *_doubts(settled, whole, checks, initial)]
    if skipped := [part for part, split, seen in zip(PARTS, whole, checks, strict=True) if _unseen(split, seen, level)]:
        lines.append(f"The {' and '.join(skipped)} images are many: a launch looks at them (check={level}).")
    return Survey(settled, (train, test), lines)


def _checked(spec: Spec, part: str, split: Split, level: str, data: Path, remember: bool) -> Checked | None:
    if not isinstance(split, Files):
        return None
    said = _say(f"{spec.name}: {part} images looked at", len(split))
    return check_remembered(split, f"{spec.name}-{part}", level, data, said, remember)


def _unseen(split: Split, checked: Checked | None, level: str) -> bool:
    return level != "none" and checked is None and isinstance(split, Files)


def _left_out(spec: Spec, splits: list[Split], checks: list[Checked | None]) -> list[str]:
    """What is left out now, as PART/NAME: what a prepared copy was made without, or files that cannot be used."""
    bad = [message for checked in checks if checked for _, message in sorted(checked.bad.items())]
    if bad and not spec.skip_corrupt:
        more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        listed = "".join(f"\n  {message}" for message in bad[:LISTED])
        raise ValueError(
            f"{spec.name}: {len(bad)} files cannot be used:{listed}{more}\nMend or fetch them again, or leave them out "
            "by dataset.skip_corrupt=true (check=none does not look)."
        )
    if len(bad) > MOST_LEFT_OUT:
        raise ValueError(
            f"{spec.name}: {len(bad)} files cannot be used, e.g. {bad[0]} dataset.skip_corrupt leaves out at most "
            f"{MOST_LEFT_OUT}: fetch the dataset again."
        )
    found = []
    for part, split, checked in zip(PARTS, splits, checks, strict=True):
        if isinstance(split, Prepared):
            found += [f"{part}/{name}" for name in split.entry.get("left_out", [])]
        elif checked and checked.bad:
            assert isinstance(split, Files)
            found += [f"{part}/{split.store.name(index)}" for index in checked.bad]
    return found


def _count(part: str, split: Split, left_out: list[str]) -> int:
    gone = 0 if isinstance(split, Prepared) else sum(name.startswith(f"{part}/") for name in left_out)
    return len(split) - gone


# ------------------------------------------------------------------------- what is said


def _counted(spec: Spec, splits: list[Split]) -> str:
    """Classes, images, the smallest and the largest class, what was left out."""
    said = f"{spec.name}: {spec.classes} classes, {len(splits[0]):,} + {len(splits[1]):,} images"
    if (counts := _class_counts(spec, splits[0])) is not None:
        low, high = int(counts.argmin()), int(counts.argmax())
        said += f"; smallest class {_class_name(spec, splits[0], low)} ({counts[low]:,})"
        said += f", largest {_class_name(spec, splits[0], high)} ({counts[high]:,})"
    for part, split in zip(PARTS, splits, strict=True):
        if isinstance(split, Files) and split.not_images:
            said += f"; left out of {part}: {split.not_images}"
    if spec.left_out:
        said += f"; {len(spec.left_out)} files that cannot be used left out: {some(spec.left_out)}"
    return said


def _doubts(spec: Spec, splits: list[Split], checks: list[Checked | None], initial: int) -> list[str]:
    doubts = []
    if spec.task == "classification" and initial < spec.classes:
        doubts.append(f"initial={initial} gives fewer labels than there are classes ({spec.classes}).")
    if absent := _untested(spec, splits, checks):
        names = some(_class_name(spec, splits[0], label) for label in absent)
        doubts.append(f"{len(absent)} classes have no test image and are left out of the scores by class: {names}.")
    if spec.oracle != FILES and (twins := twins_of(_folders(splits[0]))):
        doubts.append(f"these classes look alike: {some(f'{a!r} and {b!r}' for a, b in twins)}.")
    train, test = splits
    if isinstance(train, Files) and isinstance(test, Files) and checks[0] and checks[1]:
        doubts += _same_images(train, test, checks[0], checks[1])
        if turned := checks[0].turned + checks[1].turned:
            doubts.append(f"{turned} images have an EXIF orientation that their masks do not have: check one by eye.")
    return [f"warning: {doubt}" for doubt in doubts]


def _same_images(train: Files, test: Files, ours: Checked, theirs: Checked) -> list[str]:
    """A warning where test images are training images, byte for byte."""
    order = np.argsort(ours.heads, kind="stable")
    at = np.minimum(np.searchsorted(ours.heads, theirs.heads, sorter=order), len(order) - 1)
    alike = np.flatnonzero((ours.heads[order[at]] == theirs.heads) & (theirs.heads > 0))
    compared = [(int(index), int(order[at[index]])) for index in alike[:COMPARED]]
    same = [pair for pair in compared if test.store.content(pair[0]) == train.store.content(pair[1])]
    if not same:
        return []
    share = round(len(same) / len(compared) * len(alike))
    one, other = test.store.path(same[0][0]), train.store.path(same[0][1])
    return [f"{share:,} of {len(test):,} test images are training images too, e.g. {one} is {other}."]


def _untested(spec: Spec, splits: list[Split], checks: list[Checked | None]) -> list[int]:
    """Classes without a test image, in as far as that is known."""
    test = splits[1]
    if checks[1] is not None and len(checks[1].present):
        found = np.unpackbits(checks[1].present, axis=1).sum(axis=0)
        return np.flatnonzero(found[: spec.classes] == 0).tolist()
    counts = _class_counts(spec, test)
    return [] if counts is None else np.flatnonzero(counts == 0).tolist()


def _class_counts(spec: Spec, split: Split) -> np.ndarray | None:
    labels = split.labels
    if isinstance(labels, MapFiles) or labels.ndim != 1 or not len(labels):
        return None
    if labels.min() < 0 or labels.max() >= spec.classes:
        return None  # refused with its numbers where the dataset is loaded
    return np.bincount(labels, minlength=spec.classes)


def _folders(split: Split) -> set[str]:
    """Folders that an image of each class lies in, directly below the root: of a tree, its classes."""
    if not isinstance(split, Files) or isinstance(split.labels, MapFiles):
        return set()
    _, one_each = np.unique(split.labels, return_index=True)
    names = [split.store.name(int(index)).partition("/") for index in one_each]
    return {folder for folder, slash, _ in names if slash}


def _class_name(spec: Spec, split: Split, label: int) -> str:
    if spec.class_names is not None and label < len(spec.class_names):
        return spec.class_names[label]
    if isinstance(split, Files) and not isinstance(split.labels, MapFiles) and not split.store.in_shards:
        members = np.flatnonzero(np.equal(split.labels, label))
        names = [split.store.name(int(index)) for index in (*members[:1], *members[-1:])]
        folders = {name.rpartition("/")[0].partition("/")[0] for name in names}
        if len(folders) == 1 and "" not in folders:
            return shown(folders.pop())
    return str(label)


def _say(what: str, total: int) -> Callable[[int], None]:
    began = last = time.monotonic()

    def say(done: int) -> None:
        nonlocal last
        if done and (now := time.monotonic()) - last > SAY_SECONDS:
            last = now
            print(f"{what}: {done:,} of {total:,}, {(now - began) * (total - done) / done:.0f} s left", flush=True)

    return say
