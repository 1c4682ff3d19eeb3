"""What a dataset's section of the configuration leaves open: classes and images, counted in the user's files at launch.

Importing this module imports neither torch nor Pillow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mal.config.lists import labels_in, names_of, read_class_list, read_list, read_lists, test_part
from mal.config.people import FILES
from mal.config.shards import count_classes, find_shards, list_shards
from mal.listing import list_classes, list_images

Section = dict[str, Any]


def count_images(section: Section) -> Section:
    """The section `dataset` with absolute paths, and with classes, train and test counted where they are null."""
    for keys, count in COUNTERS.items():
        if all(key in section for key in keys):
            return count(section)
    return section


def _count_folders(section: Section) -> Section:
    _require(section, "train_images", "test_images", "each with one folder of images per class")
    _resolve(section, "train_images", "test_images", "train_list", "test_list")
    if section.get("oracle") == FILES:
        return _count_unlabelled(section)
    if section.get("train_list") or section.get("test_list"):
        _require(section, "train_list", "test_list", "each with a line `path label` for an image")
        roots = Path(section["train_images"]), Path(section["test_images"])
        lists, names = read_lists(Path(section["train_list"]), Path(section["test_list"]), roots)
        return _filled(section, classes=len(names), train=len(lists[0]), test=len(lists[1]))
    trees = [list_classes(Path(section[key]), f"dataset.{key}") for key in ("train_images", "test_images")]
    counts = [sum(len(images) for images in tree.classes.values()) for tree in trees]
    return _filled(section, classes=len(trees[0].classes), train=counts[0], test=counts[1])


def _count_unlabelled(section: Section) -> Section:
    """A pool whose images people label; the classes are those given, or those of the test images."""
    if section.get("test_list"):
        found = names_of(labels_in(Path(section["test_list"])))
        test = len(read_list(Path(section["test_list"]), section.get("class_names") or found))
    else:
        tree = list_classes(Path(section["test_images"]), "dataset.test_images")
        found, test = list(tree.classes), sum(len(images) for images in tree.classes.values())
    train = len(list_images(Path(section["train_images"]), "dataset.train_images"))
    names = list(map(str, section.get("class_names") or found))
    return _filled(section | {"class_names": names}, classes=len(names), train=train, test=test)


def _count_shards(section: Section) -> Section:
    _require(section, "train_shards", "test_shards", "patterns of WebDataset's tar files, e.g. DIR/train-*.tar")
    _resolve(section, "train_shards", "test_shards")
    if all(section.get(key) is not None for key in ("classes", "train", "test")):
        return section
    train, test = (list_shards(find_shards(section[key], f"dataset.{key}")) for key in ("train_shards", "test_shards"))
    classes = count_classes(train.labels, section["train_shards"])
    return _filled(section, classes=classes, train=len(train), test=len(test))


def _count_masks(section: Section) -> Section:
    if not section.get("root"):
        raise ValueError("dataset.root is not set: give the folder that holds images/, masks/ and the list of classes.")
    _resolve(section, "root")
    root = Path(section["root"])
    names = read_class_list(root / section["class_list"])
    parts = "train", test_part(root / "images")
    counts = [len(list_images(root / "images" / part, "dataset.root")) for part in parts]
    return _filled(section, class_names=names, classes=len(names), train=counts[0], test=counts[1])


COUNTERS: dict[tuple[str, ...], Callable[[Section], Section]] = {
    ("train_shards",): _count_shards,
    ("train_images",): _count_folders,
    ("class_list",): _count_masks,
}


def _require(section: Section, first: str, second: str, what: str) -> None:
    for key in (first, second):
        if not section.get(key):
            raise ValueError(f"dataset.{key} is not set: give both, dataset.{first}=... dataset.{second}=..., {what}.")


def _resolve(section: Section, *keys: str) -> None:
    for key in keys:
        if section.get(key):
            section[key] = str(Path(section[key]).resolve())


def _filled(section: Section, **counts: Any) -> Section:
    return section | {key: count for key, count in counts.items() if section.get(key) is None}
