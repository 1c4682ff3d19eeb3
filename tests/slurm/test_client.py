"""Three answers stay three: no Slurm here, a silent one, and what Slurm says."""

import os
from pathlib import Path

import pytest

from slurm import client
from slurm.client import NoSlurmError, SlurmError, SlurmFullError, SlurmSilentError, call, job_environment
from slurm.squeue import read_queue, slurm_answers
from sweeps.cancel import main as cancel
from sweeps.launch import choose_cluster
from sweeps.launch import main as launch
from sweeps.status import main as status
from tests.chains import SHORT, chain_config, write_chain
from tests.slurm.fakes import put_in_front

HEADER = r"printf 'JOBID\037NAME\036\n'"
SILENCE = {
    "down": "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    "late": "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1",
    "expired": "echo 'slurm_load_jobs error: Invalid authentication credential' >&2; exit 1",
    "munge": "echo 'auth_g_verify: Munge decode failed: Expired credential' >&2; exit 1",
    "unexpected": "echo 'slurm_load_jobs error: Unexpected message received' >&2; exit 1",
    "no header": "exit 0",
    "cut": r"printf 'JOBID\037NAME\036\n12\037mal:di'",
    "killed": "kill -9 $$",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the waiting."""
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("kind", SILENCE)
def test_silence_is_neither_an_empty_queue_nor_no_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: None, kind: str
) -> None:
    put_in_front(tmp_path / "bin", monkeypatch, squeue=SILENCE[kind], sbatch="exit 1", scancel="exit 1")
    folder = write_chain(tmp_path / "runs", chain_config())
    where = [f"runs={tmp_path / 'runs'}", f"name={folder.parents[1].name}"]
    with pytest.raises(SlurmSilentError):
        read_queue()
    with pytest.raises(SlurmSilentError):
        slurm_answers()
    assert status(where) == 3
    said = capsys.readouterr().out
    assert "1 unknown" in said
    assert "Slurm's queue is not known (" in said
    assert "missing" not in said
    assert cancel(where) == 1
    ended = capsys.readouterr()
    assert "cancelled" not in ended.out
    assert "Slurm does not answer" in ended.err
    for arguments in ([*SHORT], [*SHORT, "cluster=slurm"], [*SHORT, "cluster=slurm", "dry_run=true"]):
        assert launch([*arguments, *where]) == 2
        assert "Slurm is here and does not answer" in capsys.readouterr().err


def test_silence_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """The second answer counts."""
    once = f"[ -e {tmp_path}/asked ] && {{ {HEADER}; exit 0; }}; touch {tmp_path}/asked; {SILENCE['down']}"
    put_in_front(tmp_path / "bin", monkeypatch, squeue=once, sbatch="exit 1")
    assert read_queue() == []


def test_commands_without_a_cluster_are_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Debian's packages say where nobody has configured anything."""
    none = "echo 'squeue: fatal: Could not establish a configuration source' >&2; exit 1"
    put_in_front(tmp_path / "bin", monkeypatch, squeue=none, sbatch=none)
    with pytest.raises(NoSlurmError):
        read_queue()
    assert not slurm_answers()
    assert choose_cluster(["seeds=1"]) == ["seeds=1"]


def test_a_command_that_does_not_end_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_front(tmp_path / "bin", monkeypatch, squeue="exec sleep 600")
    monkeypatch.setattr(client, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(client, "LOOK_S", 0.1)
    with pytest.raises(SlurmSilentError, match="squeue did not end within"):
        call("squeue", attempts=1)


def test_a_full_queue_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sbatch would try again by itself for minutes."""
    words = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"
    put_in_front(tmp_path / "bin", monkeypatch, sbatch=f"echo '{words}' >&2; exec sleep 600")
    with pytest.raises(SlurmFullError, match="sleeping and retrying"):
        call("sbatch", text="#!/bin/sh\n", attempts=1)


def test_a_refusal_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_front(tmp_path / "bin", monkeypatch, sbatch="echo 'sbatch: error: Invalid qos specification' >&2; exit 1")
    with pytest.raises(SlurmError, match="Invalid qos") as refusal:
        call("sbatch", attempts=1)
    assert type(refusal.value) is SlurmError


def test_what_the_launching_shell_is_part_of_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and hosts of torchrun or MPI, GPUs, the job around a shell; who asks, and where, goes along."""
    leaks = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    leaks |= {"CUDA_VISIBLE_DEVICES": "0", "TORCHELASTIC_RUN_ID": "x", "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1"}
    leaks |= {"SLURM_JOB_ID": "7", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SBATCH_EXPORT": "NONE"}
    stays = {"SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_JWT": "token", "NCCL_DEBUG": "WARN", "MY_RANK_FILE": "f"}
    for key, value in (leaks | stays).items():
        monkeypatch.setenv(key, value)
    environment = job_environment()
    assert set(leaks) & set(environment) == set()
    assert {key: environment.get(key) for key in stays} == stays
    assert environment["PATH"] == os.environ["PATH"]
