"""Only a sweep's own jobs, known by their ids, whatever else is in the queue and whatever a site makes of comments."""

import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from slurm.client import SlurmError, SlurmFullError, SlurmSilentError
from slurm.local import LocalSlurm
from slurm.profile import load_profile
from slurm.squeue import Job, by_chain, chains_of, job_comment, name_of, read_queue
from slurm.submit import Submission, Submitter, Wanted, _passes, job_id, logical
from slurm.submitted import claim, note_aim, note_cancelled, note_submitted, read_submitted
from sweeps.cancel import main as cancel
from sweeps.launch import main as launch
from sweeps.status import main as status
from tests.chains import SHORT
from tests.slurm.fakes import put_in_front
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]
LATER = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0", "+cluster.sbatch.begin=now+1hour")
WAITING = Job("7", "", "PENDING", "", None, None, "", "me", "low", datetime.now(UTC))


def arguments(runs: Path, *more: str) -> list[str]:
    return [*SHORT, "methods=[random]", "seeds=1", *LATER, f"runs={runs}", *more]


def test_the_file_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    assert read_submitted(tmp_path) == {}
    note_submitted(tmp_path, "7", "mal:a:mal:s0:abcdef", ["mal/seed-0"], 1, "7.log")
    with (tmp_path / ".slurm" / "jobs.jsonl").open("a") as file:
        file.write('{"job": 8, "na')  # a full disk
    note_submitted(tmp_path, "9", "mal:a:mal:s0:abcdef", ["mal/seed-0"], 2, "9.log")
    note_aim(tmp_path, "9", 5)
    note_cancelled(tmp_path, "7")
    found = read_submitted(tmp_path)
    assert sorted(found) == ["7", "9"]
    assert (found["9"].until, found["9"].aim, found["9"].cancelled, found["7"].cancelled) == (2, 5, False, True)
    note_submitted(tmp_path, "7", "mal:a:mal:s0:abcdef", ["mal/seed-0"], 1, "7.log")  # a cluster that counts anew
    assert not read_submitted(tmp_path)["7"].cancelled


def test_a_job_is_known_by_its_id_and_a_foreign_one_with_that_id_is_not(tmp_path: Path) -> None:
    chains, name = ["mal/seed-0", "random/seed-1"], name_of("a", ["mal/seed-0", "random/seed-1"], tmp_path)
    note_submitted(tmp_path / "a", "7", name, chains, 3, "7.log")
    submitted = read_submitted(tmp_path / "a")
    for changed in (
        replace(WAITING, name=name, comment="ProjectA", submitted=datetime(2020, 1, 1, tzinfo=UTC)),
        replace(WAITING, name="site-prefix", submitted=datetime.now(UTC)),  # submitted at that time
    ):
        (job,) = claim([changed], submitted, "a", tmp_path)
        assert (job.until, [(c.method, c.seed) for c in chains_of(job)]) == (3, [("mal", 0), ("random", 1)])
        assert set(by_chain([job], "a", tmp_path)) == {("mal", 0), ("random", 1)}
    foreign = replace(WAITING, name="bash", submitted=datetime(2020, 1, 1, tzinfo=UTC))
    assert claim([foreign], submitted, "a", tmp_path) == [foreign]


