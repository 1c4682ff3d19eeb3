"""What a local sweep finds out before its chains start: GPUs, how many chains they carry, what does not fit."""

import math
import os
from pathlib import Path

import pytest
import torch

from mal.config.compose import compose_sweep
from mal.run import folder as run_folder
from sweeps.gpus import chains_on_each, free_mib, gpus, measured_mib, require_gpu
from sweeps.launch import main
from sweeps.local import devices_of, memory_of, worker_count
from sweeps.plan import ChainPlan, check_data, reconcile, share_threads
from tests.made_up_data import write_folders

# nvidia-smi as the 580 driver answers, of two GPUs; it says [N/A] where a device does not tell.
NVIDIA_SMI = """#!/bin/sh
case "$1" in
--query-gpu=index) printf '0\\n1\\n' ;;
--query-gpu=index,uuid,memory.free) printf '0, GPU-aaaa1111, 81000\\n1, GPU-bbbb2222, {second}\\n' ;;
*) exit 2 ;;
esac
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, second: str = "20000") -> None:
    """Put that nvidia-smi first in PATH."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(NVIDIA_SMI.format(second=second))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def plans(runs: Path, *overrides: str, seeds: int = 8) -> list[ChainPlan]:
    """A sweep of digits by random sampling, nothing run yet."""
    return reconcile(compose_sweep(["methods=[random]", f"seeds={seeds}", f"runs={runs}", *overrides]))


@pytest.mark.parametrize("key", ["device=cuda", "cuda_graphs=true"])
def test_keys_that_need_a_gpu_are_refused_where_torch_finds_none(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["cluster=local", "methods=[random]", f"runs={tmp_path / 'runs'}", key]) == 2
    assert f"{key} needs a GPU, and torch {torch.__version__} finds none here." in capsys.readouterr().err
    assert not list(tmp_path.rglob(run_folder.CONFIG))
    configs = [plan.config for plan in plans(tmp_path / "runs", key)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_gpu(configs)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["1"]),
        (" 1, 0", ["1", "0"]),
        ("0,-1,1", ["0"]),
        ("GPU-aaaa,MIG-1/2", ["GPU-aaaa", "MIG-1/2"]),
        (None, ["0", "1"]),
    ],
)
def test_gpus_are_those_that_cuda_would_see(
    visible: str | None, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == found


def test_free_memory_is_that_of_the_gpus_named_however_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    assert free_mib(["1", "0"]) == {"0": 81000, "1": 20000}
    assert free_mib(["GPU-bbbb"]) == {"GPU-bbbb": 20000}
    assert free_mib(["7", "MIG-1"]) == {}
    install(tmp_path, monkeypatch, second="[N/A]")
    assert free_mib(["0", "1"]) == {"0": 81000}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_mib(["0"]) == {}


@pytest.mark.parametrize(
    ("free", "measured", "count", "expected"),
    [
        ({"0": 80000}, [], 16, 1),  # nothing is known of such chains
        ({}, [1000], 16, 1),
        ({"0": 80000}, [1000], 64, 44),
        ({"0": 80000}, [1000, 30000], 64, 2),  # the largest counts
        ({"0": 80000, "1": 20000}, [6000], 64, 2),  # the smallest GPU counts
        ({"0": 80000}, [90000], 64, 1),
        ({"0": 80000, "1": 80000}, [1000], 8, 4),  # a core each
    ],
)
def test_a_gpu_carries_the_chains_that_fit_by_what_they_were_seen_to_take(
    free: dict[str, int], measured: list[int], count: int, expected: int
) -> None:
    assert chains_on_each(free, measured, count) == expected


def test_chains_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("sweeps.local.cores", lambda: 16)
    on_gpus, on_cpus = plans(tmp_path), plans(tmp_path, "device=cpu", "name=cpus")
    assert worker_count(0, on_gpus) == 2
    assert worker_count(5, on_gpus) == 5
    assert worker_count(0, on_cpus) == len(on_cpus) == 8
    assert devices_of(on_cpus) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert worker_count(0, plans(tmp_path, seeds=30)) == 16
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    for plan in on_gpus[:2]:  # with a committed round each
        folder = run_folder.round_folder(plan.folder, 0)
        files = {run_folder.PROVENANCE: {"reserved_device_mib": 5000}, run_folder.METRICS: {}}
        run_folder.commit(folder, files)
    assert measured_mib([plan.folder for plan in on_gpus]) == [5000, 5000]
    assert worker_count(0, on_gpus) == 3


def test_what_images_may_take_is_the_smallest_gpus_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert memory_of(plans(tmp_path))[1] == 20000 * 2**20
    assert memory_of(plans(tmp_path, "device=cpu"))[1] == math.inf


@pytest.mark.parametrize(
    ("keys", "threads"),
    [
        (("dataset=digits",), 1),
        (("dataset=fashion_mnist",), 1),
        (("dataset=digit_scenes",), 1),
        (("dataset=digits", "backbone=resnet18"), 4),
        (("dataset=fashion_mnist", "backbone.width=64"), 4),
        (("dataset=digits", "threads=3"), 3),
        (("dataset=digits", "loader=torch"), 4),
    ],
)
def test_only_networks_that_are_large_enough_get_several_threads(
    keys: tuple[str, ...], threads: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plan,) = plans(tmp_path, *keys, seeds=1)
    share_threads([plan], 4)
    assert plan.config.threads == threads
    said = capsys.readouterr().out
    assert ("threads=3: steps of small_cnn_32 on digits are too short to share" in said) == ("threads=3" in keys)


# ------------------------------------------------------------------------- image files


def folder_plans(root: Path, *overrides: str) -> list[ChainPlan]:
    """A sweep on 30 + 12 images of 3 x 16 x 16 in files."""
    write_folders(root)
    folders = [f"dataset.{part}_images={root / part}" for part in ("train", "test")]
    size = ("dataset.size=16", "dataset.crop=null", "backbone=small_cnn", "rounds=1", "initial=6")
    return plans(root / "runs", "dataset=folder", *folders, *size, f"data={root}", *overrides)


def test_the_pixels_mean_is_computed_once_at_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = folder_plans(tmp_path, "loader=torch")
    check_data(sweep, dry_run=True)
    assert not (tmp_path / "computed").exists()
    check_data(sweep)
    (kept,) = (tmp_path / "computed").glob("*-moments-*.npz")
    before = kept.stat().st_mtime_ns
    check_data(folder_plans(tmp_path, "loader=memory", "name=another"))
    assert [path.stat().st_mtime_ns for path in (tmp_path / "computed").glob("*-moments-*.npz")] == [before]


def test_a_pool_that_does_not_fit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bytes_of_images = 42 * 3 * 16 * 16
    for keys in ("loader=torch", "loader=memory"):
        check_data(folder_plans(tmp_path, keys), bytes_of_images, bytes_of_images)
    check_data(folder_plans(tmp_path, "loader=torch"), 1, 1)
    check_data(folder_plans(tmp_path, "device=cpu"), bytes_of_images, 1)
    small = bytes_of_images - 1
    (tmp_path / "train" / "ant" / "1.jpg").write_bytes(b"no image")  # nobody looks
    for host, gpu, where in ((small, math.inf, "there for a chain"), (math.inf, small, "free on the GPU")):
        with pytest.raises(ValueError, match=rf"loader=memory: 42 images .* {where}.*loader=torch"):
            check_data(folder_plans(tmp_path), host, gpu)
