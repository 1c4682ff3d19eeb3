"""What never starts by itself, and what ended before our code began, is said with what mends it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mal.files import write_atomic
from mal.run import folder as run_folder
from slurm.local import LocalSlurm
from slurm.squeue import Job, read_queue
from slurm.stuck import remedy, stuck
from slurm.submit import Submitter
from slurm.submitted import note_submitted, read_submitted
from slurm.traces import START, explain, note_began, without_trace
from sweeps.cancel import main as cancel
from sweeps.launch import main as launch
from sweeps.status import main as status
from tests.chains import SHORT, chain_config, write_chain
from tests.slurm.fakes import put_in_front
from tests.slurm.test_submit import profile
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]
ON_SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0", "cluster.time.digits=10")
WAITING = Job("7", "mal:a:mal:s0:abcdef", "PENDING", "", None, None, "", "me", "low", None)


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        ("launch failed requeued held", "`scontrol release 7`"),
        ("launch_failed_requeued_held", "`scontrol release 7`"),
        ("job requeued in held state", "`scontrol release 7`"),
        ("JobHeldUser", "`scontrol release 7`"),
        ("JobHeldAdmin", "`scontrol release 7`"),
        ("DependencyNeverSatisfied", "`scancel 7`, then launch again"),
        ("BadConstraints", "`scancel 7`, then launch with other cluster.* keys"),
        ("PartitionTimeLimit", "`scancel 7`, then launch with other cluster.* keys"),
        ("QOSMaxWallDurationPerJobLimit", "`scancel 7`, then launch with other cluster.* keys"),
        ("AssocMaxCpuPerJobLimit", "`scancel 7`, then launch with other cluster.* keys"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "`sinfo -R`"),
        ("Priority", ""),
        ("Resources", ""),
        ("Dependency", ""),
        ("BeginTime", ""),
        ("QOSMaxJobsPerUserLimit", ""),
        ("AssocGrpGRES", ""),
    ],
)
def test_reasons_that_a_person_must_know_of(reason: str, command: str) -> None:
    job = replace(WAITING, reason=reason)
    assert (command in remedy(job)) if command else remedy(job) == ""
    assert bool(remedy(job)) is bool(command)
    assert remedy(replace(job, state="RUNNING")) == ""


def test_a_chain_is_stuck_while_nothing_of_it_is_on_a_node() -> None:
    held, behind = replace(WAITING, reason="JobHeldUser"), replace(WAITING, id="8", reason="Dependency")
    assert stuck([held, behind]) is held
    assert stuck([replace(WAITING, id="6", state="RUNNING"), held, behind]) is None
    assert stuck([replace(WAITING, reason="Priority"), behind]) is None
    assert remedy(replace(WAITING, state="REQUEUE_HOLD"))


def test_a_job_that_began_or_had_nothing_to_do_left_a_trace(tmp_path: Path) -> None:
    sweep = tmp_path / "a"
    chain = sweep / "mal" / "seed-0"
    for job, until in (("1", 1), ("2", 2), ("3", 3)):
        note_submitted(sweep, job, WAITING.name, ["mal/seed-0"], until, str(chain / "slurm" / f"{job}.log"))

    def lost(*queue: Job) -> list[str]:
        return [job.job for job in without_trace(sweep, read_submitted(sweep), queue)]

    assert lost() == ["1", "2", "3"]
    assert lost(replace(WAITING, id="3")) == ["1", "2"]
    run_folder.round_folder(chain, 0).mkdir(parents=True)
    (run_folder.round_folder(chain, 0) / run_folder.COMMITTED).touch()
    assert lost() == ["2", "3"]  # job 1 had nothing to do
    note_began(chain, "3", 0)
    assert lost() == []  # what kept job 2 from beginning has passed


@pytest.mark.slurm
def test_a_held_job_is_said_with_the_command_that_releases_it(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SHORT, "methods=[random]", "seeds=1", *ON_SLURM, f"runs={tmp_path}"]
    assert launch([*arguments, "+cluster.sbatch.begin=now+1hour"]) == 0
    first = read_queue()[0].id
    cluster.run("scontrol", "hold", str(first))
    capsys.readouterr()
    assert status([f"runs={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "1 stuck" in said
    assert f"`scontrol release {first}`" in said
    assert launch([*arguments, "+cluster.sbatch.begin=now+1hour"]) == 1
    said = capsys.readouterr().out
    assert f"job {first} never starts by itself (JobHeldAdmin): held: `scontrol release {first}`" in said
    cluster.run("scontrol", "release", str(first))
    assert status([f"runs={tmp_path}"]) == 0


@pytest.mark.slurm
def test_jobs_that_end_before_our_code_are_told_with_node_and_log(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.traces.UNREACHED_SECONDS", 0)
    monkeypatch.setattr("slurm.traces.UNREACHED_STARTS", 1)
    arguments = [*SHORT, "methods=[random]", "seeds=1", *ON_SLURM, f"runs={tmp_path}"]
    assert launch([*arguments, "cluster.setup=['source /nothing/venv/bin/activate || exit 1']"]) == 0
    wait_until(lambda: not read_queue(), "the jobs to end", timeout_s=180)
    capsys.readouterr()
    assert status([f"runs={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "2 jobs ended without a trace" in said
    assert "/nothing/venv/bin/activate: No such file or directory" in said
    assert "(FAILED, NonZeroExitCode)" in said
    assert "on n1 " in said or "on n2 " in said
    submitted = read_submitted(tmp_path / "digits")
    told = explain([*submitted.values()])
    assert all(f"log {tmp_path}/digits/random/seed-0/slurm/{job}.log" in line for job, line in told.items())
    logs = [Path(job.log).read_text() for job in submitted.values()]
    assert [log.count("No such file or directory") for log in logs] == [2, 2]  # each has tried again
    assert launch(arguments) == 0
    assert "2 jobs ended without a trace, before our code started; new ones may do the same:" in capsys.readouterr().out
    wait_until(lambda: not read_queue(), "the jobs to end", timeout_s=180)
    assert status([f"runs={tmp_path}"]) == 0
    assert "without a trace" not in capsys.readouterr().out


@pytest.mark.slurm
def test_a_failure_before_our_code_does_not_use_up_a_chain_s_jobs(
    cluster: LocalSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.traces.UNREACHED_SECONDS", 4)
    python, real = tmp_path / "python", sys.executable
    monkeypatch.setattr("sys.executable", str(python))  # on a disk that is not there yet
    assert launch([*SHORT, "methods=[random]", "seeds=2", *ON_SLURM, f"runs={tmp_path}"]) == 0
    wait_until(lambda: len([job for job in read_queue() if job.state == "RUNNING"]) == 2, "two jobs to wait")
    assert cancel([f"runs={tmp_path}", "name=digits", "seed=1"]) == 0
    write_atomic(python, f'#!/bin/sh\nexec {real} "$@"\n'.encode())
    python.chmod(0o755)
    folders = [run_folder.chain_folder(tmp_path, "digits", "random", seed) for seed in (0, 1)]
    wait_until(lambda: not read_queue(), "the jobs to end", timeout_s=180)
    assert [run_folder.committed_rounds(folder) for folder in folders] == [2, 0]


@pytest.mark.parametrize(
    ("job", "restart", "tries_again"),
    [
        ("7", 9, True),  # preempted eight times before: only starts in a row that did not reach our code count
        ("7", 11, True),
        ("7", 12, False),
        ("8", 2, True),  # it never reached our code
        ("8", 3, False),
        ("9_1", 6, True),
        ("9_2", 6, False),
    ],
)
def test_how_often_a_job_tries_again_to_reach_our_code(
    job: str, restart: int, tries_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.traces.UNREACHED_SECONDS", 0)
    put_in_front(tmp_path / "bin", monkeypatch, scontrol=f'echo "$@" >> "{tmp_path}/asked"')
    sweep = tmp_path / "my runs" / "digits"
    for seed, number, restarts in ((0, "7", 8), (1, "9_1", 5), (2, "70", 11), (3, "9_2", 1)):
        monkeypatch.setenv("SLURMD_NODENAME", "n1")
        for each in range(restarts + 1):
            note_began(sweep / "mal" / f"seed-{seed}", number, each)
    submitter = Submitter("digits", sweep.parent, profile(), tmp_path / "code")
    (tmp_path / "job.sh").write_text(submitter.text({"setup": ["exit 1"]}, ["slurm.job"]))
    number, _, task = job.partition("_")
    ids = {"SLURM_JOB_ID": f"1{number}", "SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    environment = {**os.environ, "SLURM_RESTART_COUNT": str(restart), **(ids if task else {"SLURM_JOB_ID": number})}
    subprocess.run(["bash", tmp_path / "job.sh"], env=environment, check=False)
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked == (f"requeue {ids['SLURM_JOB_ID'] if task else number}\n" if tries_again else "")


def test_code_that_cannot_be_read_for_a_moment_is_read_again(tmp_path: Path) -> None:
    code = tmp_path / "code"
    command = [sys.executable, "-u", "-c", START, "work.job", "a", "b"]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "our code cannot be read here (No module named 'work'): again in 1 s\n"
    (code / "work").mkdir(parents=True)
    lines = ["import os", "def main(words):", "    print(words, os.environ.get('MAL_UNREAD'))", "    return 4"]
    (code / "work" / "job.py").write_text("\n".join(lines))
    said, _ = process.communicate(timeout=60)
    assert (said, process.returncode) == ("['a', 'b'] None\n", 4)
    environment |= {"PYTHONPATH": "", "MAL_UNREAD": "8"}
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == 1
    assert b"ModuleNotFoundError" in ended.stderr  # in the end it says so


def test_where_slurm_has_forgotten_the_log_still_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm at all
    folder = write_chain(tmp_path, chain_config())
    sweep, log = folder.parents[1], folder / "slurm" / "7.log"
    note_submitted(sweep, "7", WAITING.name, [f"{folder.parent.name}/{folder.name}"], 1, str(log))
    (job,) = read_submitted(sweep).values()
    assert explain([job])["7"].startswith("job 7 has no log (No such file or directory")
    log.parent.mkdir(exist_ok=True)
    log.write_text("job 7 is on n1\npython: command not found\n")
    assert explain([job])["7"] == f"job 7 log {log}: job 7 is on n1 / python: command not found"
