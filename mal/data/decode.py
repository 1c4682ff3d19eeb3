"""One image file's bytes to pixels: which formats are read, how each depth and orientation counts, how it is resized.

Every loader and `prepare` read images here alone, so they get the same bytes or the same refusal. Importing this module
imports neither torch nor Pillow.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mal.listing import FORMATS, open_formats

PIXELS = 3  # which rules make pixels of a file: to be raised when they change for any file
MAX_PIXELS = 178_956_970  # of one file; Pillow's own limit
LONG = 64  # sides beyond this ratio are cropped before they are resized, which else takes gigabytes
ORIENTATION = 0x0112  # of EXIF: 1 to 8, 1 as stored
BITS, PHOTOMETRIC, SAMPLES = 258, 262, 339  # TIFF's tags
DEEP = ("I", "F")  # modes of more than 8 bits a channel

# What Pillow raises for files that are cut, damaged or malicious; one that says no more of itself is OSError.
DAMAGED = (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, EOFError, AttributeError)
DAMAGED += (struct.error, zlib.error, RuntimeError, AssertionError)  # type: ignore[assignment]


@dataclass(frozen=True)
class Reading:
    """How image files become arrays.

    size: side in pixels; resize: `square` (the shorter side to `size`, then the square at the centre) or `stretch`
    (both sides to `size`); exif: whether an image is turned as its EXIF orientation says; max_pixels: of one file.
    """

    size: int
    resize: str
    exif: bool = False
    max_pixels: int = MAX_PIXELS

    def identity(self) -> str:
        """What of it decides the pixels; as it was before there was EXIF where that is ignored."""
        return f"{self.resize} {self.size}{' exif' if self.exif else ''}"


class Head(NamedTuple):
    """What is known of an image without decoding it: its sides as it will be read, its kind, its orientation."""

    width: int
    height: int
    format: str
    mode: str
    orientation: int
    palette: bytes | None


def decode_image(content: bytes, how: Reading) -> np.ndarray:
    """An image as uint8 (3, S, S); ValueError saying what is wrong with it.

    Whole numbers of more than 8 bits are scaled by their range, of which 32-bit ones up to 65535 use 16 bits; floats
    must lie in [0, 1] or in [0, 255].
    """
    image = _loaded(content, how)
    try:
        colour = _eight_bits(image).convert("RGB")
        resized = _square(colour, how.size) if how.resize == "square" else _stretch(colour, how.size)
        return np.asarray(resized).transpose(2, 0, 1)
    except DAMAGED as error:
        raise ValueError(_reason(error, content)) from None


def picture(content: bytes, how: Reading) -> bytes:
    """An image as people look at it, a PNG of at most `how.size` pixels a side; ValueError saying what is wrong."""
    shown = _eight_bits(_loaded(content, how)).convert("RGB")
    shown.thumbnail((how.size, how.size))
    file = io.BytesIO()
    shown.save(file, "PNG")
    return file.getvalue()


def decode_map(content: bytes, how: Reading) -> np.ndarray:
    """A map of classes, resized by nearest neighbour (Section 4.1): uint8 (S, S); ValueError saying what is wrong."""
    whole = _module().fromarray(whole_map(content, how))
    return np.asarray(whole.resize((how.size, how.size), _module().Resampling.NEAREST))


def whole_map(content: bytes, how: Reading) -> np.ndarray:
    """A map of classes in its own size: uint8 (H, W)."""
    classes = np.asarray(_loaded(content, how, is_map=True), dtype=np.uint8)
    png_bits = content[24] if content.startswith(b"\x89PNG") and content[25] == 0 else 8
    return classes // {2: 85, 4: 17}.get(png_bits, 1)  # Pillow spreads grey of 2 and 4 bits over 0 to 255


def read_head(content: bytes, how: Reading, is_map: bool = False) -> Head:
    """What the head of a file says; ValueError saying what is wrong. content: the whole file.

    Images whose depth needs a look at their values are decoded.
    """
    image = _opened(content, how)
    orientation = _orientation(image)
    palette = image.palette.tobytes() if is_map and image.mode == "P" and image.palette is not None else None
    width, height = image.size
    turned = orientation >= 5
    if turned and (how.exif != (image.format == "TIFF")):  # Pillow tells a TIFF's sides as they will be, turned
        width, height = height, width
    head = Head(width, height, str(image.format), image.mode, orientation, palette)
    if is_map:
        _check_map(image)
    elif image.mode.startswith(DEEP):
        decode_image(content, how)
    return head


def jpeg_sides(head: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of 8 bits from its first bytes; None where they do not tell, or it is rarer."""
    at = 2
    if head[:2] != b"\xff\xd8":
        return None
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], (head[at + 2] << 8) + head[at + 3]
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = (head[at + 5] << 8) + head[at + 6], (head[at + 7] << 8) + head[at + 8]
            return (width, height) if head[at + 4] == 8 and width and height else None
        at += 2 + length
    return None


@cache
def _module() -> Any:
    from PIL import Image

    open_formats()
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit, and says its key
    # Of tags and palettes that do not decide the pixels; what does decide them raises.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    return Image


