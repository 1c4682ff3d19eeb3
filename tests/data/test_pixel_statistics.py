"""Mean and deviation of a pool's pixels: computed once, kept as they grow, never again where a copy has them."""

import contextlib
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mal.config.compose import compose_sweep
from mal.config.schema import Dataset as Spec
from mal.data import prepare
from mal.data.dataset import Dataset, load
from mal.data.image_set import Files, in_memory
from mal.data.pixel_statistics import array_moments, pixel_statistics, statistics
from mal.process.interrupt import Interrupted
from tests.made_up_data import write_imagenet_tree

OF_SWEEP = ("methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1")
IMAGENET = ("dataset=imagenet", "dataset.classes=3", "dataset.train=24", "dataset.test=12", "dataset.size=32")


def spec_of(*overrides: str) -> Spec:
    return compose_sweep([*OF_SWEEP, *IMAGENET, "dataset.crop=28", *overrides]).chains[0].dataset


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_imagenet_tree(tmp_path / "imagenet")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which files are read as images."""
    indices: list[int] = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda self, index: (indices.append(index), read(self, index))[1])
    return indices


def plain(found: tuple[np.ndarray, np.ndarray]) -> list[list[float]]:
    return [values.tolist() for values in found]


def expected(dataset: Dataset) -> list[list[float]]:
    assert isinstance(dataset.train, Files)
    whole = in_memory(dataset.train).images[dataset.pool]
    return plain(statistics(array_moments(whole), whole[:, 0].size))


def test_the_mean_of_files_is_that_of_their_pixels_computed_once(tree: Path, decoded: list[int]) -> None:
    spec = spec_of("dataset.pool=9")
    dataset = load(spec, tree, 0)
    checked: list[int] = []
    first = pixel_statistics(dataset, lambda done, total: checked.append(len(decoded)))
    assert sorted(decoded) == dataset.pool.tolist()
    assert checked == [9]
    assert plain(first) == expected(dataset)
    decoded.clear()
    assert plain(pixel_statistics(load(spec, tree, 0))) == plain(first)
    assert decoded == []
    assert isinstance(dataset.train, Files)
    changed = Path(dataset.train.store.path(int(dataset.pool[0])))
    changed.write_bytes(changed.read_bytes() + b"\0")
    pixel_statistics(load(spec, tree, 0))
    assert sorted(decoded) == dataset.pool.tolist()


def test_damaged_results_of_before_are_computed_again(tree: Path) -> None:
    dataset = load(spec_of(), tree, 0)
    first = pixel_statistics(dataset)
    (kept,) = (tree / "computed").glob("*.npz")
    for content in (kept.read_bytes()[:100], b"", b"\0" * 50):
        kept.write_bytes(content)
        assert plain(pixel_statistics(dataset)) == plain(first)


def leave(how: str, done: int, total: int) -> None:
    if done == 8:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise Interrupted("SIGTERM")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_pass_over_files_goes_on_where_it_was_left(
    tree: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int], how: str
) -> None:
    monkeypatch.setattr("mal.data.image_set.BLOCK", 4)
    monkeypatch.setattr("mal.data.pixel_statistics.SAVE_SECONDS", 0 if how == "killed" else 3600)
    dataset = load(spec_of(), tree, 0)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(Interrupted):
            pixel_statistics(dataset, partial(leave, how))
        os._exit(0)
    os.waitpid(child, 0)
    found = pixel_statistics(dataset)
    assert sorted(decoded) == dataset.pool[8:].tolist()
    assert plain(found) == expected(dataset)


@pytest.mark.ffcv
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_a_prepared_copys_sums_serve_every_loader(tree: Path, decoded: list[int], mode: str) -> None:
    assert prepare.main([f"data={tree}", "workers=1", *IMAGENET, "dataset.crop=28", f"mode={mode}"]) == 0
    direct, copied = load(spec_of(), tree, 0), load(replace(spec_of(), prepared=mode), tree, 0, "ffcv")
    decoded.clear()
    assert plain(pixel_statistics(direct)) == plain(pixel_statistics(copied))
    assert decoded == []
    assert plain(pixel_statistics(direct)) == expected(direct)
    (tree / "prepared" / f"imagenet-{mode}" / "train_moments.npy").write_bytes(b"damaged")
    decoded.clear()
    assert plain(pixel_statistics(direct)) == expected(direct)
    assert len(decoded) > 0
