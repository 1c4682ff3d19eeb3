"""One small picture in some fifty odd forms, as they come from cameras, scanners, scientists and failed downloads."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

WIDTH, HEIGHT = 60, 44


def photo(seed: int = 0) -> Image.Image:
    """A smooth picture that is not symmetric, with black and white in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).copy()
    image[:6, :9], image[-5:, -7:] = 255, 0
    return Image.fromarray(image)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(kind: str, orientation: int, image: Image.Image | None = None) -> bytes:
    """A picture with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image or photo(), kind, exif=exif)


def png(image: np.ndarray, bits: int, colour: int, chunks: bytes = b"") -> bytes:
    """A PNG of any depth: image (H, W) or (H, W, C) whole numbers below 2^bits; colour: PNG's type; chunks: more."""
    rows = image.reshape(len(image), -1)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        ones = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel() for row in rows]
        packed = [np.packbits(row).tobytes() for row in ones]
    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def grey(depth: int) -> np.ndarray:
    """The picture's brightness by whole numbers of `depth` bits, over their whole range."""
    values = np.asarray(photo().convert("L")).astype(np.int64)
    return values * (2**depth - 1) // 255


def odd_images() -> dict[str, bytes]:
    """The forms by name; those under `bad_` cannot be read, the others can."""
    image, plain = photo(), saved(photo(), "JPEG", quality=95)
    floats = np.asarray(image.convert("L")).astype(np.float32)
    found = {
        "plain.jpg": plain,
        "grey.jpg": saved(image.convert("L"), "JPEG"),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "optimised.jpeg": saved(image, "JPEG", optimize=True, subsampling=0),
        "trailing.jpe": plain + b"\0" * 1000,
        "upper.JPG": plain,
        "jfif.jfif": plain,
        "with_icc.jpg": saved(image, "JPEG", icc_profile=b"\0" * 128),
        "long_comment.jpg": saved(image, "JPEG", comment=b"x" * 60_000),
        "corrupt_exif.jpg": saved(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20),
        "png_as.JPEG": saved(image, "PNG"),
        "gif_as.jpg": saved(image, "GIF"),
        "plain.png": saved(image, "PNG"),
        "grey.png": saved(image.convert("L"), "PNG"),
        "grey_1.png": png(grey(1), 1, 0),
        "grey_2.png": png(grey(2), 2, 0),
        "grey_4.png": png(grey(4), 4, 0),
        "grey_16.png": png(grey(16), 16, 0),
        "rgb_16.png": png(np.asarray(image).astype(np.int64) * 257, 16, 2),
        "la.png": saved(image.convert("LA"), "PNG"),
        "rgba.png": saved(image.convert("RGBA"), "PNG"),
        "palette.png": saved(image.quantize(16), "PNG"),
        "transparent.png": saved(image.quantize(16), "PNG", transparency=3),
        "interlaced_text.png": saved(image, "PNG", pnginfo=long_text(2_000_000)),
        "one_pixel.png": saved(image.crop((20, 20, 21, 21)), "PNG"),
        "wide.png": saved(image.resize((3000, 1)), "PNG"),
        "tall.png": saved(image.resize((1, 2000)), "PNG"),
        "plain.bmp": saved(image, "BMP"),
        "plain.gif": saved(image, "GIF"),
        "moving.gif": saved(image, "GIF", save_all=True, append_images=[photo(1), photo(2)]),
        "plain.webp": saved(image, "WEBP", lossless=True),
        "plain.tif": saved(image, "TIFF"),
        "packed.tiff": saved(image, "TIFF", compression="tiff_lzw"),
        "pages.tif": saved(image, "TIFF", save_all=True, append_images=[photo(1)]),
        "grey_16.tif": saved(Image.fromarray(grey(16).astype(np.uint16)), "TIFF"),
        "int_32_of_16.tif": saved(Image.fromarray(grey(16).astype(np.int32)), "TIFF"),
        "int_32.tif": saved(Image.fromarray(grey(31).astype(np.int32)), "TIFF"),
        "float_to_1.tif": saved(Image.fromarray(floats / 255), "TIFF"),
        "float_to_255.tif": saved(Image.fromarray(floats), "TIFF"),
        "plain.ppm": saved(image, "PPM"),
        "grey_16.pgm": b"P5 60 44 65535\n" + grey(16).astype(">u2").tobytes(),
        "plain.jp2": saved(image, "JPEG2000"),
        **{f"exif_{n}.jpg": oriented("JPEG", n) for n in (1, 3, 6, 8)},
        "exif_6.png": oriented("PNG", 6),
        "exif_5.webp": oriented("WEBP", 5),
        "exif_6.tif": saved(image, "TIFF", tiffinfo={0x0112: 6}),
    }
    return found | bad_images(plain, image, floats)


def bad_images(plain: bytes, image: Image.Image, floats: np.ndarray) -> dict[str, bytes]:
    """Forms that must be refused."""
    return {
        "bad_empty.jpg": b"",
        "bad_cut.jpg": plain[: len(plain) // 2],
        "bad_page.jpg": b"<html><body>403 Forbidden</body></html>",
        "bad_lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        "bad_12_bit.jpg": plain.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        "bad_cut.png": saved(image, "PNG")[:-200],
        "bad_negative.tif": saved(Image.fromarray((grey(16) - 5000).astype(np.int32)), "TIFF"),
        "bad_float.tif": saved(Image.fromarray(floats * 100), "TIFF"),
        "bad_nan.tif": saved(Image.fromarray(np.where(floats > 100, np.nan, floats / 255).astype(np.float32)), "TIFF"),
        "bad_dark_16.png": png(grey(8), 16, 0),
        "bad_huge.png": huge(),
    }


def long_text(count: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * count, zip=True)
    return info


def huge() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