def _opened(content: bytes, how: Reading) -> Any:
    module = _module()
    from PIL import PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = how.max_pixels
    try:
        image = module.open(io.BytesIO(content), formats=[name for name in FORMATS if name in module.OPEN])
        pixels = image.width * image.height
    except DAMAGED as error:
        raise ValueError(_reason(error, content)) from None
    if pixels > how.max_pixels:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, more than dataset.max_pixels={how.max_pixels}: set that to "
            f"{pixels} if it is genuine"
        )
    if pixels == 0:
        raise ValueError("it has no pixels")
    if image.format == "PNG":
        _check_sums(content)
    return image


def _check_sums(content: bytes) -> None:
    """Refuse a PNG whose pixels do not have their checksum, which Pillow does not look at: they are read as others."""
    at = 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        end = at + 8 + length
        if content[at + 4 : at + 8] == b"IDAT" and zlib.crc32(content[at + 4 : end]) != int.from_bytes(
            content[end : end + 4], "big"
        ):
            raise ValueError("its pixels do not have their checksum: it is damaged")
        at = end + 4


def _loaded(content: bytes, how: Reading, is_map: bool = False) -> Any:
    """The image decoded, and turned where that is asked for."""
    image = _opened(content, how)
    if is_map:
        _check_map(image)
    try:
        orientation = _orientation(image)
        image.load()
        turned = image.format == "TIFF"  # Pillow turns these itself
        if orientation == 1 or turned == how.exif:
            return image
        way = _TURNS[orientation - 1] if how.exif else _TURNS[_BACK[orientation - 1] - 1]
        return image.transpose(getattr(_module().Transpose, way))
    except DAMAGED as error:
        raise ValueError(_reason(error, content)) from None


_TURNS = (
    *("", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM"),
    *("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"),
)
_BACK = (1, 2, 3, 4, 5, 8, 7, 6)  # the orientation that undoes each


def _orientation(image: Any) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except DAMAGED:
        return 1  # as every viewer does with a damaged tag
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _check_map(image: Any) -> None:
    if image.mode not in ("L", "P", "1"):
        raise ValueError(f"its mode is {image.mode}, not 8-bit classes")
    if image.format == "JPEG":
        raise ValueError("it is a JPEG, which changes classes at their borders: save it as PNG")


def _eight_bits(image: Any) -> Any:
    """The image with 8 bits a channel."""
    if not image.mode.startswith(DEEP):
        return image
    values = _values(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):
            raise ValueError(f"its values go from {low:g} to {high:g}, not within [0, 1] or [0, 255]")
        scaled = np.rint(values * 255 if high <= 1 else values)
    else:
        if low < 0:
            raise ValueError(f"its values go from {low} to {high}: whole numbers must not be negative")
        scaled = values >> (8 if high < 2**16 else 23)
    if high > 0 and not scaled.any():
        raise ValueError(f"its values reach {high:g} only, so it would be black: save it with 8 bits")
    return _module().fromarray(scaled.astype(np.uint8))


def _values(image: Any) -> np.ndarray:
    """The numbers of an image of more than 8 bits, where Pillow gives a TIFF's otherwise than it means them."""
    values = np.asarray(image)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if image.mode == "I" and tags.get(BITS) == (32,) and tags.get(SAMPLES, (1,)) == (1,):
        unsigned = values.view(np.uint32)
        values = values if unsigned.max() < 2**16 else (unsigned >> 1).astype(np.int32)
    if image.mode.startswith("I;16") and tags.get(PHOTOMETRIC) == 0:
        return np.subtract(2**16 - 1, values, dtype=np.int32)  # 0 is white
    return values


def _stretch(image: Any, size: int) -> Any:
    return image.resize((size, size), _module().Resampling.BILINEAR)  # Pillow's takes the mean where it shrinks


def _square(image: Any, size: int) -> Any:
    """As torchvision's Resize(size), CenterCrop(size): the same pixels."""
    short, long = sorted(image.size)
    longer = int(size * long / short)
    width, height = (longer, size) if image.width > image.height else (size, longer)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if longer > LONG * size:
        return _window(image, size, left, top, long / longer)
    return image.resize((width, height), _module().Resampling.BILINEAR).crop((left, top, left + size, top + size))


def _window(image: Any, size: int, left: int, top: int, scale: float) -> Any:
    """The square of the resized image, from that part alone."""
    wide = image.width > image.height
    length = image.width if wide else image.height
    first = (left if wide else top) * scale
    begin, end = max(0, int(first - 2 * scale) - 2), min(length, int(first + (size + 2) * scale) + 3)
    span = first - begin, first - begin + size * scale
    box = (begin, 0, end, image.height) if wide else (0, begin, image.width, end)
    part = image.crop(box)
    inner = (span[0], 0, span[1], image.height) if wide else (0, span[0], image.width, span[1])
    return part.resize((size, size), _module().Resampling.BILINEAR, box=inner)


def _reason(error: BaseException, content: bytes) -> str:
    """What is wrong, in words that do not speak of Pillow's objects."""
    begin = content[:200].lstrip().lower()
    if not content:
        return "it is empty"
    if begin.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: fetch the file itself by `git lfs pull`"
    if begin.startswith((b"<html", b"<!doctype", b"<?xml")):
        return "it is a web page"
    text = str(error)
    if "MAX_TEXT" in text:
        return "its text chunks have more bytes than dataset.max_pixels: set that higher if it is genuine"
    if "cannot identify" in text or "BytesIO" in text:
        return "it is in no format that can be read here, or damaged"
    return text or type(error).__name__
