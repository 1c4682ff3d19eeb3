"""Data sets in their real on-disk formats, whole, damaged and malicious."""

import pickle
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.config.compose import compose_sweep
from mal.config.schema import Dataset as Spec
from mal.data.dataset import load
from mal.data.sources import cifar100, digits, fashion_mnist
from tests.made_up_data import idx, original_cifar, pickled, write_cifar100, write_fashion


@cache
def spec(*overrides: str) -> Spec:
    (config,) = compose_sweep(["methods=[random]", "seeds=1", "initial=1", "budget=1", *overrides]).chains
    return config.dataset


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    train, test = digits.read_digits(spec("dataset=digits"), Path("unused"))
    images, labels = load_digits(return_X_y=True)
    found = {
        (*image.ravel().tolist(), label)
        for part in (train, test)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == {(*map(int, np.round(x * 255 / 16)), y) for x, y in zip(images, labels, strict=True)}
    assert len(train) + len(test) == len(images)


# ------------------------------------------------------------------------- Fashion-MNIST's idx files


SMALL_FASHION = ("dataset=fashion_mnist", "dataset.train=30", "dataset.test=20")


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path, zipped: bool) -> None:
    arrays = write_fashion(tmp_path / "fashion-mnist", zipped)
    found = load(spec(*SMALL_FASHION), tmp_path, seed=0)
    assert np.array_equal(found.train.images[:, 0], arrays["train-images-idx3-ubyte"])
    assert np.array_equal(found.oracle.label(np.arange(30)), arrays["train-labels-idx1-ubyte"])
    assert np.array_equal(found.test.images[:, 0], arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(found.test.labels, arrays["t10k-labels-idx1-ubyte"])


def test_fashion_mnist_32_is_fashion_mnist_within_two_black_pixels(tmp_path: Path) -> None:
    arrays = write_fashion(tmp_path / "fashion-mnist", False)
    found = load(spec("dataset=fashion_mnist_32", *SMALL_FASHION[1:]), tmp_path, seed=0)
    for split, part in ((found.train, "train"), (found.test, "t10k")):
        plain = arrays[f"{part}-images-idx3-ubyte"]
        assert split.images.shape[1:] == (1, 32, 32)
        assert np.array_equal(split.images[:, 0, 2:30, 2:30], plain)
        assert split.images.sum(dtype=np.int64) == plain.sum(dtype=np.int64)


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_debians_fashion_mnist_is_found_without_a_data_folder(tmp_path: Path) -> None:
    train, test = fashion_mnist.read_fashion_mnist(spec("dataset=fashion_mnist"), tmp_path)
    assert (train.images.shape, test.images.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(b ^ 0x5A for b in content[middle : middle + 40]) + content[middle + 40 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "flipped": flip_middle,
    "emptied": lambda content: b"",
    "longer": lambda content: content + b"more",
    "garbage": lambda content: bytes(range(256)) * 4,
    "a web page": lambda content: b"<html>404 Not Found</html>",
}


@pytest.mark.parametrize(
    ("damage", "zipped"),
    [(damage, zipped) for damage in DAMAGE for zipped in (False, True) if zipped or damage != "flipped"],  # no checksum
)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, name: str, damage: str, zipped: bool) -> None:
    folder = tmp_path / "fashion-mnist"
    write_fashion(folder, zipped)
    path = folder / (f"{name}.gz" if zipped else name)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=name):
        load(spec(*SMALL_FASHION), tmp_path, seed=0)


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_get_through_as_an_idx_file_or_raise_anything_but_valueerror(content: bytes, zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "fashion-mnist")
        write_fashion(folder)
        target = folder / "train-labels-idx1-ubyte"
        target.unlink()
        if zipped:
            Path(f"{target}.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + content)
        else:
            target.write_bytes(content)
        with pytest.raises(ValueError, match="train-labels-idx1-ubyte"):
            load(spec(*SMALL_FASHION), Path(name), seed=0)


def test_missing_files_are_named_with_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(ValueError, match=r"fashion-mnist or .*debian.*data=DIR"):
        load(spec(*SMALL_FASHION), tmp_path, seed=0)
    write_fashion(tmp_path / "fashion-mnist")
    (tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\[\.gz\] is missing"):
        load(spec(*SMALL_FASHION), tmp_path, seed=0)


def test_files_of_another_size_or_with_other_labels_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path / "fashion-mnist")
    with pytest.raises(ValueError, match=r"30 training images where 60000 are expected.*dataset\.train=30"):
        load(spec("dataset=fashion_mnist"), tmp_path, seed=0)
    with pytest.raises(ValueError, match="training labels from 0 to 9, not 0 to 3"):
        load(replace(spec(*SMALL_FASHION), classes=4), tmp_path, seed=0)
    with pytest.raises(ValueError, match=r"not uint8 \(1, 32, 32\)"):
        load(replace(spec(*SMALL_FASHION), size=32), tmp_path, seed=0)
    (tmp_path / "fashion-mnist" / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(29)))
    with pytest.raises(ValueError, match="30 training images but 29 labels"):
        load(spec(*SMALL_FASHION), tmp_path, seed=0)


