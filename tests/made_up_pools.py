"""Small pools of made-up images in the formats of those that the paper does not use, and of a user's own masks."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.made_up_data import add, jpeg, original_cifar, pickled, picture, put


def write_cifar10(root: Path, each: int = 6, test: int = 6) -> dict[str, dict[bytes, Any]]:
    """ROOT/data_batch_1 ... 5 and ROOT/test_batch, as Python 2 pickled them; returns their contents by name."""
    contents = {}
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        content = original_cifar(test if name == "test_batch" else each, seed=number)
        content[b"labels"] = [label % 10 for label in content.pop(b"fine_labels")]
        del content[b"coarse_labels"]
        put(root / name, pickled(content))
        contents[name] = content
    return contents


def write_svhn(root: Path, train: int = 30, test: int = 12) -> dict[str, dict[str, np.ndarray]]:
    """ROOT/train_32x32.mat and ROOT/test_32x32.mat, with the digit 0 as 10; returns their arrays."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    contents = {}
    for part, count in (("train", train), ("test", test)):
        random = np.random.default_rng(count)
        images = random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        content = {"X": images, "y": (random.permutation(count) % 10 + 1).astype(np.uint8)[:, None]}
        savemat(root / f"{part}_32x32.mat", content, do_compression=True)
        contents[part] = content
    return contents


def write_downsampled_imagenet(
    root: Path, size: int = 32, each: int = 4, test: int = 6, classes: int = 3, packed: bool = False
) -> dict[str, dict[str, Any]]:
    """ROOT/train_data_batch_1 ... 10 and ROOT/val_data, pickles or .npz, labels from 1; returns their contents."""
    contents = {}
    for number, name in enumerate([*(f"train_data_batch_{n}" for n in range(1, 11)), "val_data"]):
        count = test if name == "val_data" else each
        random = np.random.default_rng(number)
        data = random.integers(0, 256, (count, 3 * size * size), dtype=np.uint8)
        content = {"data": data, "labels": [1 + (number + at) % classes for at in range(count)]}
        if name != "val_data":
            content["mean"] = data.mean(axis=0)
        if packed:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **content)
            put(root / f"{name}.npz", buffer.getvalue())
        else:
            put(root / name, pickle.dumps(content, protocol=3))
        contents[name] = content
    return contents


WNIDS = ("n01443537", "n02099601", "n04067472")


def write_tiny_imagenet(root: Path, train: int = 6, val: int = 8) -> dict[str, str]:
    """ROOT as tiny-imagenet-200.zip unpacks; returns the class of each validation image."""
    put(root / "wnids.txt", "\n".join(reversed(WNIDS)).encode())
    for label, wnid in enumerate(WNIDS):
        for number in range(train):
            put(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", jpeg(picture(number, 64, 64, label)))
        put(root / "train" / wnid / f"{wnid}_boxes.txt", b"")
    classes = {f"val_{number}.JPEG": WNIDS[number * 7 % 3] for number in range(val)}
    for number, (name, wnid) in enumerate(classes.items()):
        put(root / "val" / "images" / name, jpeg(picture(100 + number, 64, 64, WNIDS.index(wnid))))
    lines = [f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in classes.items()]
    put(root / "val" / "val_annotations.txt", "".join(lines).encode())
    return classes


def write_mask_folder(
    root: Path, train: int = 10, val: int = 4, classes: tuple[str, ...] = ("road", "sky", "car"), city: str = ""
) -> None:
    """ROOT/images/{train,val}, ROOT/masks/{train,val} and ROOT/classes.txt; city: as Cityscapes names its files."""
    put(root / "classes.txt", "\n".join(classes).encode())
    for part, count in (("train", train), ("val", val)):
        for number in range(count):
            left, right = number % len(classes), (number + 1) % len(classes)
            pixels = np.zeros((45, 80, 3), np.uint8)
            pixels[:, :40], pixels[:, 40:] = (left * 80, 40, 200), (right * 80, 200, 40)
            mask = np.where(np.arange(80) < 40, left, right).astype(np.uint8)[None].repeat(45, axis=0)
            mask[:, 39:41] = 255
            stem = f"{city}/{city}_{number:06d}" if city else f"{number}"
            ends = ("_leftImg8bit", "_gtFine_labelTrainIds") if city else ("", "")
            put(root / "images" / part / f"{stem}{ends[0]}.jpg", jpeg(Image.fromarray(pixels)))
            put(root / "masks" / part / f"{stem}{ends[1]}.png", png_of(mask))


def png_of(mask: np.ndarray, mode: str | None = None, palette: bytes | None = None) -> bytes:
    image = Image.fromarray(mask, mode) if mode else Image.fromarray(mask)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, part: str, count: int, each: int = 5, classes: int = 3) -> list[tuple[bytes, int]]:
    """FOLDER/PART-0000.tar ..., as WebDataset has them: KEY.jpg, KEY.cls, KEY.json; returns images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [(jpeg(picture(number, 48, 40, number % classes)), number % classes) for number in range(count)]
    for first in range(0, count, each):
        with tarfile.open(folder / f"{part}-{first // each:04d}.tar", "w") as archive:
            for number in range(first, min(count, first + each)):
                content, label = samples[number]
                add(archive, f"{number:06d}.cls", str(label).encode())
                add(archive, f"{number:06d}.jpg", content)
                add(archive, f"{number:06d}.json", b"{}")
    return samples
