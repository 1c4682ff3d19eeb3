"""The lock of a chain, with flock and without, and what is left of a holder that is gone."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mal.run import lock
from mal.run.lock import hold, is_held

HOLDER = """
import fcntl, pathlib, sys, time
from mal.run import lock
def no_flock(*arguments):
    raise OSError(int(sys.argv[2]), "no flock here")
fcntl.flock = no_flock
lock.LEASE_SECONDS = 1.0
with lock.hold(pathlib.Path(sys.argv[1]), 0):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def number(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """An errno by which a file system says that it has no flock."""

    def no_flock(*arguments: object) -> None:
        raise OSError(request.param, "no flock here")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    return int(request.param)


def holder(path: Path, number: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER, str(path), str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_at_a_time_without_flock(tmp_path: Path, number: int) -> None:
    path = tmp_path / ".lock"
    assert not is_held(path)
    with hold(path, 0):
        pass
    other = holder(path, number)
    try:
        assert is_held(path)
        with pytest.raises(TimeoutError), hold(path, 2.5):  # longer than a lease: its heartbeat keeps it
            pass
    finally:
        other.kill()
        other.wait()
    assert not is_held(path)  # of this host, which knows that the process is gone
    with hold(path, 0):
        assert (tmp_path / ".lock.lease").exists()


def test_a_holder_whose_host_is_gone_is_succeeded_when_its_heartbeat_is_long_past(tmp_path: Path, number: int) -> None:
    path, lease = tmp_path / ".lock", tmp_path / ".lock.lease"
    other = holder(path, number)
    other.kill()
    other.wait()
    lease.write_text(lease.read_text().replace(os.uname().nodename, "node07"))
    assert is_held(path)
    with pytest.raises(TimeoutError), hold(path, 0.2):
        pass
    long_past = time.time() - lock.LONG_PAST_SECONDS - 10
    os.utime(lease, (long_past, long_past))
    assert not is_held(path)
    with hold(path, 0.2):
        assert "node07" not in lease.read_text()


def test_other_errors_of_the_file_system_are_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output error"):
        is_held(tmp_path / ".lock")