# ------------------------------------------------------------------------- CIFAR100's pickles


SMALL_CIFAR = ("dataset=cifar100", "dataset.train=12", "dataset.test=6")


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    write_cifar100(tmp_path / "cifar-100-python")
    return tmp_path


def test_cifar100_is_read_as_python_2_wrote_it(cifar: Path) -> None:
    found = load(spec(*SMALL_CIFAR), cifar, seed=0)
    expected = original_cifar(12, seed=12)
    assert found.oracle.label(np.arange(12)).tolist() == expected[b"fine_labels"]
    assert np.array_equal(found.train.images, expected[b"data"].reshape(12, 3, 32, 32))
    assert found.test.labels.tolist() == original_cifar(6, seed=6)[b"fine_labels"]


def test_cifar100_is_what_torchvision_reads(cifar: Path) -> None:
    import hashlib

    from torchvision.datasets import CIFAR100

    def entry(part: str) -> list[str]:
        return [part, hashlib.md5((cifar / CIFAR100.base_folder / part).read_bytes()).hexdigest()]

    class SmallCIFAR100(CIFAR100):
        train_list: ClassVar = [entry("train")]
        test_list: ClassVar = [entry("test")]

        def _load_meta(self) -> None:
            pass

    ours = load(spec(*SMALL_CIFAR), cifar, seed=0)
    for train, images, labels in (
        (True, ours.train.images, ours.oracle.label(ours.pool)),
        (False, *vars(ours.test).values()),
    ):
        theirs = SmallCIFAR100(str(cifar), train=train)
        assert np.array_equal(images.transpose(0, 2, 3, 1), theirs.data)
        assert labels.tolist() == theirs.targets


class Malicious:
    """A pickle of it calls a function when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_cifar100_file_is_refused_and_not_run(cifar: Path, protocol: int) -> None:
    witness = cifar / "was-here"
    content = {"data": Malicious(witness), "fine_labels": [0]}
    (cifar / "cifar-100-python" / "train").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=r"cifar-100-python/train is not CIFAR100's python version"):
        load(spec(*SMALL_CIFAR), cifar, seed=0)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Malicious(witness), protocol=protocol))  # it would have run
    assert witness.exists()


@pytest.mark.parametrize("name", ["system", "popen"])
def test_a_pickle_that_names_os_is_refused(cifar: Path, name: str) -> None:
    content = f"cos\n{name}\n(S'true'\ntR.".encode()
    (cifar / "cifar-100-python" / "test").write_bytes(content)
    with pytest.raises(ValueError, match=f"os.{name}"):
        load(spec(*SMALL_CIFAR), cifar, seed=0)


def test_a_missing_or_wrong_cifar100_file_is_named(cifar: Path) -> None:
    test, train = (cifar / "cifar-100-python" / part for part in ("test", "train"))
    whole = train.read_bytes()
    for content in (
        whole[:-1000],
        b"",
        b"<html>",
        pickled({b"data": np.zeros((2, 5), np.uint8), b"fine_labels": [0, 1]}),
    ):
        train.write_bytes(content)
        with pytest.raises(ValueError, match="cifar-100-python/train"):
            load(spec(*SMALL_CIFAR), cifar, seed=0)
    train.write_bytes(whole)
    test.unlink()
    with pytest.raises(ValueError, match=r"cifar-100-python/test is missing.*data="):
        load(spec(*SMALL_CIFAR), cifar, seed=0)
    shutil.rmtree(cifar / "cifar-100-python")
    with pytest.raises(ValueError, match="cifar-100-python/train is missing"):
        load(spec(*SMALL_CIFAR), cifar, seed=0)


SHORT_PICKLE = pickled({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [7], b"filenames": [b"a.png"]})


@given(
    st.integers(0, 400) | st.integers(len(SHORT_PICKLE) - 200, len(SHORT_PICKLE) - 1),
    st.sampled_from([b"", b"\0", b"\xff"]),
)
def test_a_cifar100_file_whose_end_is_lost_anywhere_is_refused(end: int, filling: bytes) -> None:
    content = SHORT_PICKLE[:end] + filling * (len(SHORT_PICKLE) - end)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "train")
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train is not CIFAR100's python version"):
            cifar100._read_cifar100(path)
