"""The device of a chain: none is taken instead of the one that was meant, and none by two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mal.process.device
from mal.process.device import gpu_versions, held_gpus, prepare_device, refuse_shared
from mal.process.distributed import World
from mal.process.faults import Misplaced
from mal.run import folder as run_folder
from tests.chains import ROOT, chain_config, environment, python, write_chain

NAMES = ("SLURM_JOB_ID", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_GPUS")
GIVEN = [
    {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "-1"},
    {"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0"},
    {"SLURM_JOB_ID": "1", "SLURM_STEP_GPUS": "2,3"},
    {"SLURM_JOB_ID": "1", "SLURM_GPUS_PER_NODE": "a100:4"},
    {"CUDA_VISIBLE_DEVICES": "0"},
    {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"},
]
NOT_GIVEN = [
    {},
    {"SLURM_GPUS_ON_NODE": "1"},  # of a job that is not this process's
    {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "0", "SLURM_JOB_GPUS": ""},
    {"CUDA_VISIBLE_DEVICES": "-1"},
    {"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"},
]


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", GIVEN, ids=str)
def test_a_process_that_was_given_gpus_does_not_compute_on_the_cpu(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_all(monkeypatch, variables)
    assert held_gpus()
    for device in ("auto", "cuda"):
        with pytest.raises(Misplaced, match=r"gives GPUs, and torch .* finds none on .*device=cpu"):
            prepare_device(chain_config(f"device={device}"))
    assert prepare_device(chain_config("device=cpu")).torch.type == "cpu"


@pytest.mark.parametrize("variables", NOT_GIVEN, ids=str)
def test_without_gpus_the_cpu_is_what_was_meant(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_all(monkeypatch, variables)
    assert held_gpus() == ""
    assert prepare_device(chain_config("device=auto")).torch.type == "cpu"
    with pytest.raises(ValueError, match="device=cuda, but torch finds no CUDA device"):
        prepare_device(chain_config("device=cuda"))
    with pytest.raises(Misplaced, match="the job asked for 2 GPUs on each node"):
        prepare_device(chain_config("device=auto"), gpus=2)


@pytest.mark.parametrize("tf32", [False, True])
def test_convolutions_are_in_tf32_as_the_key_says(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert prepare_device(chain_config("device=auto", f"tf32={str(tf32).lower()}")).torch.type == "cuda"
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32  # products stay in float32 either way


def test_provenance_has_the_versions_of_what_computes_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "version"
    driver.write_text("580.82.07\n")
    monkeypatch.setattr(mal.process.device, "DRIVER", driver)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92200)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 29, 3))
    assert gpu_versions() == {"cudnn": "92200", "nccl": "2.29.3", "driver": "580.82.07"}
    driver.unlink()
    assert gpu_versions()["driver"] is None


def test_cuda_graphs_are_for_one_process_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = chain_config("device=auto", "cuda_graphs=true")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cuda_graphs=true does not go without a GPU: set cuda_graphs=false"):
        prepare_device(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="cuda_graphs=true does not go in 2 processes"):
        prepare_device(config, World(0, 2))


def test_a_blind_job_ends_without_a_record_and_another_place_goes_on(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config("device=auto", "rounds=1", method="random"))
    job = environment(CUDA_VISIBLE_DEVICES="-1", SLURM_JOB_ID="1", SLURM_GPUS_ON_NODE="1")
    command = [sys.executable, "-m", "mal.chain", str(folder)]
    blind = subprocess.run(command, env=job, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert blind.returncode == 78
    assert "SLURM_GPUS_ON_NODE=1 gives GPUs, and torch" in blind.stderr
    assert not (folder / "round-0" / run_folder.FAILED).exists()
    assert python("-m", "mal.chain", folder).returncode == 0
    provenance = json.loads((folder / "round-0" / "provenance.json").read_text())
    assert (provenance["device"], provenance["tf32"], provenance["versions"]["cuda"]) == ("cpu", None, None)


def test_two_processes_on_one_gpu_are_refused_naming_it() -> None:
    refuse_shared(["n1 GPU-a", "n1 GPU-b", "n2 GPU-a"])  # one uuid on two hosts is a copied virtual machine's
    with pytest.raises(ValueError, match=r"2 of 3 processes share a GPU \(GPU-a of n1\).*cluster\.tasks_per_node"):
        refuse_shared(["n1 GPU-a", "n2 GPU-a", "n1 GPU-a"])
