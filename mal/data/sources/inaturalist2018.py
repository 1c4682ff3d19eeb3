"""iNaturalist 2018: its JSON files and the tree of images that they name.

DATA/inaturalist2018/train2018.json  val2018.json  train_val2018/SUPERCATEGORY/CATEGORY/NAME.jpg
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Files, Store
from mal.data.sources.registry import SOURCES, files_of, image_files
from mal.listing import file_states, in_order, say_difference, some


@SOURCES.register("inaturalist2018")
def read_inaturalist2018(spec: Spec, data: Path) -> tuple[Files, Files]:
    """The images of train2018.json and of val2018.json, sorted by path; classes in the order of their category ids."""
    root = files_of(spec, data, "inaturalist2018")
    train, train_ids = _annotated(root / "train2018.json")
    test, test_ids = _annotated(root / "val2018.json")
    if train_ids != test_ids:
        odd = some(str(i) for i in sorted(set(train_ids) ^ set(test_ids)))
        which = say_difference("train2018.json", map(str, train_ids), "val2018.json", map(str, test_ids))
        raise ValueError(
            f"{root}: train2018.json and val2018.json have different categories: {odd} in one of them: {which}."
        )
    if len(train_ids) != spec.classes:
        raise ValueError(
            f"{root / 'train2018.json'} has {len(train_ids)} categories where {spec.classes} are expected: set "
            f"dataset.classes={len(train_ids)} if this is what you mean."
        )
    label_of = {category: label for label, category in enumerate(train_ids)}
    return _files(spec, root, train, label_of), _files(spec, root, test, label_of)


def _files(spec: Spec, root: Path, category_of: dict[str, int], label_of: dict[int, int]) -> Files:
    names = in_order(category_of)
    images = file_states(root, names)
    if absent := [name for name, size, _ in images.states() if size < 0]:
        raise ValueError(f"{root}: {len(absent)} images that the JSON names are missing: {some(absent)}.")
    labels = np.array([label_of[category_of[name]] for name in names], dtype=np.int64)
    return image_files(spec, Store.of(root, images), labels)


def _short(error: Exception) -> str:
    """What an error says, without the content of the file, which may be in it."""
    if isinstance(error, UnicodeDecodeError):
        packed = bytes(error.object[:2]) == b"\x1f\x8b"
        return "it is packed by gzip: unpack it" if packed else "it is no text"
    return f"{type(error).__name__}: {str(error)[:200]}"


def _annotated(path: Path) -> tuple[dict[str, int], list[int]]:
    """The category of each image by its path, and all category ids, sorted."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: set data= to the folder that holds inaturalist2018, or dataset.root=.")
    try:
        content: Any = json.loads(path.read_bytes())
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        pairs = [(int(a["image_id"]), int(a["category_id"])) for a in content["annotations"]]
        categories = sorted(int(category["id"]) for category in content["categories"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path} is not iNaturalist's JSON ({_short(error)}): it is cut or another file.") from None
    if len(set(categories)) < len(categories):
        twice = [str(one) for one, other in pairwise(categories) if one == other]
        raise ValueError(f"{path} lists categories twice: {some(twice)}.")
    category_of = dict(pairs)
    if len(category_of) < len(pairs) or category_of.keys() != names.keys():
        raise ValueError(f"{path}: {len(names)} images and {len(pairs)} annotations are not one for each other.")
    if strangers := sorted(set(category_of.values()) - set(categories)):
        raise ValueError(f"{path} annotates with categories that it does not list: {some(map(str, strangers))}.")
    if outside := [name for name in names.values() if name.startswith("/") or ".." in PurePosixPath(name).parts]:
        raise ValueError(f"{path} names images outside its folder: {some(outside)}.")
    if len(set(names.values())) < len(names):
        raise ValueError(f"{path} names an image twice.")
    return {name: category_of[number] for number, name in names.items()}, categories
