"""ImageNet (ILSVRC2012): the tree that torchvision reads, or the three official archives as they were fetched.

    DATA/imagenet/train/nXXXXXXXX/*.JPEG  val/nXXXXXXXX/*.JPEG
    DATA/imagenet/ILSVRC2012_img_train.tar  ILSVRC2012_img_val.tar  ILSVRC2012_devkit_t12.tar.gz

Both give the same images under the same indices: classes in the order of their WordNet ids, names sorted in each.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.cache import Arrays as Computed
from mal.data.cache import computed
from mal.data.image_set import Files, Store
from mal.data.sources.folder import tree_splits
from mal.data.sources.registry import SOURCES, files_of
from mal.listing import in_order, some

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


@SOURCES.register("imagenet")
def read_imagenet(spec: Spec, data: Path) -> tuple[Files, Files]:
    """The training and the validation images; from the tree where there is one, else from the archives."""
    root = files_of(spec, data, "imagenet")
    if (root / "train").is_dir():
        return tree_splits(spec, root / "train", root / "val", "dataset.root")
    absent = [name for name in (TRAIN, VAL, DEVKIT) if not (root / name).is_file()]
    if absent:
        raise ValueError(
            f"{spec.name}: {root} has neither the folders train and val nor the archives {', '.join(absent)}: set "
            "data= to the folder that holds imagenet, or dataset.root= to the one that holds them."
        )
    return _from_archives(spec, root, data)


# ------------------------------------------------------------------------- the archives


def _from_archives(spec: Spec, root: Path, data: Path) -> tuple[Files, Files]:
    ids, truth = _devkit(root / DEVKIT)
    train, val = (_indexed(root / name, data, "imagenet-" + part) for name, part in ((TRAIN, "train"), (VAL, "val")))
    found = [bytes(name).decode().partition("/")[0] for name in train["names"]]
    if strangers := sorted(set(found) ^ set(ids.values())):
        raise ValueError(f"{root / TRAIN} and {DEVKIT} name different classes: {some(strangers)} in one of them.")
    if len(val["names"]) != len(truth):
        raise ValueError(f"{root / VAL} has {len(val['names'])} images, but {TRUTH} {len(truth)} lines.")
    # ILSVRC2012_val_00000001.JPEG is the first line, and so on; put in the folder of its class, as in the tree.
    names = [bytes(name).decode() for name in val["names"]]
    placed = [f"{ids[truth[rank]]}/{names[at]}" for rank, at in enumerate(np.argsort(val["names"], kind="stable"))]
    order = np.argsort(val["names"], kind="stable")
    val = {"names": np.array(placed, np.bytes_), "sizes": val["sizes"][order], "offsets": val["offsets"][order]}
    return _archive(spec, root / TRAIN, train), _archive(spec, root / VAL, val)


def _archive(spec: Spec, path: Path, members: Computed) -> Files:
    names = [bytes(name).decode() for name in members["names"]]
    position = {name: at for at, name in enumerate(names)}
    order = np.array([position[name] for name in in_order(names)])
    store = Store(path, members["names"][order], members["sizes"][order], members["offsets"][order])
    folders = np.array([bytes(name).partition(b"/")[0] for name in store.names])
    labels = np.unique(folders, return_inverse=True)[1].astype(np.int64)
    assert spec.resize is not None
    return Files(store, labels, spec.size, spec.resize)


def _devkit(path: Path) -> tuple[dict[int, str], list[int]]:
    """WordNet ids of the leaves by ILSVRC2012_ID, and the id of each validation image in order."""
    from scipy.io import loadmat

    with _reading(path), tarfile.open(path, "r:gz") as archive:
        files = []
        for name in (META, TRUTH):
            try:
                member = archive.extractfile(name)
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"{path} has no {name} in it: it is another archive.")
            files.append(member.read())
    with _reading(path):
        synsets = loadmat(io.BytesIO(files[0]), squeeze_me=True, variable_names=["synsets"])["synsets"]
    leaves = synsets[synsets["num_children"] == 0]
    ids = {int(number): str(name) for number, name in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
    truth = [int(line) for line in files[1].split()]
    if strangers := sorted(set(truth) - set(ids)):
        raise ValueError(f"{path}: {TRUTH} names the classes {some(map(str, strangers))}, which {META} does not have.")
    return ids, truth


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    from scipy.io.matlab import MatReadError

    try:
        yield
    except (tarfile.TarError, MatReadError, zlib.error, EOFError, KeyError) as error:
        raise ValueError(f"{path} is cut or damaged ({error}); fetch it again.") from None


def _indexed(path: Path, data: Path, name: str) -> Computed:
    """Where each image of an archive lies: names, sizes, offsets; listed once for each state of the file."""
    state = path.stat()
    identity = f"{path.name} {state.st_size} {state.st_mtime_ns}"
    return computed(data, name, identity, lambda: _list_archive(path))


def _list_archive(path: Path) -> Computed:
    with _reading(path), path.open("rb") as file:
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
    for member in inner:
        file.seek(member.offset_data)
        found += _members(file, Path(member.name).stem + "/")
    return found
