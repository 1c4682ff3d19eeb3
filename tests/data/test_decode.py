"""Images as they come: depths, orientations, formats and damage; the same pixels or the same refusal everywhere."""

import io
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mal.config.compose import compose_sweep
from mal.data import decode, prepare
from mal.data.dataset import load
from mal.data.decode import Reading, decode_image, decode_map, jpeg_sides, read_head
from mal.data.image_set import Files, Store
from mal.data.loader import build_loader
from mal.listing import list_images
from tests.made_up_data import put
from tests.odd_images import HEIGHT, WIDTH, grey, huge, long_text, odd_images, oriented, photo, png, saved

PLAIN = Reading(32, "stretch")
TURNED = Reading(32, "stretch", exif=True)
ODD = odd_images()
GOOD = {name: content for name, content in ODD.items() if not name.startswith("bad_")}
BAD = {name: content for name, content in ODD.items() if name.startswith("bad_")}
GREY = decode_image(saved(photo().convert("L"), "PNG"), PLAIN)
COLOUR = decode_image(saved(photo(), "PNG"), PLAIN)


def test_the_collection_has_forty_forms_that_can_be_read() -> None:
    assert len(GOOD) >= 40


@pytest.mark.parametrize("name", [n for n in GOOD if n.startswith(("grey_16", "int_32", "float", "grey_8"))])
def test_every_depth_gives_the_picture_of_eight_bits(name: str) -> None:
    assert np.abs(decode_image(ODD[name], PLAIN).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("name", ["rgb_16.png", "plain.bmp", "plain.tif", "packed.tiff", "plain.ppm", "plain.webp"])
def test_every_lossless_form_gives_the_same_pixels(name: str) -> None:
    assert np.array_equal(decode_image(ODD[name], PLAIN), COLOUR)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_spans_black_to_white(bits: int) -> None:
    found = decode_image(ODD[f"grey_{bits}.png"], PLAIN)
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bad_empty.jpg", "it is empty"),
        ("bad_cut.jpg", "truncated"),
        ("bad_page.jpg", "it is a web page"),
        ("bad_lfs.jpg", "Git LFS"),
        ("bad_12_bit.jpg", "in no format that can be read here"),
        ("bad_cut.png", "truncated|broken|damaged"),
        ("bad_negative.tif", "from -5000 to 60535: whole numbers must not be negative"),
        ("bad_float.tif", r"from 0 to 25500, not within \[0, 1\] or \[0, 255\]"),
        ("bad_nan.tif", "nan"),
        ("bad_dark_16.png", "reach 255 only, so it would be black"),
        ("bad_huge.png", r"60000 x 60000 pixels, more than dataset\.max_pixels=178956970: set that to 3600000000"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        decode_image(ODD[name], PLAIN)
    assert "BytesIO" not in str(refusal.value)


def test_16_and_32_bits_of_a_tiff_are_read_as_its_tags_say() -> None:
    values = grey(16)
    for expected, content in (
        (values >> 8, saved(Image.fromarray(values.astype(np.uint16)), "TIFF")),
        ((65535 - values) >> 8, saved(Image.fromarray(values.astype(np.uint16)), "TIFF", tiffinfo={262: 0})),
        (grey(32) >> 24, unsigned_32(grey(32))),
        (values >> 8, unsigned_32(values)),
    ):
        found = np.asarray(decode._eight_bits(decode._loaded(content, PLAIN)))
        assert np.array_equal(found, expected)


def unsigned_32(values: np.ndarray) -> bytes:
    """A TIFF of whole numbers below 2^32, which Pillow writes as signed: its tag is changed."""
    content = saved(Image.fromarray(values.astype(np.uint32).view(np.int32)), "TIFF")
    signed = struct.pack("<HHII", 339, 3, 1, 2)
    assert signed in content
    return content.replace(signed, struct.pack("<HHII", 339, 3, 1, 1))


# ------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied_or_ignored(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {}
    content = saved(photo(), kind, **options) if options else oriented(kind, orientation)
    stored = np.asarray(Image.open(io.BytesIO(saved(photo(), kind))).convert("RGB"))
    tagged = Image.fromarray(stored)
    tagged.getexif()[0x0112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(tagged))
    for how, expected in ((PLAIN, stored), (TURNED, shown)):
        whole = np.asarray(decode._loaded(content, how).convert("RGB"))
        assert np.array_equal(whole, expected)
        head = read_head(content, how)
        assert (head.height, head.width) == expected.shape[:2]
        assert head.orientation == orientation


def test_a_damaged_orientation_counts_as_none() -> None:
    for how in (PLAIN, TURNED):
        assert decode_image(ODD["corrupt_exif.jpg"], how).shape == (3, 32, 32)


def test_orientation_is_in_what_a_pool_is_recognised_by(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(ODD["exif_6.jpg"])
    store = Store.of(tmp_path, list_images(tmp_path, "key"))
    plain, turned = (Files(store, np.zeros(1, np.int64), 32, "square", exif=exif) for exif in (False, True))
    assert [a.tobytes() for a in plain.identity()] != [a.tobytes() for a in turned.identity()]
    assert plain.identity()[-1].tobytes() == b"square 32"  # as before there was a choice: chains of then go on


# ------------------------------------------------------------------------- large ones


def test_an_image_of_extreme_sides_costs_what_its_square_costs() -> None:
    content = saved(photo().resize((12_000, 1)), "PNG")
    decode_image(content, Reading(32, "square"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decode_image(content, Reading(256, "square"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize("sides", [(3000, 1), (1, 3000), (5000, 40), (70, 7000)])
def test_the_window_of_a_long_image_has_the_pixels_of_the_whole(
    sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8)
    content, found = saved(Image.fromarray(noise), "PNG"), []
    for longest in (10**9, 1):
        monkeypatch.setattr(decode, "LONG", longest)
        found.append(decode_image(content, Reading(32, "square")).astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1


def test_a_genuine_large_image_and_long_text_are_read_when_the_key_says_so() -> None:
    large = saved(photo().resize((300, 200)), "PNG")
    with pytest.raises(ValueError, match=r"300 x 200 pixels, more than dataset\.max_pixels=50000: set that to 60000"):
        decode_image(large, Reading(32, "square", max_pixels=50_000))
    assert decode_image(large, Reading(32, "square", max_pixels=60_000)).shape == (3, 32, 32)
    texts = saved(photo(), "PNG", pnginfo=long_text(70_000))
    with pytest.raises(ValueError, match=r"text chunks have more bytes than dataset\.max_pixels"):
        decode_image(texts, Reading(32, "square", max_pixels=50_000))
    assert decode_image(texts, Reading(32, "square", max_pixels=80_000)).shape == (3, 32, 32)


# ------------------------------------------------------------------------- heads and maps


@pytest.mark.parametrize("name", GOOD)
def test_a_head_tells_the_sides(name: str) -> None:
    head = read_head(ODD[name], PLAIN)
    whole = decode._loaded(ODD[name], PLAIN)
    assert (head.width, head.height) == whole.size
    assert jpeg_sides(ODD[name][:4096]) in (None, whole.size)


def test_a_head_finds_depths_that_cannot_be_read() -> None:
    for name in ("bad_negative.tif", "bad_float.tif", "bad_nan.tif", "bad_dark_16.png"):
        with pytest.raises(ValueError, match="its values"):
            read_head(ODD[name], PLAIN)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_map_has_the_classes_that_its_bits_say(bits: int) -> None:
    classes = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % min(2**bits, 19)
    found = decode.whole_map(png(classes, bits, 0), PLAIN)
    assert np.array_equal(found, classes)


def test_pixels_of_a_png_that_lost_a_bit_are_refused() -> None:
    whole = png(np.zeros((HEIGHT, WIDTH), np.int64), 8, 0)
    at = whole.index(b"IDAT") + 12
    damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for read in (decode_image, decode_map, read_head):
        with pytest.raises(ValueError, match="do not have their checksum"):
            read(damaged, PLAIN)


def test_a_palettes_places_are_the_classes() -> None:
    classes = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 5
    image = Image.fromarray(classes, "P")
    image.putpalette([7, 200, 3] * 5)
    assert set(np.unique(decode_map(saved(image, "PNG"), PLAIN))) == set(range(5))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (saved(photo(), "PNG"), "its mode is RGB, not 8-bit classes"),
        (png(grey(16), 16, 0), "its mode is I;16, not 8-bit classes"),
        (saved(photo().convert("L"), "JPEG"), "a JPEG, which changes classes at their borders"),
        (huge(), "60000 x 60000"),
    ],
)
def test_what_is_no_map_of_classes_is_refused_by_its_head(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_head(content, PLAIN, is_map=True)
    with pytest.raises(ValueError, match=words):
        decode_map(content, PLAIN)


# ------------------------------------------------------------------------- all loaders alike


@pytest.mark.ffcv
@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_a_raw_prepared_copy_has_the_same_bytes_of_every_odd_form(tmp_path: Path, exif: str) -> None:
    for number, (name, content) in enumerate(GOOD.items()):
        for part in ("train", "test"):
            put(tmp_path / part / ("one", "two")[number % 2] / name, content)
    where = [f"dataset.{part}_images={tmp_path}/{part}" for part in ("train", "test")]
    fixed = ["dataset=folder", *where, "dataset.size=32", "dataset.crop=28", f"dataset.exif={exif}"]
    assert prepare.main([*fixed, f"data={tmp_path}/data", "workers=1", "verify=true"]) == prepare.EXIT_DONE
    chain = ["methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1"]
    spec = compose_sweep([*fixed, *chain]).chains[0].dataset
    files, copy = load(spec, tmp_path / "data", 0).train, load(spec, tmp_path / "data", 0, "ffcv").train
    assert isinstance(files, Files)
    loader = build_loader("ffcv", copy, np.zeros(len(copy), np.int64), torch.device("cpu"))
    found = loader.load(np.arange(len(copy))).images.numpy()
    assert np.array_equal(found, np.stack([files.read(at) for at in range(len(files))]))


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("resize", ["square", "stretch"])
def test_the_loaders_give_the_same_bytes_of_every_odd_form_or_the_same_refusal(
    tmp_path: Path, exif: bool, resize: str
) -> None:
    for name, content in ODD.items():
        (tmp_path / name).write_bytes(content)
    store = Store.of(tmp_path, list_images(tmp_path, "key"))
    split = Files(store, np.zeros(len(store), np.int64), 32, resize, exif=exif)
    good = [at for at in range(len(split)) if not split.store.name(at).startswith("bad_")]
    assert len(good) == len(GOOD)
    expected = np.stack([split.read(at) for at in good])
    labels, cpu = np.zeros(len(split), np.int64), torch.device("cpu")
    torch_loader = build_loader("torch", split, labels, cpu)
    assert np.array_equal(torch_loader.load(np.array(good)).images.numpy(), expected)
    fewer = split.without(np.setdiff1d(np.arange(len(split)), good))
    memory = build_loader("memory", fewer, labels[: len(fewer)], cpu)
    assert np.array_equal(memory.load(np.arange(len(fewer))).images.numpy(), expected)
    for at in set(range(len(split))) - set(good):
        with pytest.raises(ValueError, match=split.store.name(at)) as refusal:
            split.read(at)
        with pytest.raises(ValueError, match=split.store.name(at)) as same:
            torch_loader.load(np.array([at]))
        assert str(same.value) == str(refusal.value)
