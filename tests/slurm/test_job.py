"""Jobs outlive what a cluster does to them; the longer study, with random moments, is tests/chaos.py."""

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from mal.chain import read_failure
from mal.files import write_atomic, write_json
from mal.run import folder as run_folder
from slurm import attempts
from slurm.attempts import read_attempts, write_end, write_start
from slurm.local import LocalSlurm
from slurm.squeue import read_queue
from sweeps.cancel import main as cancel
from sweeps.launch import main as launch
from tests.chains import SHORT, assert_same_science, chain_config, outcome, run_chain_process, write_chain
from tests.slurm_cluster import cluster, patient_cluster, shared_cluster, shared_patient_cluster, wait_until

__all__ = ["cluster", "patient_cluster", "shared_cluster", "shared_patient_cluster"]
LONG = ("minimax.epochs=20", "task.epochs=2", "checkpoint_minutes=0.01")
PREEMPTING = ("sbatch", "--partition=high", "--exclusive", "--output=/dev/null")
ON_SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0", "cluster.time.digits=10")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, object]:
    """What chains of seeds 0 and 1 arrive at when nothing happens."""
    runs = tmp_path_factory.mktemp("undisturbed")
    found = {}
    for seed in (0, 1):
        folder = write_chain(runs, chain_config(*LONG, seed=seed))
        assert run_chain_process(folder).returncode == 0
        found[seed] = outcome(folder)
    return found


def chain(runs: Path, seed: int = 0) -> Path:
    return run_folder.chain_folder(runs, "digits", "mal", seed)


def worker(folder: Path) -> psutil.Process | None:
    """The process that does the chain's work, in the first half of a round's first phase."""
    number = run_folder.committed_rounds(folder)
    heartbeat = run_folder.round_folder(folder, number) / run_folder.CHECKPOINT / run_folder.PROGRESS
    state = json.loads(heartbeat.read_text()) if heartbeat.exists() else {}
    early = state.get("phase") == "minimax" and state["step"] < state["steps"] / 2
    return psutil.Process(state["pid"]) if early and psutil.pid_exists(state["pid"]) else None


def training(folder: Path) -> psutil.Process:
    """That process, as soon as it trains."""
    wait_until(lambda: worker(folder), "the chain to train")
    process = worker(folder)
    assert process is not None
    return process


def finished(runs: Path, *seeds: int) -> bool:
    return all(run_folder.committed_rounds(chain(runs, seed)) == 2 for seed in seeds)


def submit(runs: Path, *more: str, length: Sequence[str] = LONG) -> None:
    assert launch([*SHORT, *length, *ON_SLURM, "methods=[mal]", "seeds=[0]", f"runs={runs}", *more]) == 0


def causes(folder: Path) -> list[str]:
    return [attempt.cause for attempt in read_attempts(folder)]


@pytest.mark.chaos
@pytest.mark.slurm
def test_preempted_chains_go_on_bit_for_bit(
    patient_cluster: LocalSlurm, tmp_path: Path, undisturbed: dict[int, object]
) -> None:
    submit(tmp_path, "seeds=2")
    wait_until(lambda: worker(chain(tmp_path)) and worker(chain(tmp_path, 1)), "both to train")
    patient_cluster.run(*PREEMPTING, "--nodes=2", "--wrap=sleep 1")
    wait_until(lambda: finished(tmp_path, 0, 1) and not read_queue(), "the chains", timeout_s=180)
    for seed in (0, 1):
        assert outcome(chain(tmp_path, seed)) == undisturbed[seed]
        first, second, *_ = read_attempts(chain(tmp_path, seed))
        assert (first.cause, first.saved) == ("preempted", True)
        assert (second.job, second.restart) == (first.job, 1)  # it requeued itself
        assert set(causes(chain(tmp_path, seed))[1:]) == {"done"}


