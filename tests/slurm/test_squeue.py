"""Job names map back to chains, and the queue is read as it is."""

from datetime import datetime
from pathlib import Path

import pytest

from slurm.client import SlurmError, SlurmSilentError, call
from slurm.local import LocalSlurm
from slurm.squeue import ChainName, by_chain, job_name, parse_job_name, read_queue, runs_hash
from tests.slurm_cluster import cluster, patient_cluster, shared_cluster, shared_patient_cluster, wait_until

__all__ = ["cluster", "patient_cluster", "shared_cluster", "shared_patient_cluster"]


def test_names_tell_chains_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = job_name("try-1.a", "mal_init_random", 12, tmp_path / "runs")
    assert parse_job_name(name) == ChainName("try-1.a", "mal_init_random", 12, runs_hash(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert job_name("try-1.a", "mal_init_random", 12, "runs") == name
    assert job_name("try-1.a", "mal_init_random", 12, "other") != name
    for foreign in ("bash", "mal", "mal:a:b:1:abcdef", "mal:a:b:s1:xyz", f"{name}:more"):
        assert parse_job_name(foreign) is None


def test_without_slurm_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="squeue is not installed on this machine; use cluster=local"):
        read_queue()


@pytest.mark.slurm
def test_the_queue_of_a_chain(cluster: LocalSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "high")  # a user's own default must not hide jobs
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    name = job_name("sweep", "mal", 3, tmp_path)
    common = ["sbatch", "--parsable", "--output=/dev/null", "--dependency=singleton", "--time=5"]
    ids = [call(*common, f"--job-name={name}", "--wrap=sleep 30").strip() for _ in range(2)]
    ids.append(call(*common, "--job-name=another", "--hold", "--wrap=true").strip())
    wait_until(lambda: read_queue()[0].state == "RUNNING", "the first job to start")
    first, second, third = read_queue()
    assert [first.id, second.id, third.id] == ids
    assert (first.waiting, second.waiting) == (False, True)
    assert (second.reason, third.reason) == ("Dependency", "JobHeldUser")
    assert (first.nodes in ("n1", "n2"), second.nodes, first.partition) == (True, "", "low")
    assert isinstance(first.start, datetime)
    assert isinstance(first.end, datetime)
    assert (first.end - first.start).total_seconds() == 300
    assert second.start is None
    assert by_chain(read_queue(), "sweep", tmp_path) == {("mal", 3): [first, second]}
    assert by_chain(read_queue(), "sweep", tmp_path / "elsewhere") == {}
    call("scancel", first.id)
    wait_until(lambda: read_queue([first.id])[0].state == "CANCELLED", "the end of the first job")
    assert first.id not in [job.id for job in read_queue()]


@pytest.mark.slurm
def test_a_job_that_is_being_requeued_waits(patient_cluster: LocalSlurm, tmp_path: Path) -> None:
    busy = f"trap '' TERM; touch {tmp_path}/$SLURM_JOB_ID; while [ ! -e {tmp_path}/end ]; do sleep 0.1; done"
    requeued, again, cancelled = (
        call("sbatch", "--parsable", "--output=/dev/null", "--time=5", f"--wrap={busy}").strip() for _ in range(3)
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3, "the jobs to start")
    for job in (requeued, again):
        call("scontrol", "requeue", job)
    call("scancel", cancelled)
    jobs = {job.id: job for job in read_queue()}  # Slurm waits for their processes
    assert [jobs[job].state for job in (requeued, again, cancelled)] == ["REQUEUED", "REQUEUED", "COMPLETING"]
    assert [(jobs[job].alive, jobs[job].waiting) for job in (again, cancelled)] == [(True, True), (False, False)]
    call("scancel", again)
    assert {job.id: job.state for job in read_queue()}[again] == "COMPLETING"
    (tmp_path / "end").touch()
    wait_until(lambda: len(read_queue()) < 3, "the ends")
    wait_until(lambda: [(job.id, job.state) for job in read_queue()] == [(requeued, "PENDING")], "one to wait again")


@pytest.mark.slurm
def test_silence_is_not_an_empty_queue(cluster: LocalSlurm) -> None:
    cluster.kill_controller()
    try:
        with pytest.raises(SlurmSilentError, match="Unable to contact slurm controller"):
            call("squeue", attempts=1)
    finally:
        cluster.start_controller()
    assert "UP" in call("scontrol", "ping")


@pytest.mark.slurm
def test_a_refusal_is_not_silence(cluster: LocalSlurm) -> None:
    with pytest.raises(SlurmError, match="invalid partition specified: nope") as refusal:
        call("sbatch", "--partition=nope", "--wrap=true", attempts=1)
    assert not isinstance(refusal.value, SlurmSilentError)
