"""Pools in their real formats: CIFAR10, SVHN, downsampled ImageNet, Tiny ImageNet, lists of files, folders of masks."""

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.data.dataset import load
from mal.data.decode import Reading, decode_image
from mal.data.image_set import Arrays, Files, MapFiles
from tests.made_up_data import add, put, write_folders
from tests.made_up_pools import (
    WNIDS,
    png_of,
    write_cifar10,
    write_downsampled_imagenet,
    write_mask_folder,
    write_shards,
    write_svhn,
    write_tiny_imagenet,
)


def chain(*overrides: str) -> Chain:
    (config,) = compose_sweep(["methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1", *overrides]).chains
    return config


def all_labels(split: Any) -> list[int]:
    return np.asarray(split.labels).tolist()


# ------------------------------------------------------------------------- arrays

CIFAR10 = ("dataset=cifar10", "dataset.train=30", "dataset.test=6")


def test_cifar10_is_its_five_batches_and_the_test_batch(tmp_path: Path) -> None:
    contents = write_cifar10(tmp_path / "cifar-10-batches-py")
    found = load(chain(*CIFAR10).dataset, tmp_path, 0)
    training = [contents[f"data_batch_{n}"] for n in range(1, 6)]
    assert np.array_equal(found.train.images, np.concatenate([c[b"data"] for c in training]).reshape(-1, 3, 32, 32))
    assert all_labels(found.train) == [label for c in training for label in c[b"labels"]]
    assert all_labels(found.test) == contents["test_batch"][b"labels"]
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"\x80\x02}")
    with pytest.raises(ValueError, match="data_batch_3 is not CIFAR10's python version"):
        load(chain(*CIFAR10).dataset, tmp_path, 0)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(ValueError, match=r"data_batch_2 is missing: unpack cifar-10-python\.tar\.gz"):
        load(chain(*CIFAR10).dataset, tmp_path, 0)


