"""Prepared copies for FFCV: written, read back, damaged, of another pool; the command that makes them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.config.compose import compose_sweep
from mal.config.schema import Dataset as Spec
from mal.data import decode, prepare
from mal.data.dataset import load, read_source
from mal.data.ffcv import beton, prepared
from mal.data.ffcv.beton import Compression
from mal.data.ffcv.prepared import open_prepared
from mal.data.image_set import Files, Prepared, in_memory
from mal.data.pixel_statistics import pixel_statistics
from mal.files import write_json
from tests.chains import python
from tests.made_up_data import (
    write_bdd100k,
    write_cifar100,
    write_fashion,
    write_folders,
    write_imagenet_archives,
    write_imagenet_tree,
    write_inaturalist2018,
)
from tests.odd_images import odd_images

pytestmark = pytest.mark.ffcv

SMALL = ("dataset.size=32", "dataset.crop=28")
IMAGENET = ("dataset=imagenet", "dataset.classes=3", "dataset.train=24", "dataset.test=12", *SMALL)
FASHION = ("dataset=fashion_mnist", "dataset.train=30", "dataset.test=20")
KINDS = {
    "digits": (("dataset=digits",), lambda data: None),
    "fashion_mnist": (FASHION, lambda data: write_fashion(data / "fashion-mnist")),
    "cifar100": (
        ("dataset=cifar100", "dataset.train=12", "dataset.test=6"),
        lambda data: write_cifar100(data / "cifar-100-python"),
    ),
    "imagenet": (IMAGENET, lambda data: write_imagenet_tree(data / "imagenet")),
    "inaturalist2018": (
        ("dataset=inaturalist2018", "dataset.classes=4", "dataset.train=24", "dataset.test=8", *SMALL),
        lambda data: write_inaturalist2018(data / "inaturalist2018"),
    ),
}
ROADS = ("dataset=bdd100k", "dataset.size=32", "dataset.train=12", "dataset.test=6")


@cache
def spec_of(overrides: tuple[str, ...]) -> Spec:
    (chain,) = compose_sweep(["methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1", *overrides]).chains
    return chain.dataset


def run(data: Path, *arguments: str) -> int:
    return prepare.main([f"data={data}", "workers=2", *arguments])


def stored_images(part: Prepared) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Images (raw) or the bytes of JPEGs, labels and indices, found through FFCV's own reader of the file."""
    from ffcv.reader import Reader

    reader = Reader(str(part.beton))
    content = part.beton.read_bytes()
    size = {int(entry["ptr"]): int(entry["size"]) for entry in reader.alloc_table}
    at = [row.tolist() for row in reader.metadata]
    pointers = [image[3] if isinstance(image, tuple) else image for image, _, _ in at]
    images = [np.frombuffer(content, np.uint8, size[p], p) for p in pointers]
    labels = np.array([label for _, label, _ in at])
    return np.array(images, dtype=object if len({len(i) for i in images}) > 1 else None), labels, [i for *_, i in at]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_copy_holds_the_sources_bytes(tmp_path: Path, kind: str) -> None:
    overrides, write = KINDS[kind]
    write(tmp_path)
    assert run(tmp_path, *overrides, "verify=true") == 0
    spec = spec_of(overrides)
    for copy, source in zip(open_prepared(spec, tmp_path), read_source(spec, tmp_path), strict=True):
        assert len(copy) == len(source)
        assert copy.shape == source.shape
        whole = in_memory(source)
        images, labels, indices = stored_images(copy)
        expected = whole.images.transpose(0, 2, 3, 1) if source.shape[0] == 3 else whole.images
        assert np.array_equal(images.reshape(expected.shape), expected)
        assert np.array_equal(labels, whole.labels)
        assert np.array_equal(copy.labels, whole.labels)
        assert indices == list(range(len(source)))
    direct, copied = load(spec, tmp_path, 0), load(spec, tmp_path, 0, "ffcv")
    for ours, theirs in zip(pixel_statistics(copied), pixel_statistics(direct), strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(copied.pool, direct.pool)


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_maps_are_prepared_with_their_images(tmp_path: Path, mode: str) -> None:
    from ffcv.reader import Reader

    write_bdd100k(tmp_path / "bdd100k")
    assert run(tmp_path, *ROADS, f"mode={mode}", "verify=true") == 0
    spec = spec_of(ROADS)
    train, test = open_prepared(replace(spec, prepared=mode), tmp_path)
    maps = in_memory(read_source(spec, tmp_path)[0]).labels
    assert np.array_equal(train.labels, maps)
    assert train.labels.dtype == np.uint8
    assert (len(train), len(test)) == (12, 6)
    assert train.entry["class_counts"] == [int((maps == label).sum()) for label in range(19)]
    reader = Reader(str(train.beton))
    size = {int(entry["ptr"]): int(entry["size"]) for entry in reader.alloc_table}
    content = train.beton.read_bytes()
    for index, row in enumerate(reader.metadata):
        at = row.tolist()[1]
        assert content[at : at + size[at]] == maps[index].tobytes()


# ------------------------------------------------------------------------- compression


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    write_imagenet_tree(folder / "imagenet")
    return folder


@pytest.fixture(scope="module")
def raw_copy(tree: Path) -> Path:
    """DATA with ImageNet's tree and its raw copy; to be copied before it is changed."""
    assert run(tree, *IMAGENET) == 0
    return tree


@pytest.fixture
def data(raw_copy: Path, tmp_path: Path) -> Path:
    for folder in ("imagenet", "prepared/imagenet-raw"):
        shutil.copytree(raw_copy / folder, tmp_path / "data" / folder)
    return tmp_path / "data"


def test_jpegs_are_near_the_source_and_mixed_copies_hold_both(tree: Path) -> None:
    import cv2

    source = in_memory(read_source(spec_of(IMAGENET), tree)[0]).images.transpose(0, 2, 3, 1)
    assert run(tree, *IMAGENET, "mode=jpg", "quality=95", "verify=true") == 0
    assert run(tree, *IMAGENET, "mode=mixed", "share=0.4", "quality=95", "verify=true") == 0
    spec = spec_of(IMAGENET)
    jpg, mixed = (stored_images(open_prepared(replace(spec, prepared=mode), tree)[0])[0] for mode in ("jpg", "mixed"))
    for ours, theirs in zip(jpg, source, strict=True):
        decoded = cv2.cvtColor(cv2.imdecode(ours, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert np.abs(decoded.astype(int) - theirs).mean() < 3
    chosen = Compression("mixed", 95, 0.4).chosen("train", 24)
    assert 0 < chosen.sum() < 24
    assert [len(image) < 32 * 32 * 3 for image in mixed] == chosen.tolist()
    assert all(np.array_equal(mixed[i], jpg[i]) for i in np.flatnonzero(chosen))
    statistics = [pixel_statistics(load(replace(spec, prepared=m), tree, 0, "ffcv"))[0] for m in ("jpg", "mixed")]
    assert np.array_equal(*statistics)  # of the pixels before compression: the same whatever the mode
    digests = {load(replace(spec, prepared=mode), tree, 0, "ffcv").digest for mode in ("jpg", "mixed")}
    assert len(digests) == 2


def test_a_copy_is_the_same_pool_wherever_and_by_however_many_it_was_made(raw_copy: Path, tmp_path: Path) -> None:
    spec = spec_of(IMAGENET)
    write_imagenet_archives(tmp_path / "archives")
    assert run(tmp_path, *IMAGENET, f"source={tmp_path / 'archives'}", "workers=1") == 0
    assert load(spec, tmp_path, 0, "ffcv").digest == load(spec, raw_copy, 0, "ffcv").digest


# ------------------------------------------------------------------------- corrupt sources


def test_all_that_cannot_be_read_is_listed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_imagenet_tree(tmp_path / "imagenet")
    spec = spec_of(IMAGENET)
    train, test = read_source(spec, tmp_path)
    assert isinstance(train, Files)
    assert isinstance(test, Files)
    corrupt = [Path(split.store.path(i)) for split, i in ((train, 5), (train, 20), (test, 3))]
    corrupt[0].write_bytes(corrupt[0].read_bytes()[:300])
    corrupt[1].write_bytes(b"")
    corrupt[2].write_bytes(b"<html>")
    assert run(tmp_path, *IMAGENET) == 2
    said = capsys.readouterr().err
    assert all(f"{path} cannot be read" in said for path in corrupt)
    assert "3 images, listed above" in said
    assert "skip_corrupt=true" in said
    assert not prepared.prepared_folder(spec, tmp_path, "raw").exists()
    assert list((tmp_path / "prepared").glob(".*part")) == []

    assert run(tmp_path, *IMAGENET, "skip_corrupt=true", "verify=true") == 0
    with pytest.raises(ValueError, match=r"22 training images where 24 are expected.*dataset\.train=22"):
        load(spec, tmp_path, 0, "ffcv")
    dataset = load(replace(spec, train=22, test=11), tmp_path, 0, "ffcv")
    assert isinstance(dataset.train, Prepared)
    kept = np.setdiff1d(np.arange(24), [5, 20])
    expected = np.stack([train.read(i) for i in kept]).transpose(0, 2, 3, 1)
    assert np.array_equal(stored_images(dataset.train)[0].reshape(expected.shape), expected)
    assert dataset.train.entry["left_out"] == [train.store.name(i) for i in (5, 20)]
    assert run(tmp_path, *IMAGENET, "verify=true") == 0  # recognised as the copy of these files, without the corrupt
    assert "is there already: 22 + 11 images, 3 left out" in capsys.readouterr().out


# ------------------------------------------------------------------------- damaged copies


def damage_beton(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "train.beton"
        path.write_bytes(change(path.read_bytes()))

    return apply


def flip(content: bytes) -> bytes:
    at = 2 * len(content) // 3
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def of_another_pool(folder: Path) -> None:
    shutil.copy(folder / "test.beton", folder / "train.beton")


def shuffled_labels(folder: Path) -> None:
    labels = np.load(folder / "train_labels.npy")
    np.save(folder / "train_labels.npy", labels[::-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_beton(lambda content: content[: len(content) // 2]), r"train\.beton has .* it was cut"),
        (damage_beton(flip), r"train\.beton is not the file that was prepared: its hash is"),
        (damage_beton(lambda content: content + b"\0"), r"train\.beton has .* it is another file"),
        (of_another_pool, r"train\.beton (has .* bytes|is not the file)"),
        (shuffled_labels, r"train_labels\.npy is not the file that was prepared"),
        (lambda folder: (folder / "test.beton").unlink(), r"test\.beton is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 99}'), "has format 99, not 1"),
        (shutil.rmtree, r"is not there. Make it: python -m mal\.data\.prepare dataset=imagenet data=.* mode=raw"),
    ],
)
def test_a_damaged_copy_is_refused_when_it_is_opened(data: Path, damage: Callable[[Path], None], message: str) -> None:
    spec = spec_of(IMAGENET)
    load(spec, data, 0, "ffcv")
    damage(data / "prepared" / "imagenet-raw")
    with pytest.raises(ValueError, match=message):
        load(spec, data, 0, "ffcv")


def test_a_copy_of_another_shape_is_refused(data: Path) -> None:
    for changes, message in (
        ({"size": 48}, r"prepared with shape \[3, 32, 32\], the configuration says \[3, 48, 48\]"),
        ({"resize": "stretch"}, "prepared with resize square, the configuration says stretch"),
        ({"classes": 4}, "prepared with classes 3, the configuration says 4"),
        ({"train": 25}, "24 training images where 25 are expected"),
        ({"prepared": "jpg"}, r"imagenet-jpg is not there.*There is dataset\.prepared=raw"),
    ):
        with pytest.raises(ValueError, match=message):
            load(replace(spec_of(IMAGENET), **changes), data, 0, "ffcv")


def test_a_file_is_hashed_once_for_each_state_of_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(IMAGENET)
    hashed: list[str] = []
    hash_file = prepared.hash_file
    monkeypatch.setattr(prepared, "hash_file", lambda path: (hashed.append(path.name), hash_file(path))[1])
    load(spec, data, 0, "ffcv")
    assert len(hashed) == 8  # the folder was copied: other inodes
    hashed.clear()
    load(spec, data, 0, "ffcv")
    assert hashed == []
    (data / "prepared" / "imagenet-raw" / "test.beton").touch()
    load(spec, data, 0, "ffcv")
    assert hashed == ["test.beton"]
    hashed.clear()
    (data / "prepared" / "imagenet-raw" / "checked.json").write_text("[]")
    load(spec, data, 0, "ffcv")
    assert len(hashed) == 8
    hashed.clear()
    assert run(data, *IMAGENET, "verify=true") == 0
    assert len(hashed) == 8


def test_the_hash_of_a_file_is_that_of_its_blocks_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hashlib import sha256

    monkeypatch.setattr(prepared, "BLOCK", 1000)
    monkeypatch.setattr(prepared, "PIECE", 300)
    content = np.random.default_rng(0).bytes(3500)
    (tmp_path / "file").write_bytes(content)
    blocks = b"".join(sha256(content[first : first + 1000]).digest() for first in range(0, 3500, 1000))
    assert prepared.hash_file(tmp_path / "file") == sha256(blocks).hexdigest()
    (tmp_path / "file").write_bytes(b"")
    assert prepared.hash_file(tmp_path / "file") == sha256(sha256(b"").digest()).hexdigest()


@pytest.mark.parametrize("file", ["train.beton", "train_labels.npy", "train_moments.npy"])
def test_verifying_compares_every_sample_with_the_source(
    data: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data / "prepared" / "imagenet-raw"
    content = bytearray((folder / file).read_bytes())
    # a pixel of the last image by index in the first page that holds data; the end of an array
    at = (
        content.index(in_memory(read_source(spec_of(IMAGENET), data)[0]).images[7].transpose(1, 2, 0).tobytes())
        if file.endswith("beton")
        else len(content) - 8
    )
    content[at] ^= 1
    (folder / file).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["parts"]["train"]["files"][file]["hash"] = prepared.hash_file(folder / file)  # whoever did it knew how
    write_json(folder / "manifest.json", manifest)
    assert run(data, *IMAGENET) == 0
    assert run(data, *IMAGENET, "verify=true") == 2
    assert "1 samples are not what they should be" in capsys.readouterr().err


def as_of_before(folder: Path) -> None:
    """Make a copy one that an older version prepared: without word of orientations and of rules."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    write_json(folder / "manifest.json", {k: v for k, v in manifest.items() if k not in ("exif", "pixels")})


def test_a_copy_by_older_rules_is_marked_where_they_make_the_same_pixels_and_named_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path)
    (tmp_path / "train" / "ant" / "deep.png").write_bytes(odd_images()["grey_16.png"])
    roots = (f"dataset.{part}_images={tmp_path / part}" for part in ("train", "test"))
    photos = ("dataset=folder", *roots, "dataset.name=photos", "dataset.exif=ignore", *SMALL)
    spec, folder = spec_of(photos), tmp_path / "prepared" / "photos-raw"
    assert run(tmp_path, *photos) == 0
    as_of_before(folder)
    with pytest.raises(ValueError, match=r"by an older version, .*: python -m mal\.data\.prepare dataset=photos"):
        open_prepared(spec, tmp_path)
    assert run(tmp_path, *photos) == 0
    assert json.loads((folder / "manifest.json").read_bytes())["pixels"] == decode.PIXELS
    open_prepared(spec, tmp_path)
    with monkeypatch.context() as before:
        before.setattr(decode, "_eight_bits", lambda image: image)  # what Pillow makes of 16 bits: white
        assert run(tmp_path, *photos, "replace=true") == 0
    as_of_before(folder)
    assert run(tmp_path, *photos) == 2
    assert "1 of its images are not what they should be" in (said := capsys.readouterr().err)
    assert "ant/deep.png. replace=true makes it anew" in said
    with pytest.raises(ValueError, match="by an older version"):
        open_prepared(spec, tmp_path)
    assert run(tmp_path, *photos, "replace=true") == 0
    open_prepared(spec, tmp_path)


# ------------------------------------------------------------------------- the command


def test_a_copy_that_is_there_is_kept_or_replaced(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data / "prepared" / "imagenet-raw"
    before = prepared.state(folder / "train.beton")
    assert run(data, *IMAGENET) == 0
    assert "is there already: 24 + 12 images" in capsys.readouterr().out
    assert prepared.state(folder / "train.beton") == before
    image = data / "imagenet" / "train" / "n01440764" / "n01440764_5.JPEG"
    image.write_bytes(image.read_bytes() + b"\0")
    assert run(data, *IMAGENET) == 2
    assert "was prepared from other files than those that are there now" in capsys.readouterr().err
    assert run(data, *IMAGENET, "replace=true") == 0
    assert prepared.state(folder / "train.beton") != before
    assert sorted(path.name for path in folder.parent.iterdir()) == [".imagenet-raw.lock", "imagenet-raw"]
    assert run(data, *IMAGENET, "mode=jpg", "quality=80") == 0
    assert run(data, *IMAGENET, "mode=jpg", "quality=90") == 2
    assert "prepared with quality=80, not 90: replace=true" in capsys.readouterr().err


def test_a_full_disk_is_refused_before_anything_is_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    assert run(tmp_path, *IMAGENET, f"source={tree / 'imagenet'}") == 2
    assert "has 1.0 MB free, but about" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [".imagenet-raw.lock"]


@pytest.mark.parametrize("mode", ["raw", "jpg", "mixed"])
def test_the_estimate_of_the_size_is_near_what_is_written(tree: Path, mode: str) -> None:
    spec = spec_of(IMAGENET)
    asked = prepare.read_request([*IMAGENET, f"mode={mode}", "workers=1"])
    train, _ = read_source(spec, tree)
    estimate = prepare._estimate(asked, train) - 2 * beton.page_size(32 * 32 * 3)
    folder = tree / mode
    folder.mkdir()
    assert beton.write_beton(folder, "train", train, asked.compression, 1) == {}
    images = stored_images(Prepared(folder, "train", (3, 32, 32), mode, "", {}))[0]
    assert 1.0 < estimate / sum(len(image) for image in images) < 1.6


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ffcv.memory_allocator import MemoryAllocator

    def full(self: MemoryAllocator) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MemoryAllocator, "flush_page", full)
    assert run(tmp_path, "dataset=digits") == 1
    assert "No space left on device; nothing was written" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [".digits-raw.lock"]


def test_two_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from filelock import FileLock

    (tmp_path / "prepared").mkdir()
    with FileLock(tmp_path / "prepared" / ".digits-raw.lock"):
        assert run(tmp_path, "dataset=digits") == 2
    assert "is being prepared by another process" in capsys.readouterr().err


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "prepared" / ".digits-raw.part"
    left.mkdir(parents=True)
    (left / "train.beton").write_bytes(b"half")
    assert run(tmp_path, "dataset=digits") == 0
    assert sorted(path.name for path in left.parent.iterdir()) == [".digits-raw.lock", "digits-raw"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dataset= is not given. Known: .*imagenet"),
        (["dataset=imagnet"], r"dataset=imagnet is unknown; did you mean imagenet.*Known:"),
        (["dataset=digits", "soruce=x"], "'soruce=x' is unknown; did you mean source"),
        (["dataset=digits", "dataset.sise=9"], "'dataset.sise' is unknown; did you mean dataset.size"),
        (["dataset=imagenet", "mode=jpeg"], r"mode=jpeg is unknown; did you mean jpg\? Allowed: raw, jpg, mixed"),
        (["dataset=digits", "mode=jpg"], "mode=jpg: images of digits are grey, which FFCV stores raw only"),
        (["dataset=imagenet", "quality=0"], "quality=0 must be a whole number from 1 to 100"),
        (["dataset=imagenet", "workers=1.5"], "workers=1.5 must be a whole number"),
        (["dataset=imagenet", "share=2"], "share=2 must be a number from 0 to 1"),
        (["dataset=digits", "verify=yes"], "verify=yes is neither true nor false"),
        (["dataset=imagenet", "data=nowhere"], "nowhere/imagenet has neither"),
    ],
)
def test_a_wrong_command_line_is_answered(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    assert prepare.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_without_ffcv_the_answer_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(tmp_path, "dataset=digits") == 2
    assert "FFCV is not installed" in (said := capsys.readouterr().err)
    assert "pip install ffcv" in said


def test_a_users_folders_are_prepared_under_their_name(tmp_path: Path) -> None:
    write_folders(tmp_path)
    places = [f"dataset.{part}_images={tmp_path / part}" for part in ("train", "test")]
    overrides = ("dataset=folder", "dataset.name=insects", *places, *SMALL)
    command = python("-m", "mal.data.prepare", f"data={tmp_path}", *overrides, "mode=jpg", "verify=true")
    assert command.returncode == 0, command.stderr
    assert "insects-jpg: verified, every hash, image, label and index" in command.stdout
    train, test = open_prepared(replace(spec_of(overrides), prepared="jpg"), tmp_path)
    assert (len(train), len(test)) == (30, 12)
