"""scikit-learn's digits, which need no download."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.registry import SOURCES, stratified
from mal.rng import generator


@SOURCES.register("digits")
def read_digits(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """scikit-learn's digits with a fixed split: of each class the same share is test, drawn once for all seeds."""
    table = _packaged_digits()
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[:, None]
    labels = table[:, -1].astype(np.int64)
    test = stratified(labels, spec.test, generator("test split", "digits"))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Arrays(images[train], labels[train]), Arrays(images[test], labels[test])


def _packaged_digits() -> np.ndarray:
    """The file behind sklearn.datasets.load_digits, (1797, 64 + 1): importing that costs a process over a second."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz") as file:
        return np.loadtxt(file, delimiter=",")