@pytest.mark.chaos
@pytest.mark.slurm
def test_killed_and_hung_processes_are_run_again(
    cluster: LocalSlurm, tmp_path: Path, undisturbed: dict[int, object]
) -> None:
    submit(tmp_path, "seeds=2", "cluster.hang_minutes=0.3")
    for seed, number in ((0, signal.SIGKILL), (1, signal.SIGSTOP)):
        training(chain(tmp_path, seed)).send_signal(number)
    wait_until(lambda: finished(tmp_path, 0, 1), "the chains", timeout_s=150)
    assert "killed" in causes(chain(tmp_path, 0))
    assert "hung" in causes(chain(tmp_path, 1))
    assert outcome(chain(tmp_path, 0)) == undisturbed[0]
    assert outcome(chain(tmp_path, 1)) == undisturbed[1]


@pytest.mark.chaos
@pytest.mark.slurm
def test_a_cancelled_job_stays_cancelled_and_a_launch_goes_on(
    patient_cluster: LocalSlurm, tmp_path: Path, undisturbed: dict[int, object]
) -> None:
    submit(tmp_path)
    wait_until(lambda: worker(chain(tmp_path)), "it to train")
    assert cancel([f"runs={tmp_path}", "name=digits", "method=mal", "seed=0"]) == 0
    wait_until(lambda: not read_queue(), "the queue to drain")
    assert causes(chain(tmp_path)) == ["stopped"]  # its last act was not to requeue itself
    assert run_folder.committed_rounds(chain(tmp_path)) < 2
    submit(tmp_path)
    wait_until(lambda: finished(tmp_path, 0), "the chain", timeout_s=120)
    assert outcome(chain(tmp_path)) == undisturbed[0]


@pytest.mark.chaos
@pytest.mark.slurm
def test_chains_of_a_pack_fail_each_by_itself(cluster: LocalSlurm, tmp_path: Path) -> None:
    """Seed 0 finds a round that was tampered with; its error is recorded and not tried again."""
    packed = [*SHORT, *ON_SLURM, "methods=[mal]", "seeds=2", "cluster.pack=2", f"runs={tmp_path}"]
    assert launch([*packed, "+cluster.sbatch.begin=now+3"]) == 0
    write_json(run_folder.round_folder(chain(tmp_path), 0) / run_folder.COMMITTED, {})
    jobs = [job.id for job in read_queue()]
    assert len(jobs) == 2
    wait_until(lambda: not read_queue(), "the jobs", timeout_s=120)
    assert run_folder.committed_rounds(chain(tmp_path, 1)) == 2
    failure = read_failure(chain(tmp_path))
    assert failure is not None
    assert "DamagedRun" in failure["error"]
    assert causes(chain(tmp_path)) == ["error"]
    assert [job.state for job in read_queue(jobs)] == ["COMPLETED", "FAILED"]  # the first had only seed 1 to do
    (run_folder.round_folder(chain(tmp_path), 0) / run_folder.COMMITTED).unlink()
    run_folder.round_folder(chain(tmp_path), 1).rename(run_folder.round_folder(chain(tmp_path), 0))
    assert launch(packed) == 1  # not tried again
    assert not read_queue()


