"""ImageNet's validation images as people have them: flat, mixed with archives, swapped; labels from kit or file."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mal.config.compose import compose_sweep
from mal.config.schema import Dataset as Spec
from mal.data.dataset import Dataset, load
from mal.data.image_set import Files, in_memory
from tests.made_up_data import SYNSETS, put, write_imagenet_archives, write_imagenet_tree

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def spec(*more: str) -> Spec:
    base = ["dataset=imagenet", "dataset.classes=3", "dataset.train=24", "dataset.test=12", "dataset.size=32"]
    fixed = ["dataset.crop=28", "methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1"]
    return compose_sweep([*base, *fixed, *more]).chains[0].dataset


@pytest.fixture
def whole(tmp_path: Path) -> Dataset:
    write_imagenet_tree(tmp_path / "whole" / "imagenet")
    return load(spec(), tmp_path / "whole", 0)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """The classic: train in folders, val as it comes out of its archive."""
    root = tmp_path / "flat" / "imagenet"
    write_imagenet_tree(root)
    for path in list((root / "val").glob("*/*")):
        path.rename(root / "val" / path.name)
    for folder in [path for path in (root / "val").iterdir() if path.is_dir()]:
        folder.rmdir()
    return tmp_path / "flat"


def devkit(root: Path) -> None:
    write_imagenet_archives(root.parent / "archives")
    shutil.copy(root.parent / "archives" / DEVKIT, root)


def assert_same(found: Dataset, whole: Dataset) -> None:
    assert found.digest == whole.digest
    assert isinstance(found.test, Files)
    assert isinstance(whole.test, Files)
    assert np.array_equal(in_memory(found.test).images, in_memory(whole.test).images)
    assert np.array_equal(found.test.labels, whole.test.labels)


def test_flat_images_are_labelled_by_the_devkit_packed_or_unpacked(flat: Path, whole: Dataset) -> None:
    root = flat / "imagenet"
    with pytest.raises(ValueError, match=rf"has 12 images and no folders of classes\. Put {DEVKIT} into .*val_labels="):
        load(spec(), flat, 0)
    devkit(root)
    assert_same(load(spec(), flat, 0), whole)
    with tarfile.open(root / DEVKIT) as archive:
        archive.extractall(root, filter="data")
    (root / DEVKIT).unlink()
    assert_same(load(spec(), flat, 0), whole)


@pytest.mark.parametrize("form", ["{name}.JPEG,{wnid}", "{name},{wnid} 10 20 30 40", "{name}\t{wnid}", "{wnid}"])
def test_flat_images_are_labelled_by_a_file(flat: Path, whole: Dataset, form: str) -> None:
    assert isinstance(whole.test, Files)
    names = [whole.test.store.name(index) for index in range(12)]
    rows = sorted((Path(name).stem, name.partition("/")[0]) for name in names)
    lines = ["ImageId,PredictionString"] if "," in form else []
    lines += [form.format(name=name, wnid=wnid) for name, wnid in rows]
    put(flat / "labels.csv", "\n".join(lines).encode())
    assert_same(load(spec(f"dataset.val_labels={flat}/labels.csv"), flat, 0), whole)


def test_a_file_of_labels_that_does_not_fit_is_named(flat: Path) -> None:
    labels = flat / "labels.csv"
    config = spec(f"dataset.val_labels={labels}")
    with pytest.raises(ValueError, match=r"dataset\.val_labels=.*labels\.csv cannot be read"):
        load(config, flat, 0)
    put(labels, b"ILSVRC2012_val_00000000," + SYNSETS[0].encode())
    with pytest.raises(ValueError, match=r"labels\.csv has no class for 12 images: ILSVRC2012_val_"):
        load(config, flat, 0)
    put(labels, f"a,{SYNSETS[0]}\nb,tench".encode())
    with pytest.raises(
        ValueError, match=r"1 lines are not a name and one of the training images' WordNet ids \(b tench"
    ):
        load(config, flat, 0)
    put(labels, SYNSETS[0].encode())
    with pytest.raises(ValueError, match=r"has 12 images, but .* 1 lines"):
        load(config, flat, 0)


@pytest.mark.parametrize("archived", ["train", "val"])
def test_a_folder_and_an_archive_go_together(tmp_path: Path, whole: Dataset, archived: str) -> None:
    root = tmp_path / "mixed" / "imagenet"
    write_imagenet_tree(root)
    write_imagenet_archives(root)
    shutil.rmtree(root / archived)
    other = {"train": "val", "val": "train"}[archived]
    (root / f"ILSVRC2012_img_{other}.tar").unlink()
    assert_same(load(spec(), tmp_path / "mixed", 0), whole)


def test_two_classes_of_validation_images_that_were_swapped_are_found_with_the_devkit_beside(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    write_imagenet_tree(root)
    devkit(root)
    load(spec(), tmp_path, 0)
    first, second = (root / "val" / name for name in SYNSETS[:2])
    first.rename(root / "aside")
    second.rename(first)
    (root / "aside").rename(second)
    with pytest.raises(ValueError, match=r"8 images are in the folder of another class than .*ground_truth\.txt says"):
        load(spec(), tmp_path, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b" + bytes(range(256)) * 80_000, "it is packed by gzip: unpack it"),
        (b"\xff\xfe" * 10, "is not iNaturalist's JSON"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 1}]}', "lists categories twice: 1"),
        (b"[" * 100_000, "is not iNaturalist's JSON"),
    ],
)
def test_another_file_under_the_jsons_name_is_told_in_few_words(tmp_path: Path, content: bytes, words: str) -> None:
    put(tmp_path / "inaturalist2018" / "train2018.json", content)
    fixed = ["dataset=inaturalist2018", "methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1"]
    with pytest.raises(ValueError, match=words) as refusal:
        load(compose_sweep(fixed).chains[0].dataset, tmp_path, 0)
    assert len(str(refusal.value)) < 500
