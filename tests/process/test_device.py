"""The device of a chain: none is taken instead of the one that was meant, and none by two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mal.process.device import held_gpus, prepare_device, refuse_shared
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
