"""A prepared copy made by a job before chains start: resumed after preemptions and a lost node; failed; one for all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from mal.config.frozen import load_chain
from mal.data import prepare
from mal.data.ffcv.prepared import read_manifest
from mal.run import folder as run_folder
from slurm.local import LocalSlurm
from slurm.preparing import find, job_name
from slurm.squeue import read_queue
from sweeps import status
from sweeps.cancel import main as cancel
from sweeps.launch import main
from tests.made_up_data import jpeg, picture, put
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]
pytestmark = [pytest.mark.slurm, pytest.mark.ffcv, pytest.mark.slow]

TRAIN = 1400  # more than memory is for
URGENT = """#!/bin/bash
#SBATCH --partition=high --nodes=2 --exclusive --output=/dev/null
sleep 1
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's tree, two classes."""
    data = tmp_path_factory.mktemp("data")
    for part, many in (("train", TRAIN), ("val", 40)):
        for at in range(many):
            name = f"n0000000{at % 2}/{part}_{at}.JPEG"
            put(data / "imagenet" / part / name, jpeg(picture(at, 300 + at % 90, 240, at)))
    return data


def launch(data: Path, *more: str) -> int:
    sizes = ("dataset=imagenet", "dataset.classes=2", f"dataset.train={TRAIN}", "dataset.test=40", "dataset.crop=32")
    small = ("rounds=1", "initial=4", "budget=4", "minimax.epochs=0.01", "task.epochs=0.01", "task.batch=4")
    place = (
        f"data={data}",
        f"runs={data / 'runs'}",
        "cluster=slurm",
        "cluster.time.default=10",
        "cluster.gpus_per_node=0",
    )
    net = ("backbone=small_cnn", "methods=[random]", "seeds=2")
    return main([*sizes, *small, *net, *place, "cluster.prepare.cpus=2", *more])


def copied(data: Path) -> Path:
    return data / "prepared" / "imagenet-raw"


def done(data: Path) -> int:
    """Images of the training set that are written for good."""
    best = 0
    for state in copied(data).with_name(".imagenet-raw.part").glob(".train-*.npz"):
        try:
            with np.load(state) as saved:
                best = max(best, int(json.loads(saved["head"].tobytes())["done"]))
        except (OSError, ValueError, EOFError):
            continue
    return best


def written(data: Path) -> int:
    """Images of the training set whose pixels have been written, for good or not."""
    try:
        return copied(data).with_name(".imagenet-raw.part").joinpath("train.beton").stat().st_size // (3 * 256**2)
    except FileNotFoundError:
        return 0


def freeze(data: Path) -> bool:
    """Stop the processes that write, once they have written images since the last save; Slurm's signals wake them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]  # srun has the same words behind its own
        if words[0] == sys.executable and any(word.startswith(f"chain={data}") for word in words):
            found.append(process)
    if len(found) < 2 or written(data) < done(data) + 100:  # workers begin behind what was saved
        return False
    for process in found:
        process.suspend()
    return True


BLOWS = [["preempted"], pytest.param(["preempted", "preempted", "node lost"], marks=pytest.mark.chaos)]


@pytest.mark.parametrize("blows", BLOWS, ids="-".join)
def test_it_is_struck_while_images_are_written_and_loses_none(
    blows: list[str], cluster: LocalSlurm, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imagenet").symlink_to(tree / "imagenet")
    assert launch(tmp_path) == 0
    told = capsys.readouterr().out
    assert f"{copied(tmp_path)} is made first" in told
    assert "the chains start when it is whole" in told
    chains = run_folder.chain_folders(tmp_path / "runs", "imagenet")
    assert [load_chain(chain / "config.yaml").loader for chain in chains] == ["ffcv", "ffcv"]
    reached = [0]
    for blow in blows:
        wait_until(lambda: freeze(tmp_path), "images to be written", 120, poll_s=0.01)
        job = find(read_queue(), copied(tmp_path))
        assert job is not None
        if blow == "node lost":
            cluster.kill_node(job.nodes)
        else:
            subprocess.run(["sbatch"], input=URGENT, text=True, capture_output=True, check=True)
        wait_until(lambda: find_state(tmp_path) == "PENDING", "the job to be queued again")
        if blow == "node lost":
            cluster.start_node(job.nodes)
        assert run_folder.committed_rounds(chains[0]) == 0
        reached.append(done(tmp_path))
        assert launch(tmp_path) == 0  # somebody launches again meanwhile: nothing is submitted twice
        assert "0 jobs submitted" in capsys.readouterr().out
    assert reached == sorted(reached)
    assert 0 < reached[-1] < TRAIN, "it was not struck on its way"
    wait_until(lambda: all(run_folder.committed_rounds(chain) == 1 for chain in chains), "the chains", 300)
    manifest = read_manifest(copied(tmp_path))
    assert manifest is not None
    assert manifest["parts"]["train"]["count"] == TRAIN
    assert prepare.main([f"chain={chains[0]}", "workers=2", "verify=true"]) == 0
    from ffcv.reader import Reader

    ids = Reader(str(copied(tmp_path) / "train.beton")).alloc_table["sample_id"]
    assert np.array_equal(np.sort(ids), np.arange(TRAIN))


def find_state(data: Path) -> str:
    job = find(read_queue(), copied(data))
    return job.state if job else ""


def test_where_it_fails_no_chain_starts_status_says_why_and_the_next_launch_goes_on(
    cluster: LocalSlurm, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tree / "imagenet", tmp_path / "imagenet")
    broken = tmp_path / "imagenet" / "train" / "n00000001" / "train_7.JPEG"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])  # found when it is decoded
    assert launch(tmp_path) == 0
    wait_until(lambda: not read_queue(), "the job to fail", 180)
    chains = run_folder.chain_folders(tmp_path / "runs", "imagenet")
    assert all(not (chain / "round-0").exists() for chain in chains)
    capsys.readouterr()
    status.main([f"runs={tmp_path / 'runs'}"])
    said = capsys.readouterr().out
    assert "no prepared copy" in said
    assert "train_7.JPEG" in said
    broken.write_bytes(whole)
    assert launch(tmp_path) == 0
    wait_until(lambda: all(run_folder.committed_rounds(chain) == 1 for chain in chains), "the chains", 300)


def test_a_cancelled_sweep_takes_it_along_unless_another_waits_for_it(
    cluster: LocalSlurm, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imagenet").symlink_to(tree / "imagenet")
    later = "+cluster.sbatch.begin=now+1hour"
    for name in ("one", "two"):
        assert launch(tmp_path, f"name={name}", later) == 0
    (job,) = (job for job in read_queue() if job.name == job_name(copied(tmp_path)))
    runs = f"runs={tmp_path / 'runs'}"
    for arguments, jobs, words in (
        (["name=one"], 2, f"Job {job.id} makes {copied(tmp_path)}, and 2 jobs of two wait for it: left alone."),
        (["name=two", "seed=0"], 1, f"Job {job.id} makes {copied(tmp_path)}, and 1 jobs of two wait for it"),
        (["name=two"], 1, f"Job {job.id}, which made {copied(tmp_path)} for them alone, is cancelled too"),
    ):
        capsys.readouterr()
        assert cancel([runs, *arguments]) == 0
        said = capsys.readouterr().out
        assert f"{jobs} jobs cancelled" in said
        assert words in said
    assert not read_queue()
