"""The local Slurm cluster that tests share; import the fixture `cluster` to use it."""

import contextlib
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
    """Two nodes for all tests of a run."""
    with _started(ClusterShape(grace_s=4, kill_wait_s=2)) as running:
        yield running


@pytest.fixture
def cluster(shared_cluster: LocalSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalSlurm]:
    """The shared cluster with an empty queue and idle nodes, which Slurm's commands of this process reach."""
    with _reached(shared_cluster, monkeypatch):
        yield shared_cluster


@pytest.fixture(scope="session")
def shared_patient_cluster() -> Iterator[LocalSlurm]:
    """Two nodes that leave a job a minute for its last words, where a test is about them."""
    with _started(ClusterShape(grace_s=60, kill_wait_s=60)) as running:
        yield running


@pytest.fixture
def patient_cluster(shared_patient_cluster: LocalSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalSlurm]:
    """That one, as `cluster`."""
    with _reached(shared_patient_cluster, monkeypatch):
        yield shared_patient_cluster


@contextlib.contextmanager
def _started(shape: ClusterShape) -> Iterator[LocalSlurm]:
    """A cluster in a folder with a path short enough for Unix sockets."""
    if missing_programs():
        pytest.skip(f"no {', '.join(missing_programs())} on this machine (Debian: slurm-wlm, munge)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with LocalSlurm(folder, shape) as running:
        yield running
    shutil.rmtree(folder)


@contextlib.contextmanager
def _reached(running: LocalSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for key in [k for k in os.environ if k.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("SLURM_CONF", str(running.conf))
    running.wait_nodes("idle")
    yield
    running.run("scancel", "--me")
    wait_until(lambda: not running.run("squeue", "--noheader"), "the queue to drain")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for one more cluster."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    yield folder
    shutil.rmtree(folder)


def wait_until(true: Callable[[], object], what: str, timeout_s: float = 60, poll_s: float = 0.1) -> None:
    """Wait for a condition of the cluster; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(poll_s)
