"""Small data sets of made-up images, written in exactly the formats that the real ones come in."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from tests.chains import made_up_images

SYNSETS = ("n01440764", "n01443537", "n02099601")  # tench, goldfish, golden retriever


def picture(seed: int, width: int, height: int, hue: int = 0) -> Image.Image:
    """A smooth image, so that JPEG keeps it nearly as it is; `hue` 0..2 makes one channel brighter."""
    coarse = np.random.default_rng(seed).integers(0, 160, (4, 4, 3), dtype=np.uint8)
    coarse[:, :, hue % 3] += 90
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# ------------------------------------------------------------------------- ImageNet


def imagenet_images(train: int = 8, val: int = 4) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """JPEGs by path below train/ and below val/: `train` and `val` of each class.

    As in ImageNet, sizes differ, and some are grey, CMYK, or PNG under the name of a JPEG.
    """
    parts: list[dict[str, bytes]] = [{}, {}]
    number = 0
    for label, synset in enumerate(SYNSETS):
        for at in range(train + val):
            number += 1
            image = picture(number, 40 + 3 * at, 64 - 3 * at, label)
            content = jpeg(image)
            if at == 1:
                content = jpeg(image.convert("L"))
            if at == 2:
                content = jpeg(image.convert("CMYK"))
            if at == 3:
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                content = buffer.getvalue()
            if at < train:
                # numbers of different length: 10 before 9 in the order of names
                parts[0][f"{synset}/{synset}_{at + 5}.JPEG"] = content
            else:
                parts[1][f"{synset}/ILSVRC2012_val_{(at * 7 + label * 3) % 100:08d}.JPEG"] = content
    return parts[0], parts[1]


def write_imagenet_tree(root: Path, train: int = 8, val: int = 4) -> None:
    """ROOT/train/nXXXXXXXX/*.JPEG and ROOT/val/nXXXXXXXX/*.JPEG."""
    for part, images in zip(("train", "val"), imagenet_images(train, val), strict=True):
        for name, content in images.items():
            put(root / part / name, content)


def write_imagenet_archives(root: Path, train: int = 8, val: int = 4) -> None:
    """The three archives of the challenge."""
    write_archives(root, *imagenet_images(train, val), SYNSETS)


def write_archives(
    root: Path, training: dict[str, bytes], validation: dict[str, bytes], synsets: Sequence[str]
) -> None:
    """A tar of tars, a flat tar, the development kit; images by SYNSET/NAME, those of validation named by number."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in reversed(synsets):  # the archive's order is nobody's promise
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for name in reversed([name for name in training if name.startswith(synset)]):
                    add(archive, name.partition("/")[2], training[name])
            add(outer, f"{synset}.tar", inner.getvalue())
    by_name = {name.partition("/")[2]: name for name in validation}
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for name in sorted(by_name, reverse=True):
            add(archive, name, validation[by_name[name]])
    # ILSVRC2012_ID is the challenge's own order, not that of the WordNet ids; inner nodes have children.
    ids = {synset: number for number, synset in enumerate(reversed(synsets), 1)}
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")]
    rows = np.empty((len(ids) + 1, 1), dtype=fields)
    for row, (wnid, number) in enumerate([*ids.items(), ("n00001740", 1001)]):
        rows[row, 0] = (float(number), wnid, "a word", "what it means", 2.0 if number > 1000 else 0.0, [])
    meta = io.BytesIO()
    savemat(meta, {"synsets": rows})
    truth = "".join(f"{ids[by_name[name].partition('/')[0]]}\n" for name in sorted(by_name))
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/readme.txt", b"read me")
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


# ------------------------------------------------------------------------- iNaturalist 2018

CATEGORIES = (3, 17, 4200, 8141)


def write_inaturalist2018(root: Path, train: int = 24, val: int = 8) -> dict[str, dict[str, int]]:
    """Both JSON files and the images, more of the first categories; returns the category of each path, by part."""
    found = {}
    for part, count in (("train", train), ("val", val)):
        category_of = {}
        for number in range(count):
            category = CATEGORIES[min(number % 6, 3) if part == "train" else number % 4]
            group = "Aves" if category < 100 else "Plantae"
            name = f"train_val2018/{group}/{category}/{part}{number * 7919 % 997:03d}.jpg"
            put(root / name, jpeg(picture(category + number, 48, 40 + number, CATEGORIES.index(category))))
            category_of[name] = category
        images = [
            {"id": 1000 + at, "file_name": name, "width": 48, "height": 40, "rights_holder": "", "license": 3}
            for at, name in enumerate(category_of)
        ]
        annotations = [
            {"id": 1000 + at, "image_id": 1000 + at, "category_id": category}
            for at, category in reversed(list(enumerate(category_of.values())))
        ]
        content = {
            "info": {"year": 2018, "version": 1},
            "licenses": [{"id": 3, "name": "a licence", "url": ""}],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": str(i), "supercategory": "?"} for i in reversed(CATEGORIES)],
        }
        put(root / f"{part}2018.json", json.dumps(content).encode())
        found[part] = category_of
    return found


# ------------------------------------------------------------------------- BDD100K


def write_bdd100k(root: Path, train: int = 12, val: int = 6, classes: int = 19) -> None:
    """images/10k/*/NAME.jpg and labels/sem_seg/masks/*/NAME.png: halves of two classes with a border of 255."""
    for part, count, first in (("train", train, 0), ("val", val, 500)):
        for number in range(first, first + count):
            stem = f"{number * 2654435761 % 2**32:08x}-{number:08x}"
            left, right = number % classes, (number * 5 + 1) % classes
            colours = np.zeros((45, 80, 3), np.uint8)
            colours[:, :40], colours[:, 40:] = (left * 12, 40, 200), (right * 12, 200, 40)
            mask = np.where(np.arange(80) < 40, left, right).astype(np.uint8)[None].repeat(45, axis=0)
            mask[:, 39:41] = 255
            put(root / "images/10k" / part / f"{stem}.jpg", jpeg(Image.fromarray(colours)))
            buffer = io.BytesIO()
            Image.fromarray(mask).save(buffer, "PNG")
            put(root / "labels/sem_seg/masks" / part / f"{stem}.png", buffer.getvalue())


# ------------------------------------------------------------------------- a user's folders


def write_folders(
    root: Path, train: int = 10, test: int = 4, classes: tuple[str, ...] = ("ant", "bee", "wasp")
) -> None:
    """ROOT/train/CLASS/... and ROOT/test/CLASS/..., PNG and JPEG, one folder deeper here and there."""
    classes = ("ant", "bee", "wasp")
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            for number in range(count):
                image = picture(1000 * label + number, 36, 44, label)
                if number % 2:
                    put(root / part / name / f"{number}.jpg", jpeg(image))
                else:
                    path = root / part / name / "more" / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.save(path)
    put(root / "train" / classes[0] / "notes.txt", b"not an image")


# ------------------------------------------------------------------------- CIFAR100's pickles


class PythonTwoPickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes byte strings with Python 2's opcodes, as CIFAR100's files were written."""

    def save_python_two_string(self, content: bytes) -> None:
        if len(content) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(content)]) + content)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]
    dispatch[bytes] = save_python_two_string
    dispatch[str] = lambda self, text: self.save_python_two_string(text.encode("latin1"))


def original_cifar(count: int, seed: int) -> dict[bytes, Any]:
    """The content of one of CIFAR100's files."""
    random = np.random.default_rng(seed)
    return {
        b"filenames": [b"image_%06d.png" % i for i in range(count)],
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": random.integers(0, 100, count).tolist(),
        b"coarse_labels": random.integers(0, 20, count).tolist(),
        b"data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
    }


def pickled(content: object) -> bytes:
    """As Python 2 pickled it, with the name that numpy's module had then."""
    buffer = io.BytesIO()
    PythonTwoPickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_cifar100(root: Path, train: int = 12, test: int = 6) -> None:
    """ROOT/train and ROOT/test."""
    for part, count in (("train", train), ("test", test)):
        put(root / part, pickled(original_cifar(count, seed=count)))


# ------------------------------------------------------------------------- Fashion-MNIST's idx files


def idx(array: np.ndarray) -> bytes:
    """The idx format: 0, 0, type, dimensions, big-endian sizes, data."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_fashion(folder: Path, zipped: bool = False) -> dict[str, np.ndarray]:
    """The four idx files, 30 and 20 images; returns their arrays by name."""
    arrays = {}
    for part, count, seed in (("train", 30, 0), ("t10k", 20, 1)):
        arrays[f"{part}-images-idx3-ubyte"] = made_up_images(count, 1, 28, seed)[:, 0]
        arrays[f"{part}-labels-idx1-ubyte"] = np.random.default_rng(seed).permutation(count) % 10
    for name, array in arrays.items():
        put(folder / (f"{name}.gz" if zipped else name), gzip.compress(idx(array)) if zipped else idx(array))
    return arrays
