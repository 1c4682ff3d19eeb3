"""From a specification to a pool: the images, the oracle's labels, the test set and the pool's indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mal.config.people import FILES
from mal.config.schema import Dataset as Spec
from mal.data.decode import PIXELS
from mal.data.ffcv.prepared import (
    MODES,
    hash_file,
    open_part,
    open_prepared,
    pixels_of,
    prepared_folder,
    read_manifest,
)
from mal.data.image_set import UNKNOWN, Files, Labels, Prepared, Readable, Split, hash_arrays
from mal.data.sources.registry import SOURCES, stratified
from mal.rng import generator
from mal.run.ledger import Oracle


@dataclass(frozen=True)
class Dataset:
    """What a chain works on.

    train: the whole training set; pool: int64 sorted absolute indices into it; oracle: sells its labels; test: the test
    set; digest: SHA-256 of what pool and training set are recognised by; data: the folder of datasets.
    """

    spec: Spec
    train: Split
    pool: np.ndarray
    oracle: Oracle
    test: Split
    digest: str
    data: Path


def load(
    spec: Spec, data: Path, seed: int, loader: str = "memory", splits: tuple[Split, Split] | None = None
) -> Dataset:
    """Read, check and cut down the dataset of one chain.

    seed: draws the class ratios of an imbalanced variant (each run has its own, Section 4.1), nothing else; loader:
    `ffcv` opens the prepared copy, the others the source itself; splits: what was read already.
    """
    if loader == "auto":
        raise ValueError("loader=auto is chosen at launch (sweeps/launch.py): give a chain memory, torch or ffcv.")
    train: Split
    test: Split
    train, test = splits or (open_prepared(spec, data) if loader == "ffcv" else read_source(spec, data))
    check_split(spec.name, "training", train, spec, spec.train)
    check_split(spec.name, "test", test, spec, spec.test)
    pool = choose_pool(spec, np.zeros(len(train)) if spec.oracle == FILES else train.labels, seed)
    digest = hash_arrays((pool, *train.identity()))
    return Dataset(spec, train, pool, Oracle(train.labels), test, digest, data)


def same_pool(dataset: Dataset) -> frozenset[str]:
    """The digests of the pool by every loader that gives these bytes: by the source and by its raw prepared copy.

    Empty where the two are not both there, or the copy is of other files.
    """
    spec, data = dataset.spec, dataset.data
    try:
        manifest = read_manifest(folder := prepared_folder(spec, data, "raw"))
        source = read_source(spec, data)[0] if isinstance(dataset.train, Prepared) else dataset.train
    except ValueError:
        return frozenset()
    assert not isinstance(source, Prepared)
    if manifest is None or (isinstance(source, Files) and pixels_of(manifest) != PIXELS):
        return frozenset()
    if hash_arrays(source.identity()) != manifest["parts"]["train"]["source"]:
        return frozenset()
    copy = open_part(folder, manifest, "train")
    return frozenset(hash_arrays((dataset.pool, *each.identity())) for each in (source, copy))


def prepared_twin(dataset: Dataset) -> Prepared | None:
    """The training part of a prepared copy of the very files that a dataset reads, with its sums of pixels whole.

    None where there is none. How the copy stores images does not matter: the sums are those of the source.
    """
    if isinstance(dataset.train, Prepared):
        return dataset.train
    source = ""
    for mode in MODES:
        folder = prepared_folder(dataset.spec, dataset.data, mode)
        try:
            manifest = read_manifest(folder)
        except ValueError:
            continue  # damaged: of use to nobody
        if manifest is None or pixels_of(manifest) != PIXELS:
            continue
        source = source or hash_arrays(dataset.train.identity())
        copy = open_part(folder, manifest, "train")
        kept = copy.entry["files"].get(copy.moments_file.name, {}).get("hash")
        whole = copy.moments_file.is_file() and hash_file(copy.moments_file) == kept
        if copy.entry["source"] == source and whole:
            return copy
    return None


def read_source(spec: Spec, data: Path) -> tuple[Readable, Readable]:
    """The training and the test set as the source's files give them, not yet checked against the specification.

    Without the files of dataset.left_out.
    """
    train, test = SOURCES[spec.source](spec, data)
    names = spec.left_out or []
    return leave_out(train, names, "train"), leave_out(test, names, "test")


def leave_out(split: Readable, left_out: Sequence[str], part: str) -> Readable:
    """A split without the files that are named as PART/NAME."""
    names = {name.partition("/")[2] for name in left_out if name.partition("/")[0] == part}
    if not names:
        return split
    assert isinstance(split, Files)
    return split.without(np.array([at for at in range(len(split)) if split.store.name(at) in names], np.int64))


def choose_pool(spec: Spec, labels: Labels, seed: int) -> np.ndarray:
    """The pool's absolute indices, int64 sorted: all or `dataset.pool` of them, thinned by `dataset.imbalance`.

    labels: int64 (N,), or maps (N, H, W), whose pool is drawn whatever is on them.
    """
    pool = np.arange(len(labels))
    classes = labels if isinstance(labels, np.ndarray) and labels.ndim == 1 else np.zeros(len(labels), np.int64)
    if spec.pool is not None:
        pool = stratified(classes, spec.pool, generator("pool", spec.source, spec.pool))
    if spec.imbalance:
        pool = thin(pool, classes, spec.imbalance, spec.minimum, spec.classes, generator("imbalance", spec.name, seed))
    return pool


def thin(
    pool: np.ndarray,
    labels: np.ndarray,
    ratios: list[float],
    minimum: int,
    classes: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Keep a ratio of each class, each ratio for an equal share of the classes drawn without replacement.

    The paper's CIFAR100-Imbalanced (Section 4.1): ratios 10^-2 ... 10^0 for 20 classes each, the smallest class 5.
    """
    if classes % len(ratios):
        raise ValueError(f"dataset.imbalance: {len(ratios)} ratios do not divide {classes} classes evenly.")
    ratio_of = dict(zip(random.permutation(classes).tolist(), np.repeat(ratios, classes // len(ratios)), strict=True))
    kept = []
    for label in range(classes):
        members = pool[labels[pool] == label]
        count = min(len(members), max(minimum, round(ratio_of[label] * len(members))))
        kept.append(random.choice(members, size=count, replace=False))
    return np.sort(np.concatenate(kept))


def check_split(name: str, part: str, split: Split, spec: Spec, expected: int) -> None:
    """Refuse images and labels that are not what the specification says, with a ValueError."""
    labels, shape = split.labels, (spec.channels, spec.size, spec.size)
    if split.shape != shape:
        raise ValueError(f"{name}: {part} images are uint8 {split.shape}, not uint8 {shape}.")
    if len(split) != len(labels):
        raise ValueError(f"{name}: {len(split)} {part} images but {len(labels)} labels.")
    if len(split) != expected:
        key = "train" if part == "training" else "test"
        raise ValueError(
            f"{name}: {len(split)} {part} images where {expected} are expected: the files are not whole, or set "
            f"dataset.{key}={len(split)} if this is what you mean."
        )
    if not isinstance(labels, np.ndarray) or labels.ndim > 1:
        return  # maps are checked one by one as they are read
    if part == "training" and spec.oracle == FILES:
        labels = labels[labels != UNKNOWN]
    if len(labels) and (labels.min() < 0 or labels.max() >= spec.classes):
        raise ValueError(f"{name}: {part} labels from {labels.min()} to {labels.max()}, not 0 to {spec.classes - 1}.")
