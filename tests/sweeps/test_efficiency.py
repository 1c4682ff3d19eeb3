"""What jobs asked for and used: from the records of a sweep that ran on Slurm, of its GPUs, and of accounting."""

from pathlib import Path

import pytest

from slurm import gpu_share
from slurm.attempts import read_attempts, write_end, write_start
from slurm.gpu_share import GpuShare
from slurm.local import LocalSlurm
from slurm.profile import load_profile
from slurm.submitted import note_submitted
from sweeps.efficiency import note_asked, report
from sweeps.launch import main as launch
from sweeps.status import main as status
from tests.chains import SHORT
from tests.made_up_runs import write_chain
from tests.slurm.fakes import put_in_front
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]
PEAKS = {"peak_host_mib": 2048, "reserved_device_mib": 4096}


def asked(runs: Path, **keys: object) -> None:
    profile = load_profile({"name": "mine", "kind": "slurm", "time": {"default": 240}, **keys})
    note_asked(runs / "sweep", profile, ["digits"])


def test_what_was_asked_for_is_held_against_what_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no accounting
    write_chain(tmp_path, "mal", 0, [50.0, 60.0], seconds=600.0, provenance=PEAKS, gpus=1)
    assert "no launch of it on Slurm" in report(tmp_path, "sweep")[0]
    asked(tmp_path, mem_gb=64, gpus_per_node=1)
    assert report(tmp_path, "sweep") == [
        "sweep: asked for and used, by 2 rounds",
        "  time        240 minutes of digits; the longest round took 10.0",
        "  memory      64 GB; at most 2.0 GB (1 processes)",
        "  GPU memory  at most 4.0 GiB of a GPU, by a process",
        "  GPU share   not known: nvidia-smi did not tell",
        "  to change: cluster.time.digits=16 cluster.mem_gb=3",
    ]
    asked(tmp_path, mem_gb=4, gpus_per_node=0, time={"default": 20})
    assert report(tmp_path, "sweep")[-1] == "  nothing to change"
    asked(tmp_path, mem_gb=3, gpus_per_node=0, time={"default": 20}, pack=4)
    assert report(tmp_path, "sweep")[-1] == "  to change: cluster.mem_gb=12"  # more than it has


def test_a_gpu_s_share_is_that_of_nvidia_smi_and_memory_that_of_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = write_chain(tmp_path, "mal", 0, [50.0], seconds=600.0, provenance=PEAKS, gpus=1)
    asked(tmp_path, mem_gb=8, gpus_per_node=1, time={"default": 20})
    put_in_front(
        tmp_path / "bin",
        monkeypatch,
        **{"nvidia-smi": '[ "$1" = --id=5 ] && echo "20, 81920"', "sacct": 'echo; echo "6144.00M"; echo "100M"'},
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setattr(gpu_share, "EVERY_SECONDS", 0.0)
    share, none = GpuShare(1), GpuShare(0)
    for each in (share, share, none):
        each.look()
    assert (share.percent, share.memory_mib, none.percent) == (20.0, 81920, None)
    write_end(chain, "1", 0, write_start(chain, "1", 0, gpus=1), "done", share=share)
    assert read_attempts(chain)[0].gpu_percent == 20.0
    note_submitted(tmp_path / "sweep", "1", "mal:sweep:mal:s0:abcdef", ["mal/seed-0"], 1, "1.log")
    assert report(tmp_path, "sweep")[2:] == [
        "  memory      8 GB; at most 6.0 GB (a job, by sacct)",
        "  GPU memory  at most 4.0 of 80 GiB of a GPU, by a process",
        "  GPU share   20% of the time, by nvidia-smi in 1 jobs",
        "  to change: cluster.pack=5",
    ]


@pytest.mark.slurm
def test_a_sweep_on_slurm_has_its_report(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["cluster=slurm", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0", f"runs={tmp_path}"]
    assert launch([*SHORT, "methods=[random]", "seeds=1", "rounds=1", *where]) == 0
    wait_until(lambda: not cluster.run("squeue", "--noheader"), "the chain", timeout_s=180)
    capsys.readouterr()
    assert status([f"runs={tmp_path}", "efficiency=true"]) == 0
    said = capsys.readouterr().out
    assert "digits: asked for and used, by 1 rounds" in said
    assert "240 minutes of digits; the longest round took 0." in said
    assert "to change: cluster.time.digits=4 cluster.mem_gb=" in said
