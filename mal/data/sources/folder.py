"""A user's own images: two folders, of training and of test images, each with one folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Files, Store
from mal.data.sources.registry import SOURCES
from mal.listing import in_order, list_classes, some


@SOURCES.register("folder")
def read_folder(spec: Spec, data: Path) -> tuple[Files, Files]:
    """The images below dataset.train_images and dataset.test_images; classes are the folders' names, sorted."""
    assert spec.train_images is not None
    assert spec.test_images is not None
    return tree_splits(
        spec, Path(spec.train_images), Path(spec.test_images), "dataset.train_images", "dataset.test_images"
    )


def tree_splits(spec: Spec, train: Path, test: Path, key: str, test_key: str | None = None) -> tuple[Files, Files]:
    """Two trees of one folder a class, with the same classes; key, test_key: what to set where one is wrong."""
    trees = [list_classes(train, key), list_classes(test, test_key or key)]
    if odd := set(trees[0]) ^ set(trees[1]):
        raise ValueError(f"{spec.name}: {train} and {test} have different classes: {some(sorted(odd))} in one of them.")
    if len(trees[0]) != spec.classes:
        raise ValueError(
            f"{spec.name}: {train} has {len(trees[0])} classes where {spec.classes} are expected: set "
            f"dataset.classes={len(trees[0])} if this is what you mean."
        )
    return _tree(spec, train, trees[0]), _tree(spec, test, trees[1])


def _tree(spec: Spec, root: Path, tree: dict[str, dict[str, int]]) -> Files:
    sizes = {f"{name}/{image}": images[image] for name, images in tree.items() for image in in_order(images)}
    labels = np.repeat(np.arange(len(tree)), [len(images) for images in tree.values()])
    assert spec.resize is not None
    return Files(Store.of(root, sizes), labels, spec.size, spec.resize)