@pytest.mark.chaos
@pytest.mark.slurm
def test_without_scontrol_slurm_itself_requeues(
    cluster: LocalSlurm, tmp_path: Path, undisturbed: dict[int, object]
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for program in ("srun", "git", "sh"):
        (bare / program).symlink_to(str(shutil.which(program)))
    submit(tmp_path, f"cluster.setup=['export PATH={bare}']")
    wait_until(lambda: worker(chain(tmp_path)), "it to train")
    cluster.run(*PREEMPTING, "--nodes=2", "--wrap=sleep 1")
    wait_until(lambda: finished(tmp_path, 0), "the chain", timeout_s=120)
    assert read_attempts(chain(tmp_path))[-1].restart >= 0
    assert len(read_attempts(chain(tmp_path))) >= 3
    assert outcome(chain(tmp_path)) == undisturbed[0]


@pytest.mark.chaos
@pytest.mark.slurm
def test_a_job_of_two_nodes_goes_on_on_one(patient_cluster: LocalSlurm, tmp_path: Path) -> None:
    """Few steps, as thousands would drift apart by rounding: rank 0 is frozen until Slurm's warning wakes it."""
    alone = write_chain(tmp_path / "alone", chain_config())
    assert run_chain_process(alone).returncode == 0
    submit(tmp_path, "cluster.nodes=2", length=["checkpoint_minutes=0.00001"])
    checkpoints = run_folder.round_folder(chain(tmp_path), 0) / run_folder.CHECKPOINT
    wait_until(lambda: list(checkpoints.glob("*.ckpt")), "a checkpoint", poll_s=0.005)
    psutil.Process(json.loads((checkpoints / run_folder.PROGRESS).read_text())["pid"]).suspend()
    assert any(job.nodes == "n[1-2]" for job in read_queue())
    patient_cluster.run(*PREEMPTING, "--nodes=1", "--wrap=sleep 300")
    wait_until(lambda: all(job.waiting for job in read_queue() if job.name.startswith("mal:")), "the preemption")
    assert cancel([f"runs={tmp_path}", "name=digits"]) == 0
    submit(tmp_path, "cluster.nodes=1", length=["checkpoint_minutes=0.00001"])
    wait_until(lambda: finished(tmp_path, 0), "the chain", timeout_s=120)
    first = read_attempts(chain(tmp_path))[0]
    assert (first.cause, first.saved) == ("preempted", True)  # by two processes, and taken up by one
    assert run_folder.read_round(run_folder.round_folder(chain(tmp_path), 0)).metrics["preemptions"] == 1
    assert_same_science(alone, chain(tmp_path))


@pytest.mark.chaos
@pytest.mark.slurm
def test_out_of_memory_is_tried_once_more_and_then_a_person_is_asked(cluster: LocalSlurm, tmp_path: Path) -> None:
    """Each process may have 12 GB of addresses, and D's layers ask for 14 GB."""
    submit(tmp_path, "cluster.setup=['ulimit -v 12000000']", "backbone.discriminator=60000", "rounds=1")
    wait_until(lambda: not read_queue(), "the job to give up", timeout_s=120)
    assert causes(chain(tmp_path)) == ["out of memory"] * 2
    failure = read_failure(chain(tmp_path))
    assert failure is not None
    assert failure["error"].startswith("Round 0 was given up: out of memory 2 times")
    assert "Raise cluster.mem_gb" in failure["error"]
    assert "can't allocate memory" in failure["traceback"]


def test_budgets_count_attempts_without_anything_saved(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config())

    def attempt(cause: str, saved: bool = False) -> bool:
        started = write_start(folder, "1", 0, gpus=2)
        if saved:
            path = run_folder.round_folder(folder, 0) / run_folder.CHECKPOINT / "task.ckpt"
            write_atomic(path, b"")
            os.utime(path, (started + 1e-4, started + 1e-4))
            time.sleep(1e-3)
        write_end(folder, "1", 0, started, cause)
        return attempts.may_go_on(cause, read_attempts(folder))

    assert [attempt("killed") for _ in range(4)] == [True, True, True, False]
    assert attempt("killed", saved=True)
    assert all(attempt("preempted") for _ in range(20))
    assert [attempt("timeout") for _ in range(3)] == [True, True, False]
    assert attempt("timeout", saved=True)


def test_an_attempt_that_was_cut_off_is_judged_by_the_next(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config())
    started = write_start(folder, "7", 0, gpus=4)
    heartbeat = run_folder.round_folder(folder, 0) / run_folder.CHECKPOINT / run_folder.PROGRESS
    write_json(heartbeat, {"updated": started + 100})
    write_start(folder, "7", 1, gpus=4)
    write_json(heartbeat, {"updated": started + 1000})
    with (folder / "slurm" / "attempts.jsonl").open("a") as log:
        log.write('{"event": "sta')  # a full disk
    first, second = read_attempts(folder)
    assert (first.cause, first.restart, first.gpus) == ("", 0, 4)
    assert first.seconds == pytest.approx(100)
    assert first.lost == pytest.approx(100)  # it saved nothing
    assert second.restart == 1