def test_cifar10_imbalanced_thins_its_classes(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", each=100)
    found = load(chain("dataset=cifar10_imbalanced", "dataset.train=500", "dataset.test=6").dataset, tmp_path, 0)
    counts = np.bincount(found.oracle.label(found.pool), minlength=10)
    assert counts.min() == 5
    assert counts.max() > 30


def test_svhns_digits_are_turned_upright_and_ten_is_zero(tmp_path: Path) -> None:
    contents = write_svhn(tmp_path / "svhn")
    spec = chain("dataset=svhn", "dataset.train=30", "dataset.test=12").dataset
    found = load(spec, tmp_path, 0)
    assert isinstance(found.train, Arrays)
    for index in (0, 17):
        assert np.array_equal(found.train.images[index].transpose(1, 2, 0), contents["train"]["X"][..., index])
    assert all_labels(found.test) == (contents["test"]["y"].ravel() % 10).tolist()
    path = tmp_path / "svhn" / "test_32x32.mat"
    whole = path.read_bytes()
    for content in (whole[:500], b"", b"<html>", whole[:-4000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"test_32x32\.mat is not SVHN's file of MATLAB"):
            load(spec, tmp_path, 0)
    path.unlink()
    with pytest.raises(ValueError, match=r"test_32x32\.mat is missing: set data="):
        load(spec, tmp_path, 0)


@pytest.mark.parametrize(("size", "packed"), [(32, False), (32, True), (64, False)])
def test_downsampled_imagenet_is_its_batches_with_labels_from_0(tmp_path: Path, size: int, packed: bool) -> None:
    name = f"imagenet{size}"
    contents = write_downsampled_imagenet(tmp_path / name, size, packed=packed)
    spec = chain(f"dataset={name}", "dataset.train=40", "dataset.test=6", "dataset.classes=3").dataset
    found = load(spec, tmp_path, 0)
    training = [contents[f"train_data_batch_{n}"] for n in range(1, 11)]
    assert np.array_equal(found.train.images.reshape(40, -1), np.concatenate([c["data"] for c in training]))
    assert all_labels(found.train) == [label - 1 for c in training for label in c["labels"]]
    assert all_labels(found.test) == [label - 1 for label in contents["val_data"]["labels"]]
    batch = next((tmp_path / name).glob("train_data_batch_7*"))
    whole = batch.read_bytes()
    for content in (whole[:-100], b"", whole[: len(whole) // 2]):
        batch.write_bytes(content)
        with pytest.raises(ValueError, match=r"train_data_batch_7.* is not a batch of downsampled ImageNet"):
            load(spec, tmp_path, 0)
    batch.unlink()
    with pytest.raises(ValueError, match=r"train_data_batch_7\[\.npz\] is missing"):
        load(spec, tmp_path, 0)


# ------------------------------------------------------------------------- files


def test_tiny_imagenets_flat_validation_images_have_the_classes_of_its_annotations(tmp_path: Path) -> None:
    classes = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    spec = chain("dataset=tiny_imagenet", "dataset.classes=3", "dataset.train=18", "dataset.test=8").dataset
    found = load(spec, tmp_path, 0)
    assert isinstance(found.test, Files)
    for index in range(8):
        assert WNIDS[all_labels(found.test)[index]] == classes[found.test.store.name(index)]
    assert all_labels(found.train) == [label for label in range(3) for _ in range(6)]
    annotations = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    for text, words in (
        (whole.replace(WNIDS[0], "n00000001"), "names classes that train does not have: n00000001"),
        (whole + "val_0.JPEG\tn01443537\t0\t0\t0\t0\n", "names an image twice"),
        (whole.replace("val_3.JPEG", "val_33.JPEG"), r"not below .*val/images: val_33\.JPEG"),
        ("", "is empty"),
        ("../x", "line 1: a name and a class are expected"),
    ):
        annotations.write_text(text)
        with pytest.raises(ValueError, match=words):
            load(spec, tmp_path, 0)


def with_lists(root: Path, train: str, test: str, *more: str) -> Chain:
    put(root / "train.txt", train.encode())
    put(root / "test.txt", test.encode())
    places = [f"dataset.{part}_images={root}/{part}" for part in ("train", "test")]
    lists = [f"dataset.{part}_list={root}/{part}.txt" for part in ("train", "test")]
    return chain("dataset=folder", "dataset.size=32", "dataset.crop=28", *places, *lists, *more)


def test_lists_choose_a_long_tail_of_a_folder(tmp_path: Path) -> None:
    write_folders(tmp_path)
    train = "wasp/1.jpg 2\nant/1.jpg 0\nant/3.jpg 0\nbee/1.jpg 1\nant/more/0.png 0\n"
    config = with_lists(tmp_path, train, "ant/1.jpg 0\nwasp/1.jpg 2\n")
    spec = config.dataset
    assert (spec.classes, spec.train, spec.test) == (3, 5, 2)
    found = load(spec, tmp_path, 0)
    assert isinstance(found.train, Files)
    names = [found.train.store.name(i) for i in range(5)]
    assert dict(zip(names, all_labels(found.train), strict=True)) == {
        "ant/1.jpg": 0,
        "ant/3.jpg": 0,
        "ant/more/0.png": 0,
        "bee/1.jpg": 1,
        "wasp/1.jpg": 2,
    }
    image = (tmp_path / "train" / "wasp" / "1.jpg").read_bytes()
    assert np.array_equal(found.train.read(names.index("wasp/1.jpg")), decode_image(image, Reading(32, "square")))
    (tmp_path / "train" / "bee" / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 images that the list names are not below .*train: bee/1\.jpg"):
        load(spec, tmp_path, 0)
    with pytest.raises(ValueError, match=r"dataset\.test_list is not set: give both"):
        chain(*(f"dataset.{part}_images={tmp_path}" for part in ("train", "test")), "dataset=folder",
              f"dataset.train_list={tmp_path}/train.txt")  # fmt: skip


def test_a_class_without_a_test_folder_is_allowed_and_one_without_training_images_is_not(tmp_path: Path) -> None:
    import shutil

    write_folders(tmp_path)
    shutil.rmtree(tmp_path / "test" / "bee")
    places = [f"dataset.{part}_images={tmp_path}/{part}" for part in ("train", "test")]
    found = load(chain("dataset=folder", *places).dataset, tmp_path, 0)
    assert sorted(set(all_labels(found.test))) == [0, 2]
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / "moth")
    shutil.copytree(tmp_path / "test" / "ant", tmp_path / "test" / "bee")
    config = chain("dataset=folder", *places)
    with pytest.raises(ValueError, match=r"bee, moth in one of them: moth in .*train only; bee in .*test only"):
        load(config.dataset, tmp_path, 0)


def shards(root: Path, *more: str) -> Chain:
    places = [f"dataset.{part}_shards={root}/{part}-*.tar" for part in ("train", "test")]
    return chain("dataset=webdataset", "dataset.name=birds", "dataset.size=32", "dataset.crop=28", *places, *more)


def test_webdatasets_shards_are_read_in_place(tmp_path: Path) -> None:
    samples = {part: write_shards(tmp_path, part, count) for part, count in (("train", 13), ("test", 7))}
    spec = shards(tmp_path).dataset
    assert (spec.classes, spec.train, spec.test) == (3, 13, 7)
    for asked in (spec, shards(tmp_path, f"dataset.train_shards={tmp_path}/train-{{0000..0002}}.tar").dataset):
        found = load(asked, tmp_path / "data", 0)
        for split, part in ((found.train, "train"), (found.test, "test")):
            assert isinstance(split, Files)
            assert all_labels(split) == [label for _, label in samples[part]]
            for index, (content, _) in enumerate(samples[part]):
                assert np.array_equal(split.read(index), decode_image(content, Reading(32, "square", exif=True)))


def renamed(content: bytes, old: str, new: str) -> bytes:
    """A tar archive with another name of one member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive, tarfile.open(fileobj=buffer, mode="w") as other:
        for member in archive:
            data = archive.extractfile(member)
            assert data is not None
            add(other, new if member.name == old else member.name, data.read())
    return buffer.getvalue()


def relabelled(content: bytes, name: str, label: bytes) -> bytes:
    """A tar archive with other content under one name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive, tarfile.open(fileobj=buffer, mode="w") as other:
        for member in archive:
            data = archive.extractfile(member)
            assert data is not None
            add(other, member.name, label if member.name == name else data.read())
    return buffer.getvalue()


def test_a_wrong_shard_is_named(tmp_path: Path) -> None:
    for part, count in (("train", 13), ("test", 7)):
        write_shards(tmp_path, part, count)
    spec = shards(tmp_path).dataset
    path = tmp_path / "train-0001.tar"
    whole = path.read_bytes()
    for content, words in (
        (renamed(whole, "000006.cls", "000006.txt"), "have no image or no .cls: 000006"),
        (renamed(whole, "000006.jpg", "000007.jpg"), "the key 000007 has two images"),
        (whole.replace(b"000008.cls", b"\0" * 10), r"train-0001\.tar is not a shard .*damaged or cut at byte"),
        (b"<html>" * 200, "is not a shard"),
        (gzip.compress(whole), "it is packed, unpack it"),
        (renamed(whole, "000007.cls", "000006.cls"), "the key 000006 has two .cls"),
        (relabelled(whole, "000006.cls", b"9" * 50), "000006.cls holds b'9999.*not the number of a class"),
        (relabelled(whole, "000006.cls", b"5"), "the classes 3, 4 have no image"),
        (whole[: len(whole) // 2], "train-0001"),
        (b"", "train-0001"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load(spec, tmp_path / "data", 0)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"train-0001\.tar is no file"):
        load(spec, tmp_path / "data", 0)
    path.unlink()
    with pytest.raises(ValueError, match=r"dataset\.train_shards=.*train-0001\.tar are missing"):
        shards(tmp_path, f"dataset.train_shards='{tmp_path}/train-{{0000..0002}}.tar'")
    with pytest.raises(ValueError, match=r"names no file: give e\.g\. dataset\.train_shards=DIR"):
        shards(tmp_path, f"dataset.train_shards={tmp_path}/none-*.tar")


def mask_folder(root: Path, *more: str) -> Chain:
    return chain("dataset=mask_folder", f"dataset.root={root}", "dataset.size=32", "backbone=small_drn", *more)


@pytest.mark.parametrize("city", ["", "aachen"])
def test_a_folder_of_masks_is_paired_and_named_by_its_list(tmp_path: Path, city: str) -> None:
    write_mask_folder(tmp_path, city=city)
    ends = ["dataset.image_suffix=_leftImg8bit", "dataset.mask_suffix=_gtFine_labelTrainIds"] if city else []
    config = mask_folder(tmp_path, *ends)
    spec = config.dataset
    assert (spec.classes, spec.train, spec.test, spec.class_names) == (3, 10, 4, ["road", "sky", "car"])
    found = load(spec, tmp_path / "data", 0)
    assert isinstance(found.train, Files)
    assert isinstance(found.train.labels, MapFiles)
    for index in range(10):
        map_ = found.train.labels.read(index)
        assert abs(int(found.train.read(index)[0, 5, 5]) - 80 * int(map_[5, 5])) < 8


def test_images_and_masks_of_one_stem_or_alone_are_refused_or_left_out(tmp_path: Path) -> None:
    write_mask_folder(tmp_path)
    config = mask_folder(tmp_path)
    (tmp_path / "masks" / "train" / "3.png").unlink()
    put(tmp_path / "masks" / "train" / "33.png", png_of(np.zeros((45, 80), np.uint8)))
    with pytest.raises(ValueError, match=r"images without a mask: 3; masks without an image: 33.*skip_unpaired=true"):
        load(config.dataset, tmp_path, 0)
    fewer = load(mask_folder(tmp_path, "dataset.skip_unpaired=true", "dataset.train=9").dataset, tmp_path, 0)
    assert isinstance(fewer.train, Files)
    assert len(fewer.train) == 9
    assert "2 images without a mask" in fewer.train.not_images
    (tmp_path / "masks" / "train" / "33.png").unlink()
    put(tmp_path / "masks" / "train" / "2.bmp", (tmp_path / "masks" / "train" / "2.png").read_bytes())
    with pytest.raises(ValueError, match=r"2\.(png|bmp) and 2\.(png|bmp) have one name but for their endings"):
        load(config.dataset, tmp_path, 0)
