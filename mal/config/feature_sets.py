"""Features of a frozen encoder as a dataset: what features=DIR makes of the section `dataset`, without torch.

A set is a folder: train.npy and test.npy, float16 or float32 (N, d); train_labels.npy and test_labels.npy, integers
(N,); and, where `python -m mal.features` made it, manifest.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST = "manifest.json"
PARTS = ("train", "test")
OVER = {"source": "features", "size": 1, "crop": None, "pad_crop": 0, "flip": False, "resize": None}


def values_file(folder: Path, part: str) -> Path:
    """Of the features of a part, train or test."""
    return folder / f"{part}.npy"


def labels_file(folder: Path, part: str) -> Path:
    """Of its labels."""
    return folder / f"{part}_labels.npy"


def open_array(path: Path) -> np.ndarray:
    """An .npy file mapped into memory, private to the process; ValueError naming it where it is none."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: a set of features has train.npy, train_labels.npy, test.npy and test_labels.npy."
        ) from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not an .npy file that can be read ({error}).") from None
    assert isinstance(array, np.ndarray)
    return array


def open_part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, d), mapped, and labels int64 (N,) of a part; ValueError naming the file where they are not that."""
    values, labels = open_array(values_file(folder, part)), open_array(labels_file(folder, part))
    if values.ndim != 2 or values.dtype not in (np.float16, np.float32):
        raise ValueError(
            f"{values_file(folder, part)} is {values.dtype} {values.shape}, not float16 or float32 (N, d)."
        )
    if labels.shape != values.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{labels_file(folder, part)} is {labels.dtype} {labels.shape}, not integers ({len(values)},)."
        )
    return values, labels.astype(np.int64)


def as_features(section: dict[str, Any], given: str) -> dict[str, Any]:
    """The section `dataset` reading a set of features instead of images; counts that are null are filled in.

    Raises ValueError where the folder holds no set, or one of other images than the section says.
    """
    folder = Path(given).expanduser().resolve()
    if section["task"] != "classification":
        raise ValueError(f"features={given} is for classification: {section['name']} is for {section['task']}.")
    if not folder.is_dir():
        raise ValueError(
            f"features={given} is no folder and no backbone: give features=resnet18 backbone.weights=imagenet, or a "
            "folder that `python -m mal.features` made, or one with train.npy, train_labels.npy, test.npy and "
            "test_labels.npy."
        )
    (train, labels), (test, _) = (open_part(folder, part) for part in PARTS)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"features={given}: train.npy has {train.shape[1]} features per image, test.npy {test.shape[1]}."
        )
    counted = {"train": len(train), "test": len(test), "classes": int(labels.max(initial=0)) + 1}
    for key, count in counted.items():
        said = section.get(key)
        if said is not None and (said < count if key == "classes" else said != count):
            raise ValueError(
                f"features={given} has {key}={count}, dataset={section['name']} has {said}: it is of other images."
            )
    filled = {key: count for key, count in counted.items() if section.get(key) is None}
    return section | OVER | filled | {"channels": train.shape[1], "features": str(folder), "encoder": _encoder(folder)}


def _encoder(folder: Path) -> str | None:
    """What made the features, in words; None for somebody's own."""
    path = folder / MANIFEST
    return str(json.loads(path.read_text())["encoder"]) if path.is_file() else None
