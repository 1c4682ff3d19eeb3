"""What a launch finds out about files: all bad ones by name, what is left out, counts and doubts; remembered."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.data import at_launch, check
from mal.data.at_launch import survey
from mal.data.dataset import load
from mal.data.image_set import Files
from tests.made_up_data import jpeg, picture, put, write_folders, write_imagenet_tree
from tests.made_up_pools import png_of, write_mask_folder
from tests.odd_images import odd_images, oriented


def chain(*overrides: str) -> Chain:
    (config,) = compose_sweep(["methods=[random]", "seeds=1", "rounds=1", "initial=9", "budget=1", *overrides]).chains
    return config


def folder(root: Path, *more: str) -> Chain:
    places = [f"dataset.{part}_images={root}/{part}" for part in ("train", "test")]
    return chain("dataset=folder", *places, "dataset.size=32", "dataset.crop=28", *more)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_folders(tmp_path)
    return tmp_path


BAD = ("bad_empty.jpg", "bad_page.jpg", "bad_lfs.jpg", "bad_12_bit.jpg", "bad_float.tif", "bad_huge.png")


def put_bad(root: Path) -> list[str]:
    odd = odd_images()
    for name in BAD:
        put(root / "train" / "bee" / name, odd[name])
    put(root / "test" / "wasp" / "zero.jpg", b"")
    return [f"train/bee/{name}" for name in BAD] + ["test/wasp/zero.jpg"]


@pytest.mark.parametrize("level", ["headers", "full"])
def test_all_bad_files_of_both_parts_are_listed_at_once(photos: Path, level: str) -> None:
    bad = put_bad(photos)
    with pytest.raises(ValueError, match=r"7 files cannot be used:(?s:.*)dataset\.skip_corrupt=true") as refusal:
        survey(folder(photos).dataset, photos / "data", "memory", level, 9)
    for name in bad:
        assert f"{photos}/{name} cannot be read as an image" in str(refusal.value)


def test_cheap_checks_come_before_any_file_is_looked_at(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(self: object, at: int) -> None:
        raise AssertionError

    def cheap(train: object, test: object) -> None:
        raise ValueError("too large")

    monkeypatch.setattr(check._Look, "one", looked)
    with pytest.raises(ValueError, match="too large"):
        survey(folder(photos).dataset, photos / "data", "memory", "full", 9, cheap=cheap)


def test_a_cut_image_is_found_by_a_full_look(photos: Path) -> None:
    path = photos / "train" / "ant" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    survey(folder(photos).dataset, photos / "data", "memory", "headers", 9)
    with pytest.raises(ValueError, match=r"ant/1\.jpg cannot be read as an image \(image file is truncated"):
        survey(folder(photos).dataset, photos / "data", "memory", "full", 9)


def test_what_cannot_be_used_is_left_out_by_name_for_every_loader(photos: Path) -> None:
    bad = put_bad(photos)
    found = survey(folder(photos, "dataset.skip_corrupt=true").dataset, photos / "data", "memory", "headers", 9)
    assert found.spec.left_out == sorted(bad)
    assert (found.spec.train, found.spec.test) == (30, 12)
    assert "7 files that cannot be used left out: test/wasp/zero.jpg" in found.lines[0]
    for loader in ("memory", "torch"):
        dataset = load(found.spec, photos / "data", 0, loader)
        assert isinstance(dataset.train, Files)
        assert len(dataset.train) == 30
        for index in range(30):
            dataset.train.read(index)


def test_what_was_found_good_is_not_looked_at_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    one = check._Look.one
    monkeypatch.setattr(check._Look, "one", lambda self, at: (looked.append(int(self.chosen[at])), one(self, at))[1])
    spec = folder(photos).dataset
    survey(spec, photos / "data", "memory", "headers", 9)
    assert len(looked) == 42
    looked.clear()
    survey(spec, photos / "data", "torch", "headers", 9)
    assert looked == []
    changed = photos / "train" / "ant" / "1.jpg"
    changed.write_bytes(changed.read_bytes() + b"\0")
    survey(spec, photos / "data", "memory", "headers", 9)
    assert looked == [0]
    looked.clear()
    survey(spec, photos / "data", "memory", "full", 9)
    assert len(looked) == 42
    looked.clear()
    survey(spec, photos / "data", "memory", "headers", 9)  # a full look tells more
    assert looked == []


def test_a_dry_run_keeps_nothing_and_does_not_look_at_many(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MANY", 20)
    found = survey(folder(photos).dataset, photos / "data", "memory", "headers", 9, remember=False)
    assert "The train images are many: a launch looks at them (check=headers)." in found.lines
    assert not (photos / "data").exists()


def test_many_files_are_shared_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "FEW", 5)
    write_imagenet_tree(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "train" / "n01440764" / "n01440764_7.JPEG").write_bytes(b"")
    spec = chain("dataset=imagenet", "dataset.classes=3", "dataset.train=24", "dataset.test=12").dataset
    with pytest.raises(ValueError, match=r"1 files cannot be used:\n .*n01440764_7\.JPEG .*it is empty"):
        survey(spec, tmp_path, "torch", "headers", 9)


# ------------------------------------------------------------------------- counts and doubts


def lines(spec: object, root: Path, initial: int = 9) -> list[str]:
    return survey(spec, root / "data", "memory", "headers", initial).lines  # type: ignore[arg-type]


def test_the_plan_counts_classes_and_images_and_says_what_is_left_out(photos: Path) -> None:
    (photos / "train" / "wasp" / "1.jpg").unlink()
    put(photos / "train" / "bee" / "a.heic", b"")
    put(photos / "train" / "bee" / "more.gif", odd_images()["plain.gif"])
    said = lines(folder(photos).dataset, photos)[0]
    assert said.startswith("folder: 3 classes, 30 + 12 images; smallest class wasp (9), largest bee (11)")
    assert "1 .heic, not read here without pip install pillow-heif" in said.partition("left out of train: ")[2]


def test_few_labels_untested_classes_and_names_that_look_alike_are_doubted(photos: Path) -> None:
    shutil.rmtree(photos / "test" / "bee")
    shutil.copytree(photos / "train" / "ant", photos / "train" / "Ant")
    said = "\n".join(lines(folder(photos).dataset, photos, initial=3))
    assert "warning: initial=3 gives fewer labels than there are classes (4)." in said
    assert "warning: 2 classes have no test image and are left out of the scores by class: Ant, bee." in said
    assert "warning: these classes look alike: 'Ant' and 'ant'." in said


def test_test_images_that_are_training_images_are_doubted(photos: Path) -> None:
    said = lines(folder(photos).dataset, photos)[-1]
    assert said.startswith(f"warning: 12 of 12 test images are training images too, e.g. {photos}/test/ant/1.jpg is")
    for number, path in enumerate((photos / "test").rglob("*.*")):
        path.write_bytes(jpeg(picture(5000 + number, 40, 36)))
    assert "training images too" not in "\n".join(lines(folder(photos).dataset, photos))
    shutil.copy(photos / "train" / "ant" / "1.jpg", photos / "test" / "ant" / "again.jpg")
    (photos / "test" / "ant" / "1.jpg").unlink()
    said = lines(folder(photos).dataset, photos)[-1]
    assert said.startswith(f"warning: 1 of 12 test images are training images too, e.g. {photos}/test/ant/again.jpg is")


# ------------------------------------------------------------------------- masks


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    write_mask_folder(tmp_path)
    return tmp_path


def masks(root: Path, *more: str) -> Chain:
    return chain("dataset=mask_folder", f"dataset.root={root}", "dataset.size=32", "backbone=small_drn", *more)


GREY = np.zeros((45, 80), np.uint8)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (png_of(GREY.T.copy()), r"45 x 80 pixels, its image .*images/train/2\.jpg 80 x 45\. They are transposed"),
        (png_of(GREY[:20]), r"has 80 x 20 pixels, its image"),
        (png_of(GREY.repeat(3).reshape(45, 80, 3)), "its mode is RGB, not 8-bit classes"),
        (png_of(GREY.astype(np.uint16)), "its mode is I;16, not 8-bit classes"),
        (png_of(GREY + 3), r"has the classes \[3\], not 0 to 2 or 255"),
        (png_of(GREY, "P", bytes([1, 1, 1, 2, 2, 2])), "gives value 0 the grey 1: were its classes renumbered"),
        (jpeg(Image.fromarray(GREY)), "it is a JPEG"),
        (b"", "it is empty"),
    ],
)
def test_a_mask_that_cannot_be_used_is_found_at_launch(streets: Path, mask: bytes, words: str) -> None:
    (streets / "masks" / "train" / "2.png").write_bytes(mask)
    with pytest.raises(ValueError, match=rf"1 files cannot be used:\n  .*masks/train/2\.png(?s:.*){words}"):
        survey(masks(streets).dataset, streets / "data", "memory", "headers", 9)


def test_palettes_that_disagree_are_found_at_launch(streets: Path) -> None:
    first, other = bytes([0, 0, 0, 128, 0, 0, 0, 128, 0]), bytes([0, 0, 0, 0, 128, 0, 128, 0, 0])
    for number in range(10):
        palette = other if number == 7 else first
        (streets / "masks" / "train" / f"{number}.png").write_bytes(png_of(GREY, "P", palette))
    with pytest.raises(ValueError, match=r"train/7\.png has the colour \(0, 128, 0\) for value 1, .*0\.png has"):
        survey(masks(streets).dataset, streets / "data", "memory", "headers", 9)


def test_an_image_and_its_mask_are_each_turned_by_its_own_tag(streets: Path) -> None:
    upright = Image.fromarray(np.zeros((80, 45, 3), np.uint8))
    put(streets / "images" / "train" / "2.jpg", oriented("JPEG", 6, upright))
    spec = masks(streets).dataset
    assert "1 images have an EXIF orientation that their masks do not have" in "\n".join(lines(spec, streets))
    with pytest.raises(ValueError, match="They are transposed"):
        survey(dataclasses.replace(spec, exif="ignore"), streets / "data", "memory", "headers", 9)
    put(streets / "images" / "train" / "2.jpg", oriented("JPEG", 6, Image.fromarray(np.zeros((45, 80, 3), np.uint8))))
    with pytest.raises(ValueError, match=r"Does dataset\.exif=ignore fit\?"):
        survey(spec, streets / "data", "memory", "headers", 9)


def test_pairs_that_are_left_out_are_counted(streets: Path) -> None:
    (streets / "masks" / "train" / "3.png").unlink()
    found = survey(masks(streets, "dataset.skip_unpaired=true").dataset, streets / "data", "memory", "headers", 9)
    assert found.spec.train == 9
    assert load(found.spec, streets / "data", 0).train.shape == (3, 32, 32)
    assert "1 images without a mask, or masks without an image" in found.lines[0]


def test_a_class_in_no_test_mask_is_doubted(streets: Path) -> None:
    for number in range(4):
        (streets / "masks" / "val" / f"{number}.png").write_bytes(png_of(GREY))
    said = "\n".join(lines(masks(streets).dataset, streets))
    assert "2 classes have no test image and are left out of the scores by class: sky, car" in said


def test_a_storage_that_fails_is_no_bad_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: object, index: int, most: int | None = None) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(at_launch.Files, "read", failing)
    monkeypatch.setattr("mal.data.image_set.Store.content", failing)
    with pytest.raises(OSError, match="Input/output error"):
        survey(folder(photos).dataset, photos / "data", "memory", "headers", 9)
