"""Readers of datasets in their real on-disk formats: `read(spec, data)` gives the training and the test split.

A source knows files, not protocols: which subset is the pool is decided in `mal.data.dataset` from the specification.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mal.config.registry import Registry
from mal.config.schema import Dataset as Spec
from mal.data.image_set import Files, Labels, Readable, Store

Source = Callable[[Spec, Path], tuple[Readable, Readable]]
SOURCES: Registry[Source] = Registry("dataset source")


def files_of(spec: Spec, data: Path, folder: str) -> Path:
    """Where the files of a dataset are: dataset.root, or DATA/FOLDER."""
    return Path(spec.root) if spec.root else data / folder


def image_files(spec: Spec, store: Store, labels: Labels, not_images: str = "") -> Files:
    """Image files as the specification has them read; not_images: what lies among them and is none, in words."""
    assert spec.resize is not None
    exif = spec.exif != "ignore"
    return Files(store, labels, spec.size, spec.resize, (), exif, spec.max_pixels, not_images)


def stratified(labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` indices, of each class nearly the same share of its images; sorted."""
    order = random.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.lexsort((np.arange(len(labels)), rank))[:count])