def test_ids_are_read_below_what_a_wrapper_says() -> None:
    assert [job_id(text) for text in ("12\n", "13;north\n", "Welcome!\n14\n", "Welcome!\n")] == ["12", "13", "14", None]


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ("QOSMaxSubmitJobPerUserLimit sbatch: error: Job violates accounting/QOS policy (job submit limit, ...)", True),
        ("AssocMaxSubmitJobLimit sbatch: error: Job violates accounting/QOS policy (job submit limit, ...)", True),
        ("QOSGrpSubmitJobsLimit sbatch: error: Job violates accounting/QOS policy (job submit limit, ...)", True),
        ("AssocGrpJobsLimit Job violates accounting/QOS policy", True),
        ("QOSMaxWallDurationPerJobLimit Job violates accounting/QOS policy (job submit limit, ...)", False),
        ("QOSMaxCpuPerJobLimit Job violates accounting/QOS policy (job submit limit, ...)", False),
        ("AssocMaxWallDurationPerJobLimit Job violates accounting/QOS policy (job submit limit, ...)", False),
        ("QOSMinCpuNotSatisfied Job violates accounting/QOS policy (job submit limit, ...)", False),
        ("Requested time limit is invalid (missing or exceeds some limit)", False),
        ("Invalid account or account/partition combination specified", False),
    ],
)
def test_limits_are_told_apart_by_their_codes(words: str, passes: bool) -> None:
    assert _passes(SlurmError(f"sbatch: error: {words}"), taken=0) is passes
    assert _passes(SlurmError(f"sbatch: error: {words}"), taken=2) is passes


def test_a_limit_without_a_code_is_one_of_numbers_where_jobs_were_taken() -> None:
    error = SlurmError("sbatch: error: Job violates accounting/QOS policy (job submit limit, user's size and/or ...)")
    assert [_passes(error, taken) for taken in (0, 2)] == [False, True]
    assert _passes(SlurmFullError("sleeping and retrying"), 0)
    assert not _passes(SlurmSilentError("Socket timed out"), 2)


def test_paths_are_those_of_the_shell_and_percents_are_no_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that the login node has, as nodes may have the folder under the link's name only."""
    (tmp_path / "lustre").mkdir()
    (tmp_path / "scratch").symlink_to(tmp_path / "lustre")
    monkeypatch.chdir(tmp_path / "scratch")
    monkeypatch.setenv("PWD", str(tmp_path / "scratch"))
    assert logical(Path("runs")) == tmp_path / "scratch" / "runs"
    monkeypatch.setenv("PWD", "/elsewhere")
    assert logical(Path("runs")) == tmp_path / "lustre" / "runs"
    profile = load_profile({"name": "mine", "kind": "slurm", "gpus_per_node": 0, "sbatch": {"comment": "ProjectA"}})
    runs = tmp_path / "scratch" / "100%j of it"
    submitter = Submitter("a", runs, profile, tmp_path / "code")
    script = submitter.script(Submission("mal:a:mal:s0:abcdef", ("mal/seed-0",), 2, "digits"))
    assert f"#SBATCH --output='{tmp_path}/scratch/100%%j of it/a/mal/seed-0/slurm/%j.log'\n" in script
    assert f"'{tmp_path}/scratch/100%j of it/a/mal/seed-0' --until 2" in script
    assert "#SBATCH --comment=ProjectA\n" in script  # the user's own


def test_of_a_chain_cut_short_the_last_job_goes_to_the_end(tmp_path: Path) -> None:
    """A QOS of 4 jobs, 4 chains of 3 rounds: one visit is enough."""
    profile = load_profile({"name": "mine", "kind": "slurm", "gpus_per_node": 0})
    submitter = Submitter("a", tmp_path, profile, tmp_path / "code")
    wanted = [Wanted("mal", seed, "digits", 0, 3) for seed in range(5)]
    for number, submission in enumerate(submitter.missing(wanted, [])[:4]):
        submitter._note(submission, str(number + 1))
    assert [chain.seed for chain in submitter.aim(wanted)] == [4]
    assert {job: ours.aim for job, ours in read_submitted(tmp_path / "a").items()} == {"1": 3, "2": 3, "3": 3, "4": 3}


