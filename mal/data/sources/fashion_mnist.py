"""Fashion-MNIST's idx files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.registry import SOURCES

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@SOURCES.register("fashion_mnist")
def read_fashion_mnist(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """Fashion-MNIST's idx files, plain or gzipped, in DATA/fashion-mnist or where Debian's package puts them."""
    return _read_fashion_mnist(spec, data)


@SOURCES.register("fashion_mnist_32")
def read_fashion_mnist_32(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """Fashion-MNIST's images with two black pixels on each side."""
    return _read_fashion_mnist(spec, data, border=2)


def _read_fashion_mnist(spec: Spec, data: Path, border: int = 0) -> tuple[Arrays, Arrays]:
    places = [Path(spec.root)] if spec.root else [data / "fashion-mnist", DEBIAN_FASHION_MNIST]
    folder = next((p for p in places if any(p.glob("train-images-idx3-ubyte*"))), None)
    if folder is None:
        raise ValueError(
            f"fashion_mnist: no train-images-idx3-ubyte[.gz] in {' or '.join(map(str, places))}. Put the four idx "
            "files there, set data=DIR, or install Debian's package dataset-fashion-mnist."
        )
    splits = []
    for part in ("train", "t10k"):
        images = _read_idx(folder, f"{part}-images-idx3-ubyte", dimensions=3)
        labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
        images = np.pad(images, ((0, 0), (border, border), (border, border))) if border else images
        splits.append(Arrays(images[:, None], labels.astype(np.int64)))
    return splits[0], splits[1]


def _read_idx(folder: Path, stem: str, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes: two zero bytes, type 8, the number of dimensions, the sizes, the data."""
    path = next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)
    if path is None:
        raise ValueError(f"{folder / stem}[.gz] is missing; it belongs to fashion_mnist's four idx files.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is cut or damaged; fetch it again.") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise ValueError(f"{path} is not an idx file of {dimensions}-dimensional unsigned bytes.")
    shape = tuple(np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).astype(int))
    if len(content) != header + int(np.prod(shape)):
        raise ValueError(
            f"{path} holds {len(content) - header} bytes of data, its header says {int(np.prod(shape))}: it is cut."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
