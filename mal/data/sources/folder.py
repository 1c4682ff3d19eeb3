"""A user's own images: two folders with one folder per class, or two lists of paths and labels.

TRAIN_IMAGES/CLASS/**/NAME  TEST_IMAGES/CLASS/**/NAME
dataset.train_list=FILE     one line per image, `path label` or `path,label`, below dataset.train_images

With oracle=files the training images lie in any folders; train_list may say the classes of some of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mal.config.lists import read_list, read_lists
from mal.config.people import FILES
from mal.config.schema import Dataset as Spec
from mal.data.image_set import UNKNOWN, Files, Store
from mal.data.sources.registry import SOURCES, image_files
from mal.listing import Images, Tree, file_states, list_classes, list_images, say_difference, say_left_out, some


@SOURCES.register("folder")
def read_folder(spec: Spec, data: Path) -> tuple[Files, Files]:
    """The images below dataset.train_images and dataset.test_images; classes are the folders' names, sorted.

    With dataset.train_list and dataset.test_list those that the lists name, which say their classes.
    """
    assert spec.train_images is not None
    assert spec.test_images is not None
    roots = Path(spec.train_images), Path(spec.test_images)
    if spec.oracle == FILES:
        return unlabelled_train(spec, roots[0]), test_of_people(spec, roots[1])
    if spec.train_list is None or spec.test_list is None:
        return tree_splits(spec, *roots, "dataset.train_images", "dataset.test_images")
    lists, names = read_lists(Path(spec.train_list), Path(spec.test_list), roots)
    check_count(spec, Path(spec.train_list), len(names))
    return (
        of_list(spec, roots[0], lists[0], "dataset.train_images"),
        of_list(spec, roots[1], lists[1], "dataset.test_images"),
    )


def tree_splits(spec: Spec, train: Path, test: Path, key: str, test_key: str) -> tuple[Files, Files]:
    """Two trees of one folder per class, which may have no test image; key, test_key: what to set if one is wrong."""
    trees = list_classes(train, key), list_classes(test, test_key)
    classes = list(trees[0].classes)
    counted = sum(map(len, trees[1].classes.values())) == spec.test  # a launch counted them as they are, or nobody did
    refuse_other_classes(spec, train, classes, test, trees[1].classes, may_lack=counted)
    check_count(spec, train, len(classes))
    return tree(spec, train, trees[0], classes), tree(spec, test, trees[1], classes)


def unlabelled_train(spec: Spec, root: Path) -> Files:
    """All images below a folder, with the classes that dataset.train_list says and UNKNOWN elsewhere."""
    listed = list_images(root, "dataset.train_images")
    labels = np.full(len(listed), UNKNOWN)
    if spec.train_list is not None:
        known = read_list(Path(spec.train_list), spec.class_names or [])
        place = {name: at for at, name in enumerate(listed.names)}
        if absent := [name for name in known if name not in place]:
            raise ValueError(
                f"{spec.name}: {len(absent)} images that {spec.train_list} names are not below {root}: {some(absent)}. "
                "Set dataset.train_images= to the folder that the paths are below."
            )
        labels[[place[name] for name in known]] = list(known.values())
    return image_files(spec, Store.of(root, listed), labels, say_left_out(listed.left_out))


def test_of_people(spec: Spec, root: Path) -> Files:
    """The test images, labelled by a list or by one folder per class; classes are those of the specification."""
    names = spec.class_names or []
    if spec.test_list is not None:
        return of_list(spec, root, read_list(Path(spec.test_list), names), "dataset.test_images")
    listed = list_classes(root, "dataset.test_images")
    if wrong := sorted(set(listed.classes) - set(names)):
        raise ValueError(f"{spec.name}: {root} has folders that are no class: {some(wrong)}. Set dataset.class_names=.")
    return tree(spec, root, listed, names)


def refuse_other_classes(
    spec: Spec, train: Path, ours: Iterable[str], test: Path, theirs: Iterable[str], may_lack: bool = False
) -> None:
    """Refuse test images of other classes than the training images'; may_lack: the test images may lack some."""
    ours, theirs = set(ours), set(theirs)
    if theirs - ours if may_lack else ours ^ theirs:
        raise ValueError(
            f"{spec.name}: {train} and {test} have different classes: {some(sorted(ours ^ theirs))} in one of them: "
            f"{say_difference(str(train), ours, str(test), theirs)}."
        )


def check_count(spec: Spec, where: Path, count: int) -> None:
    """Refuse another number of classes than the specification's, with a ValueError."""
    if count != spec.classes:
        raise ValueError(
            f"{spec.name}: {where} has {count} classes where {spec.classes} are expected: set dataset.classes={count} "
            "if this is what you mean."
        )


def tree(spec: Spec, root: Path, listed: Tree, classes: list[str]) -> Files:
    """The images of a tree; classes: their names, in the order of their labels."""
    whole, counts = Images(), []
    for name in classes:
        images = listed.classes.get(name, Images())
        whole.names += [f"{name}/{path}" for path in images.names]
        whole.sizes += images.sizes
        whole.times += images.times
        counts.append(len(images))
    labels = np.repeat(np.arange(len(classes)), counts)
    return image_files(spec, Store.of(root, whole), labels, say_left_out(listed.left_out))


def of_list(spec: Spec, root: Path, labels: dict[str, int], key: str) -> Files:
    """Images below a folder by path, with their labels; key: what to set where they are not there."""
    images = file_states(root, list(labels))
    if absent := [name for name, size, _ in images.states() if size < 0]:
        raise ValueError(
            f"{spec.name}: {len(absent)} images that the list names are not below {root}: {some(absent)}. Set {key}= "
            "to the folder that the paths are below."
        )
    return image_files(spec, Store.of(root, images), np.fromiter(labels.values(), np.int64, len(labels)))
