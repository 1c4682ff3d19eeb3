"""The local Slurm cluster that tests share; import the fixture `cluster` to use it."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.local import LocalSlurm, missing_programs
from slurm.local_conf import ClusterShape


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[LocalSlurm]:
    """Two nodes for all tests of a run, in a folder with a path short enough for Unix sockets."""
    if missing_programs():
        pytest.skip(f"no {', '.join(missing_programs())} on this machine (Debian: slurm-wlm, munge)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with LocalSlurm(folder, ClusterShape(grace_s=4, kill_wait_s=2, slurmd_timeout_s=3)) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture
def cluster(shared_cluster: LocalSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalSlurm]:
    """The shared cluster with an empty queue and idle nodes, which Slurm's commands of this process reach."""
    for key in [k for k in os.environ if k.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("SLURM_CONF", str(shared_cluster.conf))
    shared_cluster.wait_nodes("idle")
    yield shared_cluster
    shared_cluster.run("scancel", "--me")
    wait_until(lambda: not shared_cluster.run("squeue", "--noheader"), "the queue to drain")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for one more cluster."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    yield folder
    shutil.rmtree(folder)


def wait_until(true: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Wait for a condition of the cluster; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)
