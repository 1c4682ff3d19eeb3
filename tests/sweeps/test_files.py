"""Each data set in its real format, from files to curves: prepared for FFCV, two rounds of mal and random, curves."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import curves
from mal.chain import run_chain
from mal.data import prepare
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.run.folder import DamagedRun
from sweeps import launch
from tests.chains import chain_config, outcome, write_chain
from tests.made_up_data import (
    write_bdd100k,
    write_cifar100,
    write_folders,
    write_imagenet_archives,
    write_imagenet_tree,
    write_inaturalist2018,
)

SMALL = ("dataset.size=32", "dataset.crop=28")
KINDS: dict[str, tuple[tuple[str, ...], Callable[[Path], object]]] = {
    "imagenet": (
        ("dataset=imagenet", "dataset.classes=3", "dataset.train=24", "dataset.test=12", *SMALL),
        lambda data: write_imagenet_archives(data / "imagenet"),
    ),
    "inaturalist2018": (
        ("dataset=inaturalist2018", "dataset.classes=4", "dataset.train=24", "dataset.test=8", *SMALL),
        lambda data: write_inaturalist2018(data / "inaturalist2018"),
    ),
    "cifar100": (
        ("dataset=cifar100", "dataset.train=200", "dataset.test=20"),
        lambda data: write_cifar100(data / "cifar-100-python", train=200, test=20),
    ),
    "cifar100_imbalanced": (
        ("dataset=cifar100_imbalanced", "dataset.train=200", "dataset.test=20"),
        lambda data: write_cifar100(data / "cifar-100-python", train=200, test=20),
    ),
    "bdd100k": (
        ("dataset=bdd100k", "dataset.train=16", "dataset.test=6", "dataset.size=32", "backbone=small_drn"),
        lambda data: write_bdd100k(data / "bdd100k", train=16),
    ),
}
SHORT = (
    *("backbone.width=4", "backbone.discriminator=8", "minimax.epochs=1", "minimax.batch=4", "task.epochs=1"),
    *("task.batch=4", "initial=6", "budget=4", "rounds=2", "device=cpu", "threads=1"),
)


def sweep(folder: Path, *overrides: str) -> int:
    """The launcher, with data and runs in a folder; its exit status."""
    backbone = (
        () if any(o.startswith("backbone=") for o in overrides) else ("backbone=small_cnn", "backbone.bottleneck=8")
    )
    places = (f"data={folder}", f"runs={folder / 'runs'}", "cluster=local")
    return launch.main([*overrides, *backbone, *SHORT, "methods=[mal,random]", "seeds=1", *places])


@pytest.mark.ffcv
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_from_files_to_curves(tmp_path: Path, name: str) -> None:
    overrides, write = KINDS[name]
    write(tmp_path)
    of_dataset = [o for o in overrides if o.startswith("dataset")]
    assert prepare.main([*of_dataset, f"data={tmp_path}", "workers=2", "verify=true"]) == 0
    assert sweep(tmp_path, *overrides, "loader=ffcv") == 0
    folders = run_folder.chain_folders(tmp_path / "runs", name)
    assert [folder.parent.name for folder in folders] == ["mal", "random"]
    found = [outcome(folder) for folder in folders]
    assert [len(rounds) for rounds in found] == [2, 2]
    assert found[0]["round-0"]["labeled"] == found[1]["round-0"]["labeled"]
    drawn = name == "imagenet"  # figures of one will do: they take longer than all rounds
    out = [] if drawn else ["figures=false"]
    assert curves.main([f"runs={tmp_path / 'runs'}", f"name={name}", f"out={tmp_path / 'figures'}", *out]) == 0
    assert (tmp_path / "figures" / name / "curves.png").is_file() == drawn
    table = pd.read_csv(tmp_path / "figures" / name / "curves.csv")
    assert sorted(zip(table.method, table.labeled, strict=True)) == [
        (method, labels) for method in ("mal", "random") for labels in (6, 10)
    ]
    assert set(table.dataset) == {name}
    assert set(table.metric) == {"miou" if name == "bdd100k" else "accuracy"}
    assert (tmp_path / "figures" / name / "report.md").is_file()


@pytest.mark.ffcv
@pytest.mark.slow
def test_a_users_folders_give_the_same_rounds_whatever_loads_them(tmp_path: Path) -> None:
    write_folders(tmp_path)
    places = [f"dataset.{part}_images={tmp_path / part}" for part in ("train", "test")]
    overrides = ("dataset=folder", "dataset.name=insects", *places, *SMALL)
    assert prepare.main([*overrides, f"data={tmp_path}", "workers=2"]) == 0
    found = {}
    for loader in ("memory", "torch", "ffcv"):
        assert sweep(tmp_path, *overrides, f"loader={loader}", f"name={loader}") == 0
        found[loader] = [outcome(folder) for folder in run_folder.chain_folders(tmp_path / "runs", loader)]
    assert found["memory"] == found["torch"] == found["ffcv"]


# ------------------------------------------------------------------------- copies that are not what they were


IMAGENET = KINDS["imagenet"][0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_imagenet_tree(folder / "imagenet")
    assert prepare.main([*IMAGENET, f"data={folder}", "workers=2"]) == 0
    return folder


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(path: Path) -> None:
    shutil.copy(path.with_name("test.beton"), path)


@pytest.mark.ffcv
@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip_a_bit, "train.beton is not the file that was prepared"), (cut, "it was cut"), (replaced, "train.beton")],
)
def test_a_launch_on_a_damaged_copy_is_refused_before_anything_starts(
    prepared: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    damage(tmp_path / "data" / "prepared" / "imagenet-raw" / "train.beton")
    assert sweep(tmp_path / "data", *IMAGENET, "loader=ffcv") == 2
    assert message in capsys.readouterr().err
    assert run_folder.chain_folders(tmp_path / "data" / "runs", "imagenet") == []


@pytest.mark.ffcv
def test_a_chain_does_not_go_on_with_another_pool_or_a_damaged_copy(prepared: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    small = ("backbone=small_cnn", "backbone.bottleneck=8", *SHORT)
    config = chain_config(*IMAGENET, *small, "loader=ffcv", f"data={data}", method="random")
    folder = write_chain(tmp_path / "runs", config)
    run_chain(folder, 1, Interrupt())
    image = next(iter(sorted((data / "imagenet" / "train").rglob("*.JPEG"))))
    shutil.copy(sorted((data / "imagenet" / "val").rglob("*.JPEG"))[0], image)
    assert prepare.main([*IMAGENET, f"data={data}", "workers=2", "replace=true"]) == 0
    with pytest.raises(DamagedRun, match=r"round-0 was run on another pool \(.*\) than the dataset gives now"):
        run_chain(folder, None, Interrupt())
    assert run_folder.committed_rounds(folder) == 1
    (folder / "round-1" / run_folder.FAILED).unlink()
    shutil.rmtree(data / "prepared")
    shutil.copytree(prepared / "prepared", data / "prepared")
    flip_a_bit(data / "prepared" / "imagenet-raw" / "test.beton")
    with pytest.raises(ValueError, match=r"test\.beton is not the file that was prepared"):
        run_chain(folder, None, Interrupt())
    (folder / "round-1" / run_folder.FAILED).unlink()
    shutil.copy(prepared / "prepared" / "imagenet-raw" / "test.beton", data / "prepared" / "imagenet-raw")
    run_chain(folder, None, Interrupt())
    assert run_folder.committed_rounds(folder) == 2
    assert len(np.load(folder / "round-1" / run_folder.LABELED)) == 10
