"""Readers of datasets in their real on-disk formats: `read(spec, data)` gives the training and the test split.

A source knows files, not protocols: which subset is the pool is decided in `mal.data.dataset` from the specification.
"""

from __future__ import annotations

import gzip
import importlib.util
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mal.config import Dataset as Spec
from mal.data.prepared import Prepared
from mal.data.splits import Arrays, Readable
from mal.registry import Registry
from mal.rng import generator

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


Split = Readable | Prepared
Source = Callable[[Spec, Path], tuple[Readable, Readable]]
SOURCES: Registry[Source] = Registry("dataset source")


@SOURCES.register("digits")
def read_digits(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """scikit-learn's digits with a fixed split: of each class the same share is test, drawn once for all seeds."""
    table = _packaged_digits()
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[:, None]
    labels = table[:, -1].astype(np.int64)
    test = stratified(labels, spec.test, generator("test split", "digits"))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Arrays(images[train], labels[train]), Arrays(images[test], labels[test])


def _packaged_digits() -> np.ndarray:
    """The file behind sklearn.datasets.load_digits, (1797, 64 + 1): importing that costs a process over a second."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz") as file:
        return np.loadtxt(file, delimiter=",")


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


@SOURCES.register("cifar100")
def read_cifar100(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """CIFAR100's python version, DATA/cifar-100-python/{train,test} as torchvision unpacks it; no code of it is run."""
    folder = files_of(spec, data, "cifar-100-python")
    return _read_cifar100(folder / "train"), _read_cifar100(folder / "test")


def files_of(spec: Spec, data: Path, folder: str) -> Path:
    """Where the files of a dataset are: dataset.root, or DATA/FOLDER."""
    return Path(spec.root) if spec.root else data / folder


def check_split(name: str, part: str, split: Split, spec: Spec, expected: int) -> None:
    """Refuse images and labels that are not what the specification says, with a ValueError."""
    labels, shape = split.labels, (spec.channels, spec.size, spec.size)
    if split.shape != shape:
        raise ValueError(f"{name}: {part} images are uint8 {split.shape}, not uint8 {shape}.")
    if len(split) != len(labels):
        raise ValueError(f"{name}: {len(split)} {part} images but {len(labels)} labels.")
    if len(split) != expected:
        key = "train" if part == "training" else "test"
        raise ValueError(
            f"{name}: {len(split)} {part} images where {expected} are expected: the files are not whole, or set "
            f"dataset.{key}={len(split)} if this is what you mean."
        )
    if not isinstance(labels, np.ndarray) or labels.ndim > 1:
        return  # maps are checked one by one as they are read
    if labels.min() < 0 or labels.max() >= spec.classes:
        raise ValueError(f"{name}: {part} labels from {labels.min()} to {labels.max()}, not 0 to {spec.classes - 1}.")


def stratified(labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` indices, of each class nearly the same share of its images; sorted."""
    order = random.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.lexsort((np.arange(len(labels)), rank))[:count])


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


class _PlainUnpickler(pickle.Unpickler):
    """CIFAR100's pickles hold dicts, lists, bytes and numpy arrays; anything else in one is refused."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in an image file")
        return super().find_class(module, name)


def _read_cifar100(path: Path) -> Arrays:
    if not path.is_file():
        raise ValueError(f"{path} is missing: unpack cifar-100-python.tar.gz in the folder that data= names.")
    try:
        with path.open("rb") as file:
            # Written by Python 2: its strings are bytes here. A copy written again by Python 3 may have either.
            loaded = _PlainUnpickler(file, encoding="bytes").load()
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in loaded.items()}
        images = np.asarray(content["data"])
        labels = np.asarray(content["fine_labels"], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not CIFAR100's python version ({error}): it is cut or damaged.") from None
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise ValueError(f"{path}: data is {images.dtype} {images.shape}, not uint8 (N, 3072).")
    return Arrays(images.reshape(-1, 3, 32, 32), labels)
