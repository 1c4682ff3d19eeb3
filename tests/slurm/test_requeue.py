"""How a job leaves so that its work goes on: away from a bad node, where nobody requeues, where preemption cancels."""

from pathlib import Path

import pytest

from mal.run import folder as run_folder
from slurm.attempts import read_attempts
from slurm.avoid import excluded_before, lift
from slurm.client import SlurmError
from slurm.local import LocalSlurm
from slurm.local_conf import ClusterShape
from slurm.partitions import read_partitions
from slurm.profile import check_against, load_profile
from slurm.requeue import submit_again
from slurm.squeue import Job, read_queue
from slurm.submit import Submitter, Wanted
from slurm.submitted import read_submitted
from sweeps.launch import main as launch
from sweeps.status import main as status
from tests.chains import SHORT
from tests.slurm.fakes import forbidding_requeue, put_in_front
from tests.slurm_cluster import cluster, shared_cluster, short_folder, wait_until

__all__ = ["cluster", "shared_cluster", "short_folder"]
ON_SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0", "cluster.time.digits=10")
# What a node's broken GPU does to every chain, in any process of a step on n1.
BROKEN = """
import os
if os.environ.get("SLURMD_NODENAME") == "n1" and "SLURM_PROCID" in os.environ and "BROKEN_NODE" in os.environ:
    import torch
    def step(self, *arguments, **options):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    torch.optim.SGD.step = torch.optim.Adam.step = step
"""


