"""Data sets of image files in their real formats: ImageNet, iNaturalist 2018, BDD100K, a user's folders."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mal.config.compose import compose_sweep
from mal.config.frozen import differences
from mal.config.schema import Chain
from mal.config.schema import Dataset as Spec
from mal.data.dataset import Dataset, load
from mal.data.image_set import Files, MapFiles, in_memory
from tests.made_up_data import (
    CATEGORIES,
    SYNSETS,
    add,
    imagenet_images,
    write_bdd100k,
    write_folders,
    write_imagenet_archives,
    write_imagenet_tree,
    write_inaturalist2018,
)


def chain(*overrides: str) -> Chain:
    (config,) = compose_sweep(["methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1", *overrides]).chains
    return config


SMALL = ("dataset.size=32", "dataset.crop=28")
IMAGENET = ("dataset=imagenet", "dataset.classes=3", "dataset.train=24", "dataset.test=12", *SMALL)
INATURALIST = ("dataset=inaturalist2018", "dataset.classes=4", "dataset.train=24", "dataset.test=8", *SMALL)


def files(dataset: Dataset) -> tuple[Files, Files]:
    assert isinstance(dataset.train, Files)
    assert isinstance(dataset.test, Files)
    return dataset.train, dataset.test


def names(split: Files) -> list[str]:
    return [split.store.name(i) for i in range(len(split))]


# ------------------------------------------------------------------------- the paper's protocol


@pytest.mark.parametrize(
    ("name", "images", "labels", "seeds", "crop"),
    [
        ("imagenet", (1_281_167, 50_000, 1000), (64_058, 4), 3, (256, 224, "square")),
        ("inaturalist2018", (437_513, 24_426, 8142), (43_751, 4), 5, (256, 224, "square")),
        ("bdd100k", (7000, 1000, 19), (350, 4), 5, (224, None, "stretch")),
    ],
)
def test_the_papers_protocol(
    name: str, images: tuple[int, ...], labels: tuple[int, int], seeds: int, crop: tuple[int, int | None, str]
) -> None:
    sweep = compose_sweep([f"dataset={name}", "methods=[mal]"])
    one = sweep.chains[0]
    spec = one.dataset
    assert len(sweep.seeds) == seeds
    assert (spec.train, spec.test, spec.classes) == images
    assert (one.initial, one.budget, one.rounds) == (labels[0], *labels)
    assert (spec.size, spec.crop, spec.resize, spec.flip) == (*crop, True)
    assert one.minimax.epochs == one.task.epochs == (50 if name == "bdd100k" else 60)  # unspecified for BDD100K


# ------------------------------------------------------------------------- ImageNet


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_imagenet_tree(tmp_path / "tree" / "imagenet")
    return tmp_path / "tree"


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    write_imagenet_archives(tmp_path / "archives" / "imagenet")
    return tmp_path / "archives"


def test_imagenet_is_what_torchvision_reads(tree: Path) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Resize

    as_usual = Compose([Resize(32), CenterCrop(32)])
    for split, part in zip(files(load(chain(*IMAGENET).dataset, tree, 0)), ("train", "val"), strict=True):
        theirs = ImageFolder(str(tree / "imagenet" / part), transform=as_usual)
        assert names(split) == [str(Path(path).relative_to(theirs.root)) for path, _ in theirs.samples]
        assert split.labels[np.arange(len(split))].tolist() == theirs.targets
        for index, (image, _) in enumerate(theirs):
            assert np.array_equal(split.read(index).transpose(1, 2, 0), np.asarray(image))


def test_imagenets_archives_give_the_same_images_under_the_same_indices(tree: Path, archives: Path) -> None:
    spec = chain(*IMAGENET).dataset
    from_tree, from_archives = load(spec, tree, 0), load(spec, archives, 0)
    assert from_tree.digest == from_archives.digest
    for ours, theirs in zip(files(from_tree), files(from_archives), strict=True):
        assert names(ours) == names(theirs)
        assert np.array_equal(ours.labels[np.arange(len(ours))], theirs.labels[np.arange(len(ours))])
        assert np.array_equal(in_memory(ours).images, in_memory(pickle.loads(pickle.dumps(theirs))).images)


def test_an_archive_is_listed_once_for_each_state_of_it(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mal.data.sources import imagenet

    spec = chain(*IMAGENET).dataset
    before = load(spec, archives, 0)
    listed = []
    listing = imagenet._list_archive
    monkeypatch.setattr(imagenet, "_list_archive", lambda path: (listed.append(path.name), listing(path))[1])
    assert load(spec, archives, 0).digest == before.digest
    assert listed == []
    val = archives / "imagenet" / "ILSVRC2012_val.tar".replace("2012_", "2012_img_")
    with tarfile.open(val, "a") as archive:
        add(archive, "ILSVRC2012_val_00000999.JPEG", b"one more")
    with pytest.raises(ValueError, match=r"has 13 images, but .*ground_truth\.txt 12 lines"):
        load(spec, archives, 0)
    assert listed == [val.name]


def test_indices_do_not_depend_on_where_the_files_are_or_in_which_order_they_came(tmp_path: Path) -> None:
    write_imagenet_tree(tmp_path / "a" / "imagenet")
    training, validation = imagenet_images()
    for part, images in (("train", training), ("val", validation)):
        for name in sorted(images, reverse=True):
            path = tmp_path / "elsewhere" / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images[name])
    here, there = chain(*IMAGENET), chain(*IMAGENET, f"dataset.root={tmp_path / 'elsewhere'}")
    assert here.fingerprint() == there.fingerprint()
    assert differences(here, there) == []
    digest = load(here.dataset, tmp_path / "a", 0).digest
    assert load(there.dataset, tmp_path, 0).digest == digest
    image = tmp_path / "elsewhere" / "train" / sorted(training)[5]
    image.write_bytes(image.read_bytes() + b"\0")
    assert load(there.dataset, tmp_path, 0).digest != digest


def test_what_is_missing_of_imagenet_is_named(tree: Path, archives: Path, tmp_path: Path) -> None:
    spec = chain(*IMAGENET).dataset
    with pytest.raises(ValueError, match=r"nowhere/imagenet has neither .*train.* nor .*devkit.*dataset\.root="):
        load(spec, tmp_path / "nowhere", 0)
    with pytest.raises(ValueError, match=r"3 classes where 4 are expected.*dataset\.classes=3"):
        load(replace(spec, classes=4), tree, 0)
    with pytest.raises(ValueError, match=r"24 training images where 25 are expected.*dataset\.train=24"):
        load(replace(spec, train=25), tree, 0)
    (tree / "imagenet" / "val" / SYNSETS[1]).rename(tree / "imagenet" / "val" / "n00000000")
    with pytest.raises(ValueError, match="different classes: n00000000, n01443537"):
        load(spec, tree, 0)
    shutil.rmtree(tree / "imagenet" / "val" / "n00000000")
    (tree / "imagenet" / "val" / SYNSETS[1]).mkdir()
    with pytest.raises(ValueError, match=r"no image .* in .*val/n01443537"):
        load(spec, tree, 0)
    (archives / "imagenet" / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(ValueError, match=r"nor the archives ILSVRC2012_devkit_t12\.tar\.gz"):
        load(spec, archives, 0)


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "empty", "a web page"])
def test_a_damaged_archive_is_named(archives: Path, name: str, damage: str) -> None:
    path = archives / "imagenet" / name
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: 2 * len(whole) // 3], "empty": b"", "a web page": b"<html>" * 200}[damage])
    with pytest.raises(ValueError, match=name):
        load(chain(*IMAGENET).dataset, archives, 0)


def test_a_corrupt_or_missing_image_is_named_when_it_is_read(tree: Path) -> None:
    train, _ = files(load(chain(*IMAGENET).dataset, tree, 0))
    whole = (tree / "imagenet" / "train" / names(train)[4]).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>", whole[100:]):
        (tree / "imagenet" / "train" / names(train)[4]).write_bytes(content)
        with pytest.raises(ValueError, match=f"{names(train)[4]} cannot be read as an image"):
            train.read(4)
    (tree / "imagenet" / "train" / names(train)[4]).unlink()
    with pytest.raises(ValueError, match=f"{names(train)[4]} is missing"):
        in_memory(train)


# ------------------------------------------------------------------------- iNaturalist 2018


@pytest.fixture
def inaturalist(tmp_path: Path) -> Path:
    write_inaturalist2018(tmp_path / "inaturalist2018")
    return tmp_path


def test_inaturalist_is_read_from_its_json(tmp_path: Path) -> None:
    annotated = write_inaturalist2018(tmp_path / "inaturalist2018")
    dataset = load(chain(*INATURALIST).dataset, tmp_path, 0)
    for split, part in zip(files(dataset), ("train", "val"), strict=True):
        assert names(split) == sorted(annotated[part])
        assert [CATEGORIES[i] for i in split.labels[np.arange(len(split))]] == [
            annotated[part][n] for n in names(split)
        ]
        assert split.read(0).shape == (3, 32, 32)


def edit(path: Path, change: Callable[[dict[str, list[dict[str, object]]]], object]) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"].pop(), "24 images and 23 annotations are not one for each other"),
        (lambda c: c["annotations"].append(dict(c["annotations"][0])), "24 images and 25 annotations"),
        (lambda c: c["annotations"][0].update(category_id=99), "categories that it does not list: 99"),
        (lambda c: c["categories"].append({"id": 9000}), "different categories: 9000 in one of them"),
        (lambda c: c["images"][0].update(file_name="../secret.jpg"), r"outside its folder: \.\./secret\.jpg"),
        (lambda c: c["images"][0].update(file_name=c["images"][1]["file_name"]), "names an image twice"),
        (lambda c: c["images"][0].update(file_name="train_val2018/no.jpg"), r"are missing: train_val2018/no\.jpg"),
        (lambda c: c.pop("images"), r"not iNaturalist's JSON \(KeyError"),
    ],
)
def test_a_wrong_inaturalist_json_is_refused(
    inaturalist: Path, change: Callable[[dict[str, list[dict[str, object]]]], object], message: str
) -> None:
    edit(inaturalist / "inaturalist2018" / "train2018.json", change)
    with pytest.raises(ValueError, match=message):
        load(chain(*INATURALIST).dataset, inaturalist, 0)


def test_a_cut_or_missing_inaturalist_json_is_named(inaturalist: Path) -> None:
    path = inaturalist / "inaturalist2018" / "val2018.json"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"val2018\.json is not iNaturalist's JSON"):
        load(chain(*INATURALIST).dataset, inaturalist, 0)
    path.unlink()
    with pytest.raises(ValueError, match=r"val2018\.json is missing.*dataset\.root="):
        load(chain(*INATURALIST).dataset, inaturalist, 0)


def test_all_missing_images_of_inaturalist_are_counted_and_the_first_named(inaturalist: Path) -> None:
    shutil.rmtree(inaturalist / "inaturalist2018" / "train_val2018" / "Plantae" / "8141")
    with pytest.raises(ValueError, match=r"12 images that the JSON names are missing: train_val2018.* and 2 more"):
        load(chain(*INATURALIST).dataset, inaturalist, 0)


# ------------------------------------------------------------------------- BDD100K

ROADS = Spec(
    name="roads",
    source="bdd100k",
    task="segmentation",
    classes=19,
    channels=3,
    size=32,
    train=12,
    test=6,
    resize="stretch",
)


@pytest.fixture
def roads(tmp_path: Path) -> Path:
    write_bdd100k(tmp_path / "bdd100k")
    return tmp_path


def test_bdd100ks_images_and_maps_are_paired_and_resized(roads: Path) -> None:
    dataset = load(ROADS, roads, 0)
    train, test = files(dataset)
    assert (len(train), len(test), len(dataset.pool)) == (12, 6, 12)
    for split, part in ((train, "train"), (test, "val")):
        maps = split.labels[np.arange(len(split))]
        assert maps.dtype == np.uint8
        assert maps.shape == (len(split), 32, 32)
        for index, name in enumerate(names(split)):
            path = roads / "bdd100k/labels/sem_seg/masks" / part / f"{Path(name).stem}.png"
            whole = np.asarray(Image.open(path))
            left, right = int(whole[0, 0]), int(whole[0, -1])
            assert set(np.unique(maps[index])) <= {left, right, 255}  # nearest: no class between two others
            assert (maps[index, :, :15] == left).all()
            assert (maps[index, :, 17:] == right).all()
            image = split.read(index)
            assert abs(int(image[0, 5, 5]) - left * 12) < 8  # the image of this map
            assert abs(int(image[0, 5, -5]) - right * 12) < 8
    assert np.array_equal(dataset.oracle.label(np.array([3, 1])), train.labels[np.array([3, 1])])


def test_images_and_maps_that_do_not_pair_are_named(roads: Path) -> None:
    train, _ = files(load(ROADS, roads, 0))
    first, last = Path(names(train)[0]).stem, Path(names(train)[-1]).stem
    (roads / "bdd100k/images/10k/train" / f"{first}.jpg").unlink()
    (roads / "bdd100k/labels/sem_seg/masks/train" / f"{last}.png").unlink()
    with pytest.raises(ValueError, match=f"do not pair: {first}, {last} in one of them only"):
        load(ROADS, roads, 0)
    with pytest.raises(ValueError, match=r"dataset\.root: .*images/10k/train is not a folder"):
        load(ROADS, roads / "nowhere", 0)


def test_a_map_with_strange_classes_is_named(roads: Path) -> None:
    train, _ = files(load(ROADS, roads, 0))
    assert isinstance(train.labels, MapFiles)
    path = roads / "bdd100k/labels/sem_seg/masks/train" / train.labels.store.name(2)
    Image.fromarray(np.full((45, 80), 19, np.uint8)).save(path)
    with pytest.raises(ValueError, match=rf"{path.name} has the classes \[19\], not 0 to 18 or 255"):
        train.labels.read(2)
    Image.fromarray(np.zeros((45, 80, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read .*mode is RGB"):
        train.labels.read(2)


# ------------------------------------------------------------------------- a user's folders


def folder(root: Path, *more: str) -> Chain:
    return chain(
        "dataset=folder", f"dataset.train_images={root}/train", f"dataset.test_images={root}/test", *SMALL, *more
    )


def test_a_users_folders_are_counted_at_launch_and_read(tmp_path: Path) -> None:
    write_folders(tmp_path)
    config = folder(tmp_path, "dataset.name=insects", "initial=0.5")
    spec = config.dataset
    assert (spec.classes, spec.train, spec.test, spec.prepared_as) == (3, 30, 12, "insects")
    assert (config.name, config.initial) == ("insects", 15)
    train, test = files(load(spec, tmp_path, 0))
    assert np.bincount(np.asarray(train.labels)).tolist() == [10] * 3
    assert np.bincount(np.asarray(test.labels)).tolist() == [4] * 3
    assert [n for n in names(train) if n.startswith("ant")] == [
        *(f"ant/{n}.jpg" for n in (1, 3, 5, 7, 9)),
        *(f"ant/more/{n}.png" for n in (0, 2, 4, 6, 8)),
    ]


def test_the_place_of_a_users_folders_is_no_part_of_the_configuration(tmp_path: Path) -> None:
    write_folders(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    here, there = folder(tmp_path / "a"), folder(tmp_path / "b")
    assert here.fingerprint() == there.fingerprint()
    assert load(here.dataset, tmp_path, 0).digest == load(there.dataset, tmp_path, 0).digest


def test_a_users_mistakes_with_folders_are_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    with pytest.raises(ValueError, match=r"dataset\.test_images is not set: give both"):
        chain("dataset=folder", f"dataset.train_images={tmp_path}/train")
    with pytest.raises(ValueError, match=r"dataset\.train_images: .*trian is not a folder"):
        chain("dataset=folder", f"dataset.train_images={tmp_path}/trian", f"dataset.test_images={tmp_path}/test")
    config = folder(tmp_path)
    shutil.rmtree(tmp_path / "test" / "bee")
    with pytest.raises(ValueError, match="different classes: bee in one of them"):
        load(config.dataset, tmp_path, 0)
    (tmp_path / "test" / "bee").mkdir()
    with pytest.raises(ValueError, match=r"dataset\.test_images: no image .* in .*test/bee"):
        folder(tmp_path)
    (tmp_path / "train" / "wasp" / "1.jpg").unlink()
    shutil.copy(tmp_path / "test" / "ant" / "1.jpg", tmp_path / "test" / "bee")
    with pytest.raises(ValueError, match="29 training images where 30 are expected"):
        load(config.dataset, tmp_path, 0)
    with pytest.raises(ValueError, match=r"dataset\.resize=squared is unknown; did you mean square\?.*null"):
        folder(tmp_path, "dataset.resize=squared")
