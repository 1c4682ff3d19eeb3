"""What a round is expected to need, against sums by hand and against a real one."""

from pathlib import Path

import pytest
from torch import nn

from mal.run import folder as run_folder
from mal.training.memory_estimate import Footprint, footprint, kept_bytes
from tests.chains import chain_config, run_chain_process, write_chain


def test_what_autograd_keeps_of_an_image() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    # The image for the first convolution; the rectified maps once, for the rectifier and for the second convolution.
    assert kept_bytes(network, channels=1, size=8) == (4 * 64 + 4 * 4 * 64, 4 * 4 * 64)


def test_moments_and_the_copy_of_a_checkpoint_count() -> None:
    wide = "backbone.width=128"
    weights = 4 * 2_215_552 / 2**20
    sgd, adam = (
        footprint(chain_config(wide, f"task.optimizer={name}", method="random"), cuda=False) for name in ("sgd", "adam")
    )
    assert sgd.networks == pytest.approx(3 * weights, abs=1)
    assert adam.networks == pytest.approx(4 * weights, abs=1)
    assert (sgd.copy, adam.copy) == (pytest.approx(2 * weights, abs=1), pytest.approx(3 * weights, abs=1))
    mal = footprint(chain_config(wide, "task.optimizer=adam"), cuda=False)
    assert mal.networks == pytest.approx(6 * weights, abs=1)  # F's weights and gradients beside M's


def test_activations_follow_batch_size_and_precision() -> None:
    options = ("backbone.width=64", "dataset=fashion_mnist", "dataset.pool=1000")
    one, two, half = (
        footprint(chain_config(*options, *more, method="random"), cuda=False).activations
        for more in (("task.batch=64",), ("task.batch=128",), ("task.batch=128", "precision=bf16"))
    )
    assert two == pytest.approx(2 * one, rel=0.05)
    assert half == pytest.approx(one, rel=0.05)


def test_on_a_gpu_the_host_needs_the_copy_alone() -> None:
    here = Footprint(networks=10, activations=20, copy=5, cuda=False, resident=100)
    there = Footprint(networks=10, activations=20, copy=5, cuda=True, resident=100)
    assert (here.host, there.host, there.device) == (135, 105, 30)
    assert str(here).startswith("about 135 MiB at the peak (100 resident now; networks 10, activations 20")
    assert str(there).startswith("about 30 MiB on the device and 105 on the host at the peak")


def test_a_gpus_memory_holds_the_images_too() -> None:
    keys = ("dataset=fashion_mnist", "loader=memory")
    there, here = (footprint(chain_config(*keys), cuda) for cuda in (True, False))
    assert there.images == -(-70_000 * 28 * 28 // 2**20) == 53
    assert there.device == there.networks + there.activations + 53
    assert ", images 53)" in str(there)
    assert here.images == 0
    files = chain_config("dataset=fashion_mnist", "loader=torch")
    assert footprint(files, True).device == there.device - 53


def test_a_round_says_before_and_after(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config("rounds=1"))
    ended = run_chain_process(folder)
    assert ended.returncode == 0, ended.stderr
    assert "memory of a round: about " in ended.stderr
    provenance = run_folder.read_json(run_folder.round_folder(folder, 0) / run_folder.PROVENANCE)
    assert 0.6 < provenance["expected_host_mib"] / provenance["peak_host_mib"] < 1.6
    assert provenance["expected_device_mib"] is None