@pytest.mark.chaos
@pytest.mark.slurm
def test_a_node_with_a_broken_gpu_fails_no_chain(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both chains land there first, one after the other; each goes on elsewhere and does not come back."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    setup = f"cluster.setup=['export BROKEN_NODE=1 PYTHONPATH={tmp_path}']"
    runs = tmp_path / "runs"
    cluster.run("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    try:
        arguments = [*SHORT, "methods=[random]", "seeds=1", *ON_SLURM, setup, f"runs={runs}"]
        assert launch(arguments) == 0
        wait_until(lambda: any(job.nodes == "n1" for job in read_queue()), "the job to start on n1")
    finally:
        cluster.run("scontrol", "update", "nodename=n2", "state=resume")
    chain = runs / "digits" / "random" / "seed-0"
    wait_until(lambda: run_folder.committed_rounds(chain) == 2 and not read_queue(), "the chain", timeout_s=150)
    attempts = read_attempts(chain)
    assert [(attempt.cause, attempt.host) for attempt in attempts if attempt.cause != "done"] == [("place", "n1")]
    assert not list(chain.rglob(run_folder.FAILED))
    capsys.readouterr()
    assert status([f"runs={runs}"]) == 0
    said = capsys.readouterr().out
    assert "1 place" in said
    assert "nodes that failed chains, which avoid them now: n1 (1 chains)" in said


@pytest.mark.chaos
@pytest.mark.slurm
def test_a_broken_gpu_where_nobody_requeues_fails_no_chain(cluster: LocalSlurm, tmp_path: Path) -> None:
    """The copy of the chain's only job, and that copy's own after a preemption, do not start on that node again."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    forbidding_requeue(tmp_path / "bin")
    setup = f"cluster.setup=['export BROKEN_NODE=1 PYTHONPATH={tmp_path} PATH={tmp_path / 'bin'}:$PATH']"
    length = ["rounds=1", "minimax.epochs=20", "checkpoint_minutes=0.01"]
    chain = tmp_path / "runs" / "digits" / "mal" / "seed-0"
    cluster.run("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    try:
        assert launch([*SHORT, *length, "methods=[mal]", "seeds=1", *ON_SLURM, setup, f"runs={tmp_path / 'runs'}"]) == 0
        wait_until(lambda: any(job.nodes == "n1" for job in read_queue()), "the job to start on n1")
    finally:
        cluster.run("scontrol", "update", "nodename=n2", "state=resume")
    wait_until(lambda: list(chain.rglob("*.ckpt")), "the chain to train elsewhere", timeout_s=150)
    cluster.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--nodes=2", "--wrap=sleep 1")
    wait_until(lambda: run_folder.committed_rounds(chain) == 1 and not read_queue(), "the chain", timeout_s=150)
    attempts = read_attempts(chain)
    assert [(attempt.cause, attempt.host) for attempt in attempts] == [("place", "n1"), ("preempted", ""), ("done", "")]
    assert not list(chain.rglob(run_folder.FAILED))


@pytest.mark.chaos
@pytest.mark.slurm
def test_a_job_that_nobody_requeues_submits_the_next_by_itself(cluster: LocalSlurm, tmp_path: Path) -> None:
    """The last job of its chain, at a site that forbids requeueing; preempted with some seconds of grace."""
    bare = tmp_path / "bin"
    forbidding_requeue(bare)
    runs = tmp_path / "runs"
    length = ["rounds=1", "minimax.epochs=20", "checkpoint_minutes=0.01", f"cluster.setup=['export PATH={bare}:$PATH']"]
    assert launch([*SHORT, *length, *ON_SLURM, "methods=[mal]", "seeds=1", f"runs={runs}"]) == 0
    chain = runs / "digits" / "mal" / "seed-0"
    wait_until(lambda: list(chain.rglob("*.ckpt")), "the chain to train")
    first = read_queue()[0].id
    cluster.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--nodes=2", "--wrap=sleep 1")
    wait_until(lambda: run_folder.committed_rounds(chain) == 1 and not read_queue(), "the chain", timeout_s=150)
    attempts = read_attempts(chain)
    assert (attempts[0].job, attempts[0].cause) == (first, "preempted")
    assert attempts[-1].cause == "done"
    assert attempts[-1].job in read_submitted(runs / "digits")


def test_a_copy_of_a_job_avoids_the_same_nodes_and_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    shown = 'case "$*" in *write*) echo "#!/bin/sh";; *) echo "JobId=5 ExcNodeList=n[4-5] Nice=0";; esac'
    put_in_front(tmp_path / "bin", monkeypatch, scontrol=shown, sbatch=f'cat > /dev/null; echo "$@" > {asked}; echo 7')
    for exclude, delay, words in (
        ([], 0.0, "--exclude=n[4-5]"),
        (["n[4-5]", "n1"], 0.0, "--exclude=n[4-5],n1"),
        ([], 20.0, "--exclude=n[4-5] --begin=now+20"),
    ):
        assert submit_again("5", tmp_path, exclude, delay)
        assert asked.read_text() == f"--parsable {words}\n"


def test_where_preemption_cancels_each_chain_has_a_spare_job(tmp_path: Path) -> None:
    profile = load_profile({"name": "mine", "kind": "slurm", "gpus_per_node": 0})
    submitter = Submitter("a", tmp_path, profile, tmp_path / "code", spare=True)
    wanted = [Wanted("mal", 0, "digits", 0, 2)]
    missing = submitter.missing(wanted, [])
    assert [submission.until for submission in missing] == [1, 2, 2]
    waiting = Job("1", missing[0].name, "PENDING", "", None, None, "", "me", "low", None, "until=2 mal/seed-0")
    assert [submission.until for submission in submitter.missing(wanted, [waiting])] == [2]
    both = [waiting, Job("2", *[getattr(waiting, name) for name in list(Job.__dataclass_fields__)[1:]])]
    assert submitter.missing(wanted, both) == []
    assert submitter.missing([Wanted("mal", 0, "digits", 2, 2)], []) == []


@pytest.mark.slurm
def test_what_sbatch_takes_is_warned_of_and_what_it_does_not_take_is_refused(
    cluster: LocalSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [*SHORT, "methods=[random]", "seeds=1", *ON_SLURM, "+cluster.sbatch.begin=now+1hour"]
    assert launch([*chosen, "cluster.time.digits=3-0", f"runs={tmp_path / 'a'}"]) == 0
    said = capsys.readouterr().out
    assert "Warning: cluster.time.digits: 4320 minutes, but low allows 1440. Slurm takes it all the same" in said
    assert launch([*chosen, "cluster.partition=nope", f"runs={tmp_path / 'b'}"]) == 2
    assert "cluster.partition=nope is unknown here" in (told := capsys.readouterr().err)
    assert "Invalid partition name specified" in told or "invalid partition specified" in told
    # a site's plug-in that routes jobs by a partition's name
    put_in_front(tmp_path / "bin", monkeypatch, sbatch="sed 's/--partition=nope/--partition=low/' | REAL \"$@\"")
    assert launch([*chosen, "cluster.partition=nope", f"runs={tmp_path / 'c'}"]) == 0
    assert "Warning: cluster.partition=nope is unknown here" in capsys.readouterr().out
    partitions = read_partitions()
    profile = load_profile({"name": "mine", "kind": "slurm", "gpus_per_node": 0, "partition": "nope,high"})
    assert check_against(profile, partitions, ["digits"]) == []  # the best of them


def test_a_refusal_without_any_job_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: Job violates"
    put_in_front(tmp_path / "bin", monkeypatch, sbatch=f"echo '{words} accounting/QOS policy' >&2; exit 1")
    profile = load_profile({"name": "mine", "kind": "slurm", "gpus_per_node": 0})
    submitter = Submitter("a", tmp_path, profile, tmp_path / "code")
    submissions = submitter.missing([Wanted("mal", 0, "digits", 0, 2)], [])
    with pytest.raises(SlurmError, match="QOSMaxWallDurationPerJobLimit"):
        submitter.submit(submissions, lambda done: None)


@pytest.mark.slurm
def test_a_waiting_job_may_start_again_on_a_node_that_failed_long_ago(cluster: LocalSlurm) -> None:
    cluster.run("sbatch", "--hold", "--exclude=n[1-2]", "--output=/dev/null", "--wrap=true")
    jobs = read_queue()
    lift(jobs, ["n1"])
    assert excluded_before(jobs[0].id) == ["n2"]
    lift(jobs, ["n2", "n9"])
    assert excluded_before(jobs[0].id) == []


@pytest.mark.slurm
def test_a_job_held_after_a_failing_prolog_goes_on_once_released(
    short_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prolog, broken = short_folder / "prolog", short_folder / "broken"
    prolog.write_text(f"#!/bin/sh\n[ ! -e {broken} ]\n")
    prolog.chmod(0o755)
    broken.touch()
    with LocalSlurm(short_folder, ClusterShape(nodes=1, gpus_per_node=0, extra={"Prolog": str(prolog)})) as cluster:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        arguments = [*SHORT, "rounds=1", "methods=[random]", "seeds=1", *ON_SLURM, f"runs={tmp_path}"]
        assert launch(arguments) == 0
        wait_until(lambda: "held" in read_queue()[0].reason, "the job to be held")
        capsys.readouterr()
        assert status([f"runs={tmp_path}"]) == 1
        number = read_queue()[0].id
        assert f"`scontrol release {number}`" in capsys.readouterr().out
        broken.unlink()
        cluster.run("scontrol", "update", "nodename=n1", "state=resume")
        cluster.run("scontrol", "release", number)
        wait_until(lambda: not read_queue(), "the chain", timeout_s=180)
    assert run_folder.committed_rounds(tmp_path / "digits" / "random" / "seed-0") == 1
