"""Tiny ImageNet: 200 classes of ImageNet at 64x64, as its archive unpacks.

DATA/tiny-imagenet-200/train/nXXXXXXXX/images/*.JPEG
val/images/*.JPEG  val/val_annotations.txt (name, class, box)
"""

from __future__ import annotations

from pathlib import Path

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Files
from mal.data.sources.folder import of_list, tree
from mal.data.sources.registry import SOURCES, files_of
from mal.listing import list_classes, some


@SOURCES.register("tiny_imagenet")
def read_tiny_imagenet(spec: Spec, data: Path) -> tuple[Files, Files]:
    """The training images and the validation images, whose classes the file of annotations names."""
    root = files_of(spec, data, "tiny-imagenet-200")
    training = list_classes(root / "train", "data or dataset.root")
    classes = list(training.classes)
    label_of = {name: label for label, name in enumerate(classes)}
    annotated = _annotated(root / "val" / "val_annotations.txt")
    if strangers := sorted(set(annotated.values()) - label_of.keys()):
        raise ValueError(f"{root}/val/val_annotations.txt names classes that train does not have: {some(strangers)}.")
    labels = {name: label_of[annotated[name]] for name in sorted(annotated)}
    return tree(spec, root / "train", training, classes), of_list(spec, root / "val" / "images", labels, "dataset.root")


def _annotated(path: Path) -> dict[str, str]:
    """The class of each validation image by its name."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: set data= to the folder that holds tiny-imagenet-200.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error}).") from None
    if wrong := [number for number, row in enumerate(rows, 1) if len(row) < 2 or "/" in row[0] or row[0] == ".."]:
        raise ValueError(f"{path}, line {wrong[0]}: a name and a class are expected.")
    found = {row[0]: row[1] for row in rows}
    if not found or len(found) < len(rows):
        raise ValueError(f"{path} {'names an image twice' if found else 'is empty'}.")
    return found
