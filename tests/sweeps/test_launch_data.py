"""Launches on folders as people have them: bad files left out, relaunched, with another loader; chains from before."""

from pathlib import Path

import pytest

from mal.chain import run_chain
from mal.config.compose import compose_sweep
from mal.config.frozen import load_chain, save_chain
from mal.data import prepare
from mal.files import write_atomic
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.run.folder import DamagedRun
from sweeps.plan import ChainPlan, check_data, freeze, reconcile
from tests.chains import outcome
from tests.made_up_data import put, write_folders


def planned(root: Path, *more: str) -> list[ChainPlan]:
    places = [f"dataset.{part}_images={root}/{part}" for part in ("train", "test")]
    tiny = ["dataset.size=32", "dataset.crop=28", "backbone=small_cnn", "methods=[random]", "seeds=2", "rounds=1"]
    here = [f"runs={root}/runs", f"data={root}/data", "initial=0.3", "budget=1", "device=cpu"]
    return reconcile(compose_sweep(["dataset=folder", *places, *tiny, *here, *more]))


def launched(root: Path, *more: str) -> list[ChainPlan]:
    plans = planned(root, *more)
    check_data(plans)
    freeze(plans)
    return plans


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_folders(tmp_path)
    put(tmp_path / "train" / "bee" / "empty.jpg", b"")
    put(tmp_path / "test" / "ant" / "page.jpg", b"<html>")
    return tmp_path


def test_a_launch_refuses_bad_files_by_name_and_then_leaves_them_out(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"2 files cannot be used:\n  .*bee/empty\.jpg.*\n  .*ant/page\.jpg"):
        launched(photos)
    plans = launched(photos, "dataset.skip_corrupt=true")
    frozen = [load_chain(plan.folder / run_folder.CONFIG).dataset for plan in plans]
    for spec in frozen:
        assert spec.left_out == ["test/ant/page.jpg", "train/bee/empty.jpg"]
        assert (spec.train, spec.test, spec.exif) == (30, 12, "apply")
    assert "left out: test/ant/page.jpg, train/bee/empty.jpg" in capsys.readouterr().out
    for again in ((), ("dataset.skip_corrupt=true",), ("dataset.skip_corrupt=true", "check=full")):
        plans = launched(photos, *again)  # needs no dataset.train=30
        assert [load_chain(plan.folder / run_folder.CONFIG).dataset.train for plan in plans] == [30, 30]


@pytest.mark.ffcv
def test_a_copy_that_was_prepared_without_bad_files_needs_no_numbers(photos: Path) -> None:
    where = [f"dataset.{part}_images={photos}/{part}" for part in ("train", "test")]
    arguments = ["dataset=folder", *where, "dataset.size=32", "dataset.crop=28", f"data={photos}/data"]
    assert prepare.main([*arguments, "workers=1", "skip_corrupt=true"]) == prepare.EXIT_DONE
    for _ in range(2):
        plans = launched(photos, "loader=ffcv")
        assert plans[0].config.dataset.left_out == ["test/ant/page.jpg", "train/bee/empty.jpg"]
        assert (plans[0].config.dataset.train, plans[0].config.dataset.test) == (30, 12)


def test_a_chain_from_before_keeps_its_orientation(tmp_path: Path) -> None:
    write_folders(tmp_path)
    plans = launched(tmp_path)
    path = plans[0].folder / run_folder.CONFIG
    before = load_chain(path)
    before.dataset.exif = "ignore"  # the value of chains that did not have the key
    text = "".join(line for line in save_chain(before).splitlines(keepends=True) if "exif:" not in line)
    write_atomic(path, text.encode())
    fingerprint = load_chain(path).fingerprint()
    again = launched(tmp_path)
    assert (again[0].config.dataset.exif, again[1].config.dataset.exif) == ("ignore", "apply")
    assert load_chain(path).fingerprint() == fingerprint
    with pytest.raises(ValueError, match=r"dataset\.exif: ignore -> apply"):
        planned(tmp_path, "dataset.exif=apply")


def test_a_dry_run_says_what_would_be_refused_and_writes_nothing(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = planned(photos, "dry_run=true")
    check_data(plans, dry_run=True)
    assert "A launch would be refused: folder: 2 files cannot be used" in capsys.readouterr().out
    assert not (photos / "data").exists()


def test_an_unknown_check_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"check=headrs is unknown; did you mean headers\? Allowed: full, headers, none"
    ):
        compose_sweep(["check=headrs"])


@pytest.mark.ffcv
def test_a_chain_goes_on_by_another_loader_of_the_same_bytes(tmp_path: Path) -> None:
    write_folders(tmp_path)
    where = [f"dataset.{part}_images={tmp_path}/{part}" for part in ("train", "test")]
    arguments = ["dataset=folder", *where, "dataset.size=32", "dataset.crop=28", f"data={tmp_path}/data", "workers=1"]
    assert prepare.main(arguments) == prepare.EXIT_DONE
    fast = ["rounds=3", "seeds=1", "task.epochs=1", "task.batch=4", "threads=1", "workers=1"]
    (plain,) = launched(tmp_path, *fast, "name=plain", "loader=memory")
    run_chain(plain.folder, None, Interrupt())
    for number, loader in enumerate(("memory", "torch", "ffcv"), 1):
        (mixed,) = launched(tmp_path, *fast, "name=mixed", f"loader={loader}")
        assert load_chain(mixed.folder / run_folder.CONFIG).loader == loader
        run_chain(mixed.folder, number, Interrupt())
    assert outcome(mixed.folder) == outcome(plain.folder)
    with pytest.raises(ValueError, match=r"dataset\.prepared: raw -> jpg"):
        planned(tmp_path, *fast, "name=mixed", "loader=torch", "dataset.prepared=jpg")


@pytest.mark.ffcv
def test_a_copy_of_other_files_is_another_pool_whatever_its_loader(tmp_path: Path) -> None:
    write_folders(tmp_path)
    where = [f"dataset.{part}_images={tmp_path}/{part}" for part in ("train", "test")]
    arguments = ["dataset=folder", *where, "dataset.size=32", "dataset.crop=28", f"data={tmp_path}/data", "workers=1"]
    assert prepare.main(arguments) == prepare.EXIT_DONE
    changed = tmp_path / "train" / "ant" / "1.jpg"
    changed.write_bytes(changed.read_bytes() + b"\0")
    fast = ["rounds=2", "seeds=1", "task.epochs=1", "task.batch=4", "threads=1", "workers=1"]
    (plan,) = launched(tmp_path, *fast, "loader=memory")
    run_chain(plan.folder, 1, Interrupt())
    launched(tmp_path, *fast, "loader=ffcv")
    with pytest.raises(DamagedRun, match="was run on another pool"):
        run_chain(plan.folder, 2, Interrupt())
