"""Every pool that the paper does not use, from its real format over a prepared copy and two rounds to its curve."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from mal.data import prepare
from tests.chains import launch, python
from tests.made_up_data import put, write_folders
from tests.made_up_pools import (
    write_cifar10,
    write_downsampled_imagenet,
    write_mask_folder,
    write_shards,
    write_svhn,
    write_tiny_imagenet,
)

THREE = ["dataset.classes=3"]
SMALL = ["dataset.size=32", "dataset.crop=28"]


def cifar10(data: Path) -> list[str]:
    write_cifar10(data / "cifar-10-batches-py")
    return ["dataset=cifar10", "dataset.train=30", "dataset.test=6"]


def cifar10_imbalanced(data: Path) -> list[str]:
    write_cifar10(data / "cifar-10-batches-py", each=40)
    return ["dataset=cifar10_imbalanced", "dataset.train=200", "dataset.test=6", "dataset.minimum=2"]


def folders(data: Path) -> list[str]:
    write_folders(data)
    return ["dataset=folder", *(f"dataset.{part}_images={data}/{part}" for part in ("train", "test")), *SMALL]


def svhn(data: Path) -> list[str]:
    write_svhn(data / "svhn")
    return ["dataset=svhn", "dataset.train=30", "dataset.test=12"]


def imagenet32(data: Path) -> list[str]:
    write_downsampled_imagenet(data / "imagenet32")
    return ["dataset=imagenet32", "dataset.train=40", "dataset.test=6", *THREE]


def imagenet64(data: Path) -> list[str]:
    write_downsampled_imagenet(data / "imagenet64", 64, packed=True)
    return ["dataset=imagenet64", "dataset.train=40", "dataset.test=6", *THREE]


def tiny_imagenet(data: Path) -> list[str]:
    write_tiny_imagenet(data / "tiny-imagenet-200")
    return ["dataset=tiny_imagenet", "dataset.train=18", "dataset.test=8", *THREE]


def lists(data: Path) -> list[str]:
    write_folders(data)
    names = ("ant", "bee", "wasp")
    for part, count in (("train", 10), ("test", 4)):
        rows = [f"{name}/{n}.jpg,{label}" for label, name in enumerate(names) for n in range(1, count, 2)]
        put(data / f"{part}.csv", "\n".join(rows).encode())
    places = [f"dataset.{part}_images={data}/{part}" for part in ("train", "test")]
    return [
        "dataset=folder",
        *places,
        *(f"dataset.{part}_list={data}/{part}.csv" for part in ("train", "test")),
        *SMALL,
    ]


def webdataset(data: Path) -> list[str]:
    for part, count in (("train", 20), ("test", 6)):
        write_shards(data / "shards", part, count)
    places = [f"dataset.{part}_shards={data}/shards/{part}-*.tar" for part in ("train", "test")]
    return ["dataset=webdataset", *places, *SMALL]


def mask_folder(data: Path) -> list[str]:
    write_mask_folder(data / "streets")
    return ["dataset=mask_folder", f"dataset.root={data / 'streets'}", "dataset.size=32"]


ARRAYS = (cifar10, cifar10_imbalanced, svhn, imagenet32, imagenet64)
POOLS = (*ARRAYS, tiny_imagenet, folders, lists, webdataset, mask_folder)


@pytest.mark.slow
@pytest.mark.ffcv
@pytest.mark.parametrize("pool", POOLS)
def test_from_files_to_a_curve(tmp_path: Path, pool: Callable[[Path], list[str]]) -> None:
    data = tmp_path / "data"
    chosen = [*pool(data), f"data={data}"]
    assert prepare.main([*chosen, "workers=1", "verify=true"]) == prepare.EXIT_DONE
    backbone = "small_drn" if pool is mask_folder else "small_cnn"
    tiny = [f"backbone={backbone}", "seeds=1", "methods=[random]", "rounds=2", "initial=6", "budget=3", "threads=1"]
    fast = ["task.epochs=1", "task.batch=4", "minimax.epochs=1", "minimax.batch=4", "device=cpu", "name=made_up"]
    ended = launch(*chosen, *tiny, *fast, f"runs={tmp_path}/runs", "cluster=local", "loader=ffcv")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ended = python("analysis/curves.py", f"runs={tmp_path}/runs", "name=made_up", f"out={tmp_path}/figures")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with (tmp_path / "figures" / "made_up" / "curves.csv").open() as file:
        assert [int(row["labeled"]) for row in csv.DictReader(file)] == [6, 9]
