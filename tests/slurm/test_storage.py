"""Shared storage that fails for a moment, a job that is suspended, and how often a job looks at files."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mal.chain import read_failure
from mal.files import write_json
from mal.run import folder as run_folder
from slurm import job, patience, watch
from slurm.attempts import (
    AVOIDED_HOURS,
    bad_nodes,
    give_up,
    in_a_row,
    lapsed_nodes,
    may_go_on,
    read_attempts,
    write_end,
    write_start,
)
from slurm.causes import cause_of, node_of
from slurm.clock import RunClock, counted
from slurm.local import LocalSlurm
from slurm.patience import StorageError, insist
from slurm.squeue import read_queue
from slurm.watch import Watch
from sweeps.cancel import main as cancel
from sweeps.launch import main as launch
from sweeps.status import main as status
from tests.chains import SHORT, chain_config, write_chain
from tests.slurm.fakes import failing_calls
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]
ON_SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0", "cluster.time.digits=10")
MOMENTS = (errno.ESHUTDOWN, errno.ESTALE, errno.EIO, errno.ENOSPC, errno.ENOENT)


class Clock(RunClock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of `insist`, without the waiting."""
    waits: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", waits.append)
    return waits


@pytest.mark.parametrize("number", MOMENTS)
def test_a_file_is_asked_for_again_with_growing_patience(slept: list[float], number: int) -> None:
    answers: Iterator[int] = iter(range(5))

    def read() -> str:
        if next(answers) < 4:
            raise OSError(number, os.strerror(number))
        return "there"

    assert insist(read) == "there"
    assert slept == [1, 2, 4, 8]


def test_patience_ends(slept: list[float]) -> None:
    def read() -> str:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match="Input/output error"):
        insist(read)
    assert patience.PATIENCE_SECONDS <= sum(slept) <= 2 * patience.PATIENCE_SECONDS
    assert max(slept) == patience.LONGEST_SECONDS


def heartbeat(chain: Path, moment: float) -> None:
    path = run_folder.round_folder(chain, 0) / run_folder.CHECKPOINT / run_folder.PROGRESS
    write_json(path, {"updated": moment})


