"""ImageNet (ILSVRC2012): the tree that torchvision reads, or the three official archives as they are downloaded.

    DATA/imagenet/train/nXXXXXXXX/*.JPEG  val/nXXXXXXXX/*.JPEG
    DATA/imagenet/ILSVRC2012_img_train.tar  ILSVRC2012_img_val.tar  ILSVRC2012_devkit_t12.tar.gz
    DATA/imagenet/val/ILSVRC2012_val_*.JPEG, flat, with the devkit or dataset.val_labels

All give the same images under the same indices: classes in the order of their WordNet ids, names sorted in each.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import IO

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.config.shards import refuse_bad_end
from mal.data.cache import Arrays as Computed
from mal.data.cache import computed
from mal.data.image_set import Files, Store
from mal.data.sources.folder import check_count, refuse_other_classes, tree
from mal.data.sources.imagenet_truth import DEVKIT, Truth, has_devkit, read_truth, reading
from mal.data.sources.registry import SOURCES, files_of, image_files
from mal.listing import Images, Tree, in_order, list_classes, list_images, say_left_out, some

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


@SOURCES.register("imagenet")
def read_imagenet(spec: Spec, data: Path) -> tuple[Files, Files]:
    """The training and the validation images, each from its folder where there is one, else from its archive.

    Validation images that lie in no folders of classes are labelled by dataset.val_labels or by the development kit;
    those that do are compared with it where it is there.
    """
    root = files_of(spec, data, "imagenet")
    archived = [name for name, folder in ((TRAIN, "train"), (VAL, "val")) if not (root / folder).is_dir()]
    if VAL in archived and not (spec.val_labels or has_devkit(root)):
        archived.append(DEVKIT)
    if absent := [name for name in archived if not (root / name).is_file()]:
        raise ValueError(
            f"{spec.name}: {root} has neither the folders train and val nor the archives {', '.join(absent)}: set "
            "data= to the folder that holds imagenet, or dataset.root= to the one that holds them."
        )
    train, classes = _training(spec, root, data)
    check_count(spec, root / "train" if TRAIN not in archived else root / TRAIN, len(classes))
    return train, _validation(spec, root, data, classes)


def _training(spec: Spec, root: Path, data: Path) -> tuple[Files, list[str]]:
    """The training images and the WordNet ids of their classes, sorted."""
    if (root / "train").is_dir():
        listed = list_classes(root / "train", "dataset.root")
        classes = list(listed.classes)
        return tree(spec, root / "train", listed, classes), classes
    members = _indexed(root / TRAIN, data, "imagenet-train")
    classes = sorted({bytes(name).decode().partition("/")[0] for name in members["names"]})
    return _archive(spec, root / TRAIN, members), classes


def _validation(spec: Spec, root: Path, data: Path, classes: list[str]) -> Files:
    truth = read_truth(root, spec.val_labels, classes)
    folder = root / "val"
    if not folder.is_dir():
        assert truth is not None
        return _archived_validation(spec, root / VAL, _indexed(root / VAL, data, "imagenet-val"), truth)
    if any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder)):
        listed = list_classes(folder, "dataset.root")
        refuse_other_classes(spec, root / "train", classes, folder, listed.classes)
        if truth is not None:
            _check_placed(folder, listed, truth)
        return tree(spec, folder, listed, classes)
    images = list_images(folder, "dataset.root")
    if truth is None:
        raise ValueError(
            f"{spec.name}: {folder} has {len(images)} images and no folders of classes. Put {DEVKIT} into {root}, or "
            "set dataset.val_labels= to a CSV with the name and the class (WordNet id) of each."
        )
    labels = truth.labels(str(folder), images.names, {name: label for label, name in enumerate(classes)})
    order = sorted(range(len(images)), key=lambda at: (labels[at], images.names[at]))
    states = list(images.states())
    store = Store.of(folder, Images.of(states[at] for at in order))
    return image_files(spec, store, np.array([labels[at] for at in order], np.int64), say_left_out(images.left_out))


def _check_placed(folder: Path, listed: Tree, truth: Truth) -> None:
    """Refuse validation images that lie in another class's folder than the development kit says."""
    placed = [(path, name) for name, images in listed.classes.items() for path in images.names]
    placed.sort(key=lambda pair: pair[0].rpartition("/")[2])
    ids = truth.ids([path for path, _ in placed])
    if ids is None:
        return  # some are not there, so which line is whose cannot be told
    wrong = [f"{name}/{path} (is {id_})" for (path, name), id_ in zip(placed, ids, strict=True) if id_ != name]
    if wrong:
        raise ValueError(
            f"{folder}: {len(wrong)} images are in the folder of another class than {truth.source} says: {some(wrong)}."
        )


# ------------------------------------------------------------------------- the archives


def _archived_validation(spec: Spec, path: Path, members: Computed, truth: Truth) -> Files:
    # ILSVRC2012_val_00000001.JPEG is the first line, and so on; put in the folder of its class, as in the tree.
    order = np.argsort(members["names"], kind="stable")
    names = [bytes(members["names"][at]).decode() for at in order]
    ids = truth.ids(names)
    if ids is None:
        raise ValueError(f"{path} has {len(names)} images, but {truth.source} {truth.count} lines.")
    placed = np.array([f"{id_}/{name}" for id_, name in zip(ids, names, strict=True)], np.bytes_)
    sizes, offsets = members["sizes"][order], members["offsets"][order]
    return _archive(spec, path, {"names": placed, "sizes": sizes, "offsets": offsets})


def _archive(spec: Spec, path: Path, members: Computed) -> Files:
    names = [bytes(name).decode() for name in members["names"]]
    position = {name: at for at, name in enumerate(names)}
    order = np.array([position[name] for name in in_order(names)])
    store = Store(path, members["names"][order], members["sizes"][order], members["offsets"][order])
    folders = np.array([bytes(name).partition(b"/")[0] for name in store.names])
    labels = np.unique(folders, return_inverse=True)[1].astype(np.int64)
    return image_files(spec, store, labels)


def _indexed(path: Path, data: Path, name: str) -> Computed:
    """Where each image of an archive lies: names, sizes, offsets; listed once for each state of the file."""
    state = path.stat()
    identity = f"{path.name} {state.st_size} {state.st_mtime_ns}"
    return computed(data, name, identity, lambda: _list_archive(path))


def _list_archive(path: Path) -> Computed:
    with reading(path), path.open("rb") as file:
        members = _members(file, "")
    if not members:
        raise ValueError(f"{path} has no image in it.")
    names, sizes, offsets = zip(*members, strict=True)
    if offsets[-1] + sizes[-1] > path.stat().st_size:
        raise ValueError(f"{path} ends in the middle of {names[-1]}: it is cut; fetch it again.")
    return {
        "names": np.array([name.encode() for name in names], np.bytes_),
        "sizes": np.array(sizes, np.int64),
        "offsets": np.array(offsets, np.int64),
    }


def _members(file: IO[bytes], folder: str) -> list[tuple[str, int, int]]:
    """The images of the archive that begins here, and those of the archives in it, one for each class."""
    found: list[tuple[str, int, int]] = []
    inner: list[tarfile.TarInfo] = []
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".tar"):
                inner.append(member)
            elif member.isfile():
                found.append((folder + member.name.removeprefix("./"), member.size, member.offset_data))
        refuse_bad_end(archive)
    for member in inner:
        file.seek(member.offset_data)
        found += _members(file, Path(member.name).stem + "/")
    return found