@pytest.mark.slurm
def test_jobs_of_other_people_s_making_disturb_nothing(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heterogeneous, in arrays, with line breaks in names and comments, in Latin-1."""
    assert launch(arguments(tmp_path)) == 0
    mine = [job.id for job in read_queue()]
    held = ["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"]
    foreign: list[list[str | bytes]] = [
        ["sbatch", "--parsable", "--hold", "--output=/dev/null", "-n1", ":", "-n1", "--hold", "--wrap=true"],
        [*held, "--array=1-3%2"],
        [*held, "--comment=a\nb"],
        [*held, "--job-name=a\nb\n12\x1fc"],
        [*held, b"--job-name=gr\xf6\xdfe"],
    ]
    for command in foreign:
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **cluster.env})
    assert len(read_queue()) > len(mine) + 3
    capsys.readouterr()
    assert status([f"runs={tmp_path}"]) == 0
    assert "1 queued" in capsys.readouterr().out
    assert launch(arguments(tmp_path)) == 0
    assert "0 jobs submitted" in capsys.readouterr().out
    assert cancel([f"runs={tmp_path}", "name=digits"]) == 0
    assert "2 jobs cancelled" in capsys.readouterr().out
    left = {job.id for job in read_queue() if job.alive}
    assert left
    assert not left & set(mine)


@pytest.mark.slurm
def test_a_site_that_owns_comments_costs_nothing(
    cluster: LocalSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_front(
        tmp_path / "bin", monkeypatch, sbatch="sed 's/^#SBATCH --comment=.*/#SBATCH --comment=X/' | REAL \"$@\""
    )
    for taken in (2, 0, 0):
        assert launch(arguments(tmp_path / "runs", "cluster.pack=2", "seeds=2")) == 0
        assert f"{taken} jobs submitted" in capsys.readouterr().out
    assert [job.comment for job in read_queue()] == ["X", "X"]
    assert status([f"runs={tmp_path / 'runs'}"]) == 0
    assert "2 queued" in capsys.readouterr().out
    assert cancel([f"runs={tmp_path / 'runs'}", "name=digits"]) == 0
    assert "2 jobs cancelled" in capsys.readouterr().out
    assert status([f"runs={tmp_path / 'runs'}"]) == 0  # cancelled, not ended without a trace
    assert "without a trace" not in capsys.readouterr().out


@pytest.mark.slurm
def test_silence_half_way_says_how_many_went_in(
    cluster: LocalSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third sbatch reaches Slurm and is not answered; from the fourth on nothing gets through."""
    count = f"echo x >> {tmp_path}/calls; n=$(wc -l < {tmp_path}/calls)"
    deaf = "echo 'sbatch: error: Batch job submission failed: Unexpected message received' >&2; exit 1"
    put_in_front(
        tmp_path / "bin",
        monkeypatch,
        sbatch=f'{count}; [ $n -gt 3 ] || REAL "$@"; [ $n -gt 2 ] && {{ {deaf}; }}; exit 0',
    )
    monkeypatch.setattr("slurm.submit.SILENT_ATTEMPTS", 2)
    more = ("seeds=2", "rounds=3")
    assert launch(arguments(tmp_path / "runs", *more)) == 3
    said = capsys.readouterr().out
    assert "3 jobs submitted" in said
    assert "3 jobs are not submitted (sbatch --parsable: sbatch: error: Batch job submission failed: Unexpected" in said
    assert "Run the same command again" in said
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(os.pathsep)[2])
    assert launch(arguments(tmp_path / "runs", *more)) == 0
    assert "3 jobs submitted" in capsys.readouterr().out
    assert sorted(job.comment for job in read_queue()) == sorted(
        job_comment([f"random/seed-{seed}"], until) for seed in (0, 1) for until in (1, 2, 3)
    )


@pytest.mark.slurm
def test_one_visit_is_enough_where_slurm_takes_few_jobs(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One job of a chain of three rounds, in a folder whose name has a percent sign."""
    runs = tmp_path / "50% %j"
    chosen = ["cluster=slurm", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0", "cluster.max_jobs=1"]
    assert launch([*SHORT, "methods=[random]", "seeds=1", "rounds=3", *chosen, f"runs={runs}"]) == 3
    assert "The last job of each chain goes on to the chain's end" in capsys.readouterr().out
    wait_until(lambda: not read_queue(), "the job")
    assert status([f"runs={runs}"]) == 0
    assert "3/3 rounds committed; chains: 1 done" in capsys.readouterr().out
    assert len(list((runs / "digits" / "random" / "seed-0" / "slurm").glob("*.log"))) == 1