def test_a_hang_is_silence_while_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, clock = write_chain(tmp_path, chain_config()), Clock()
    heartbeat(chain, 1.0)
    watched = Watch(chain, 10, clock)
    clock.seconds = 50
    heartbeat(chain, 2.0)
    assert not watched.silent()
    clock.seconds = 649
    assert not watched.silent()  # an hour on the wall's clock may have passed: the job was suspended
    clock.seconds = 660
    assert watched.silent()
    heartbeat(chain, 3.0)
    clock.seconds = 700
    assert not watched.silent()

    def fails(*arguments: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(watch, "_read", fails)
    clock.seconds = 5000
    assert not watched.silent()  # nothing is known


def test_a_job_looks_at_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one per second over a minute of ten looks per second: metadata servers serve thousands of jobs."""
    chain, clock, looks = write_chain(tmp_path, chain_config()), Clock(), [0]
    heartbeat(chain, 1.0)
    watched, read = Watch(chain, 60, clock), watch._read

    def look(path: Path) -> float | None:
        looks[0] += 1
        return read(path)

    def listed(chain: Path) -> int:
        raise AssertionError("the folder is listed although the heartbeat is where it was")

    monkeypatch.setattr(watch, "_read", look)
    monkeypatch.setattr(run_folder, "committed_rounds", listed)
    for tick in range(600):
        clock.seconds = tick / 10
        assert not watched.silent()
    assert 0 < looks[0] <= 60


def test_time_in_which_the_job_was_stopped_does_not_count() -> None:
    assert [counted(gap) for gap in (0.5, 2.0, 3600.0)] == [0.5, 2.0, 0.5]
    code = "from slurm.clock import RunClock; import time; c = RunClock(); time.sleep(9); print(c.seconds)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    time.sleep(1.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(7)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert float(out) < 7


@pytest.mark.parametrize(
    ("status", "tail", "cause"),
    [
        (0, [], "done"),
        (1, ["2026 the storage failed: [Errno 28] No space left on device", "srun: error: n1"], "storage"),
        (1, ["srun: error: n1: task 0: Exited with exit code 1"], "storage"),  # the log was on it, too
        (1, ["Traceback (most recent call last):", "ImportError: libcudnn.so.9: cannot open shared object"], "place"),
        (1, ["Traceback (most recent call last):", "KeyError: 3"], "died"),
        (1, ["Process 1 of 2 has lost the others: closed"], "died"),
        (76, [], "locked"),
        (77, [], "out of memory"),
        (78, ["round 0 fails here"], "place"),
        (128 + signal.SIGILL, [], "place"),
        (128 + signal.SIGKILL, [], "killed"),
        (128 + signal.SIGKILL, ["slurmstepd: error: Detected 1 oom_kill event"], "out of memory"),
        (75, [], "preempted"),
        (1, ["srun: error: Unable to confirm allocation for job 7: Job is pending execution"], "stopped"),
        (1, ["Traceback", "ModuleNotFoundError: No module named 'mal.round'"], "storage"),
        (1, ["Traceback", "ModuleNotFoundError: No module named 'torch'"], "place"),
    ],
)
def test_causes(status: int, tail: list[str], cause: str) -> None:
    assert cause_of(status, tail, said_goodbye=False, near_limit=False) == cause


def test_an_error_of_the_place_is_tried_once_elsewhere_then_reported(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, chain_config())
    assert node_of(["process 1 on n4: CUDA error", "srun: error"], "n1") == "n4"
    for number, node in enumerate(("n1", "n2")):
        started = write_start(chain, "1", number, 0)
        write_end(chain, "1", number, started, "place", node)
        assert may_go_on("place", read_attempts(chain)) is (number == 0)
    assert bad_nodes(chain) == ["n1", "n2"]
    give_up(chain, "place", ["2026-11-26 16:51:43,914 round 0 fails here: CUDA error: ECC", "srun: error: n2: task 0"])
    failure = read_failure(chain)
    assert failure is not None
    assert failure["error"].startswith(
        "Round 0 was given up: it failed on n1, n2 (round 0 fails here: CUDA error: ECC)."
    )
    for number, node in enumerate(("n3", "n4")):  # a person launched it again: once more elsewhere
        started = write_start(chain, "3", number, 0)
        write_end(chain, "3", number, started, "place", node)
        assert may_go_on("place", read_attempts(chain)) is (number == 0)
    for number in range(9):  # of the storage: never given up, later each time
        started = write_start(chain, "2", number, 0)
        write_end(chain, "2", number, started, "storage")
    assert may_go_on("storage", read_attempts(chain))
    assert in_a_row("storage", read_attempts(chain)) == 9


def test_on_a_node_that_a_job_cannot_leave_the_place_has_four_tries(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, chain_config())
    for number in range(4):
        started = write_start(chain, "1", number, 0)
        write_end(chain, "1", number, started, "place", "n1")
        assert may_go_on("place", read_attempts(chain)) is (number < 3)


def test_what_saved_before_it_failed_on_a_node_may_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU after another breaks over days: no reason to give up. A node is avoided for some hours."""
    chain = write_chain(tmp_path, chain_config())
    for number, node in enumerate(("n1", "n2", "n3")):
        started = write_start(chain, "1", number, 0)
        saved = run_folder.round_folder(chain, 0) / run_folder.CHECKPOINT / "x.ckpt"
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_bytes(b"")
        write_end(chain, "1", number, started, "place", node)
        assert may_go_on("place", read_attempts(chain))
    assert (bad_nodes(chain), lapsed_nodes(chain)) == (["n1", "n2", "n3"], [])
    later = time.time() + 3600 * AVOIDED_HOURS + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert (bad_nodes(chain), lapsed_nodes(chain)) == ([], ["n1", "n2", "n3"])


def test_a_configuration_that_shows_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another node's file system the file is not there yet, then cut, then whole."""
    chain = write_chain(tmp_path, chain_config())
    path = chain / run_folder.CONFIG
    whole, waits = path.read_text(), []
    path.unlink()

    def sleep(seconds: float, real: Callable[[float], None] = time.sleep) -> None:
        if threading.current_thread() is not threading.main_thread():
            real(seconds)  # of other threads
            return
        waits.append(seconds)
        path.write_text(whole if len(waits) > 3 else "" if len(waits) < 3 else "[cut")

    monkeypatch.setattr(patience.time, "sleep", sleep)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    limits = job.Limits(until=1, minutes=10, lead_s=60, hang_minutes=60)
    assert not job.Job([chain], limits)._reached(chain)
    assert len(waits) > 3
    assert read_failure(chain) is None


def test_a_configuration_out_of_sight_as_the_work_is_started_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the job looked how far the chain is, and is there again a little later."""
    chain = write_chain(tmp_path, chain_config("threads=3"))
    path, away = chain / run_folder.CONFIG, tmp_path / "away"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    started = []
    monkeypatch.setattr(job, "start_chain", lambda *words: started.append(words) or (subprocess.Popen(["true"]), 0))
    supervisor = job.Job([chain], job.Limits(until=1, minutes=10, lead_s=60, hang_minutes=60))
    assert not supervisor._reached(chain)
    path.rename(away)
    threading.Timer(1.5, away.rename, args=[path]).start()
    supervisor._start(chain, overlap=False).process.wait()
    assert started[0][3] == 3


def test_commands_say_that_the_storage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and with an exit status that is not 0."""

    def fails(*arguments: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    folder = write_chain(tmp_path, chain_config())
    where = [f"runs={tmp_path}", f"name={folder.parents[1].name}"]
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here
    monkeypatch.setattr(run_folder, "committed_rounds", fails)
    for command, arguments, expected in ((status, where, 3), (cancel, where, 1), (launch, [*SHORT, *where], 2)):
        assert command(arguments) == expected
        assert "the storage fails ([Errno 116] Stale file handle). Run the same command" in capsys.readouterr().err


@pytest.mark.slurm
def test_storage_that_fails_for_a_moment_ends_no_chain(cluster: LocalSlurm, tmp_path: Path) -> None:
    """The job's supervisor gets ESHUTDOWN for a second while the worker trains, and the next job at its start."""
    flag, library = tmp_path / "flag", failing_calls(tmp_path)
    setup = f"cluster.setup=['export LD_PRELOAD={library} FAULT_FLAG={flag}']"
    runs = tmp_path / "runs"
    length = ["task.epochs=60", "checkpoint_minutes=0.02", "cluster.hang_minutes=0.2"]
    assert launch([*SHORT, *length, *ON_SLURM, "methods=[random]", "seeds=1", setup, f"runs={runs}"]) == 0
    chain = runs / "digits" / "random" / "seed-0"
    wait_until(lambda: list(chain.rglob("*.ckpt")), "the chain to train", timeout_s=180)
    flag.write_text(f"{errno.ESHUTDOWN} {runs}/digits/random slurm.job")
    time.sleep(4)
    flag.unlink()
    wait_until(lambda: run_folder.committed_rounds(chain) == 1, "the first round", timeout_s=180)
    flag.write_text(f"{errno.EIO} {runs}/digits/random slurm.job")
    time.sleep(3)
    flag.unlink()
    wait_until(lambda: run_folder.committed_rounds(chain) == 2 and not read_queue(), "the chain", timeout_s=120)
    assert {attempt.cause for attempt in read_attempts(chain)} == {"done"}
    assert not list(chain.rglob(run_folder.FAILED))


@pytest.mark.slurm
def test_a_full_disk_ends_no_chain(cluster: LocalSlurm, tmp_path: Path) -> None:
    """While a chain trains, nothing of its job can write for some seconds."""
    flag, library, runs = tmp_path / "flag", failing_calls(tmp_path), tmp_path / "runs"
    setup = f"cluster.setup=['export LD_PRELOAD={library} FAULT_FLAG={flag}']"
    length = ["rounds=1", "task.epochs=60", "checkpoint_minutes=0.01", setup]
    assert launch([*SHORT, *length, *ON_SLURM, "methods=[random]", "seeds=1", f"runs={runs}"]) == 0
    chain = runs / "digits" / "random" / "seed-0"
    wait_until(lambda: list(chain.rglob("*.ckpt")), "the chain to train", timeout_s=180)
    flag.write_text(f"{errno.ENOSPC} {runs} -m")
    time.sleep(3)
    flag.unlink()
    wait_until(lambda: run_folder.committed_rounds(chain) == 1 and not read_queue(), "the chain", timeout_s=180)
    assert {attempt.cause for attempt in read_attempts(chain)} == {"storage", "done"}
    assert not list(chain.rglob(run_folder.FAILED))
