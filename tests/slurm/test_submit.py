"""Submitting: what the queue lacks and nothing else, whatever happened to the launchers before."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mal.config.compose import compose_sweep
from mal.run import folder as run_folder
from mal.run.code_copy import code_hash
from slurm.attempts import read_attempts
from slurm.local import LocalSlurm
from slurm.local_conf import ClusterShape
from slurm.profile import Profile, load_profile
from slurm.squeue import Job, by_chain, job_comment, pack_name, read_queue
from slurm.submit import Submitter, Wanted
from sweeps.launch import choose_cluster, main
from tests.chains import SHORT, environment, outcome, run_chain_process, write_chain
from tests.slurm_cluster import cluster, shared_cluster, short_folder, wait_until

__all__ = ["cluster", "shared_cluster", "short_folder"]
LAUNCH = Path(__file__).resolve().parents[2] / "sweeps" / "launch.py"
ON_SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.time.digits=10")
LATER = (*ON_SLURM, "+cluster.sbatch.begin=now+1hour")  # submitted, and not started
CODE = LAUNCH.parents[1]
WAITING = Job("1", "", "PENDING", "Priority", None, None, "", "me", "low", None)


def profile(**keys: Any) -> Profile:
    return load_profile({"name": "mine", "kind": "slurm", "gpus_per_node": 0, **keys})


def wanted(*names: str, committed: int = 0, target: int = 3) -> list[Wanted]:
    parts = [name.rsplit("/seed-", 1) for name in names]
    return [Wanted(method, int(seed), "digits", committed, target) for method, seed in parts]


def in_queue(name: str, until: int, *chains: str, state: str = "PENDING") -> Job:
    return replace(WAITING, name=name, state=state, comment=job_comment(chains, until))


def lacking(submitter: Submitter, chains: list[Wanted], *queue: Job) -> list[tuple[str, int]]:
    return [(",".join(s.chains), s.until) for s in submitter.missing(chains, queue)]


def test_jobs_come_round_by_round(tmp_path: Path) -> None:
    submitter = Submitter("try", tmp_path, profile(), CODE)
    chains = [*wanted("mal/seed-0"), *wanted("random/seed-0", committed=2)]
    assert lacking(submitter, chains) == [
        ("mal/seed-0", 1),
        ("random/seed-0", 3),
        ("mal/seed-0", 2),
        ("mal/seed-0", 3),
    ]


def test_what_is_queued_is_not_submitted_again(tmp_path: Path) -> None:
    submitter = Submitter("try", tmp_path, profile(), CODE)
    chains = wanted("mal/seed-0", committed=1)
    name = submitter.missing(chains, [])[0].name
    job = in_queue(name, 2, "mal/seed-0")
    assert lacking(submitter, chains, job) == [("mal/seed-0", 3)]
    # one that goes far enough does what those before it left
    assert lacking(submitter, chains, in_queue(name, 3, "mal/seed-0")) == []
    assert lacking(submitter, chains, in_queue(name, 3, "mal/seed-0", state="COMPLETING")) == [
        ("mal/seed-0", 2),
        ("mal/seed-0", 3),
    ]
    assert lacking(Submitter("other", tmp_path, profile(), CODE), chains, job)[0] == ("mal/seed-0", 2)
    assert lacking(submitter, wanted("mal/seed-0", committed=3)) == []


def test_jobs_of_rounds_that_are_alike_wait_for_those_of_another_chain(tmp_path: Path) -> None:
    submitter = Submitter("try", tmp_path, profile(), CODE)
    random, entropy = wanted("random/seed-0", "entropy/seed-0")
    entropy = replace(entropy, takes={"random/seed-0": 1})
    name = submitter.missing([random], [])[0].name
    queue = [replace(in_queue(name, until, "random/seed-0"), id=str(until + 6)) for until in (3, 1, 2)]
    first, *others = submitter.missing([random, entropy], queue)
    assert "--dependency=singleton,afterany:7\n" in submitter.script(first)
    assert all("--dependency=singleton\n" in submitter.script(other) for other in others)
    submitter.after = "5"
    assert "--dependency=singleton,afterany:7,afterok:5\n" in submitter.script(first)
    begun = replace(entropy, committed=1)
    assert [submission.takes for submission in submitter.missing([random, begun], queue)] == [(), ()]
    twin = replace(entropy, takes={"random/seed-0": 3})
    dependencies = [submitter.script(each).partition("--dependency=")[2] for each in submitter.missing([twin], queue)]
    assert [each.partition("\n")[0] for each in dependencies] == [
        f"singleton,afterany:{job},afterok:5" for job in (7, 8, 9)
    ]
    alone = Submitter("try", tmp_path, profile(), CODE)  # the first chain's jobs are gone, or it has none left
    assert "--dependency=singleton\n" in alone.script(alone.missing([entropy], [])[0])


def test_packs_stay_together(tmp_path: Path) -> None:
    submitter = Submitter("try", tmp_path, profile(pack=2), CODE)
    chains = wanted("mal/seed-0", "mal/seed-1", "mal/seed-2", target=2)
    assert lacking(submitter, chains) == [
        ("mal/seed-0,mal/seed-1", 1),
        ("mal/seed-2", 1),
        ("mal/seed-0,mal/seed-1", 2),
        ("mal/seed-2", 2),
    ]
    names = ("mal/seed-0", "mal/seed-1")
    queued = in_queue(pack_name("try", names, tmp_path), 2, *names)
    longer = [replace(chain, target=3) for chain in chains]
    assert lacking(submitter, longer, queued) == [
        ("mal/seed-2", 1),
        ("mal/seed-2", 2),
        ("mal/seed-0,mal/seed-1", 3),
        ("mal/seed-2", 3),
    ]
    assert [len(jobs) for jobs in by_chain([queued], "try", tmp_path).values()] == [1, 1]


def test_a_dry_run_shows_the_scripts_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm there
    runs = tmp_path / "runs"
    chosen = ["cluster=university_a100", "cluster.time.digits=20", f"runs={runs}", "dry_run=true"]
    assert main([*SHORT, "methods=[mal,random]", "seeds=2", *chosen]) == 0
    out = capsys.readouterr().out
    assert out.count("#!/bin/bash") == 4
    assert "8 jobs of 1 node with 4 GPUs: at most 10.7 GPU-hours" in out
    for line in ("--account=my_group_gpu", "--dependency=singleton", "--gpus-per-node=a100:4", "--time=20"):
        assert f"#SBATCH {line}\n" in out
    assert (
        f'export PYTHONSAFEPATH=1 PYTHONPATH={runs}/digits/code/{code_hash()}"${{PYTHONPATH:+:$PYTHONPATH}}"\n' in out
    )
    assert f"slurm.job {runs / 'digits' / 'mal' / 'seed-1'} --until 1 --minutes 20 --lead 300" in out
    assert not runs.exists()
    assert main([*SHORT, *ON_SLURM, f"runs={runs}"]) == 2
    assert "no Slurm answers here" in capsys.readouterr().err
    chosen.append("cluster.gpus_per_node=0")
    assert main([*SHORT, "methods=[mal,random]", "seeds=2", *chosen]) == 0
    assert "8 jobs of 1 node without GPUs: at most 2.7 node-hours" in capsys.readouterr().out
    assert choose_cluster(["seeds=1"]) == ["seeds=1"]


@pytest.mark.slurm
def test_auto_is_slurm_where_it_answers(cluster: LocalSlurm) -> None:
    assert choose_cluster(["seeds=1"]) == ["seeds=1", "cluster=slurm"]
    assert choose_cluster(["cluster=local"]) == ["cluster=local"]
    assert choose_cluster(["cluster.workers=2"]) == ["cluster.workers=2"]


@pytest.mark.slurm
def test_a_sweep_on_two_nodes_and_its_curves(cluster: LocalSlurm, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = [
        *SHORT,
        "rounds=3",
        "methods=[mal,random]",
        "seeds=2",
        *ON_SLURM,
        "cluster.gpus_per_node=1",
        f"runs={runs}",
    ]
    arguments.append("cluster.cpus_per_task=2")  # two jobs fill a node
    assert main(arguments) == 0
    jobs = read_queue()
    assert len(jobs) == 12
    wait_until(lambda: len({j.nodes for j in read_queue() if j.nodes}) == 2, "jobs on both nodes")
    assert main(arguments) == 0
    assert len({job.id for job in read_queue()} - {job.id for job in jobs}) == 0
    chains = run_folder.chain_folders(runs, "digits")
    wait_until(lambda: all(run_folder.committed_rounds(chain) == 3 for chain in chains), "the sweep", timeout_s=180)
    (config,) = compose_sweep([*SHORT, "rounds=3", "methods=[mal]", "seeds=[1]", "threads=1"]).chains
    alone = write_chain(tmp_path / "alone", config)
    assert run_chain_process(alone).returncode == 0
    assert outcome(alone) == outcome(runs / "digits" / "mal" / "seed-1")
    ran = run_folder.read_round(runs / "digits" / "mal" / "seed-1" / "round-2").provenance
    assert (runs / "digits" / "code" / ran["code"] / "slurm" / "job.py").is_file()
    attempts = read_attempts(runs / "digits" / "mal" / "seed-1")
    assert [(a.cause, a.gpus, a.restart) for a in attempts] == [("done", 1, 0)] * 3
    curves = LAUNCH.parents[1] / "analysis" / "curves.py"
    out = tmp_path / "figures"
    subprocess.run([sys.executable, curves, f"runs={runs}", f"out={out}"], check=True, capture_output=True)
    assert len((out / "digits" / "curves.csv").read_text().splitlines()) == 1 + 2 * 3


@pytest.mark.chaos
@pytest.mark.slurm
def test_a_limit_met_half_way_is_gone_on_from(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SHORT, "methods=[random]", "seeds=4", *LATER, f"runs={tmp_path / 'runs'}"]
    with LocalSlurm(short_folder, ClusterShape(nodes=1, submit_limit=5)) as limited:
        monkeypatch.setenv("SLURM_CONF", str(limited.conf))
        assert main([*arguments, "cluster.max_jobs=3"]) == 3
        assert "cluster.max_jobs=3, and 0 were in the queue" in capsys.readouterr().out
        assert main(arguments) == 3
        assert "3 jobs are not submitted (" in (out := capsys.readouterr().out)
        assert "QOSMaxSubmitJobPerUserLimit" in out
        assert [job.until for job in read_queue()] == [1, 1, 1, 1, 2]
        # The limit's plugin sees a cancellation only in another second than its last look, as Slurm's clock counts.
        last = int(time.time())
        wait_until(lambda: int(time.time()) > last, "the next second")
        limited.run("scancel", "--me")
        wait_until(lambda: not read_queue(), "the queue to drain")
        assert main(arguments) == 3
        assert [job.until for job in read_queue()] == [1, 1, 1, 1, 2]


@pytest.mark.slurm
def test_a_default_partition_without_a_gpu_is_said_where_another_has_one(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LocalSlurm(short_folder, ClusterShape(cpus_per_node=2, gpus_per_node=1)) as mixed:
        monkeypatch.setenv("SLURM_CONF", str(mixed.conf))
        mixed.run("scontrol", "update", "PartitionName=low", "Nodes=n1")
        mixed.run("scontrol", "update", "NodeName=n1", "Gres=gpu:0")
        plan = [*SHORT, "device=auto", "methods=[random]", "seeds=1", f"runs={tmp_path}", "dry_run=true"]
        for keys, hint, gpus in (
            ([], "No GPU in low: the chains compute on its CPUs. GPUs are in high: cluster.partition=high", 0),
            (["cluster.partition=high"], "", 1),
            (["cluster.gpus_per_node=0"], "", 0),
        ):
            assert main([*plan, "cluster=slurm", *keys]) == 0
            said = capsys.readouterr().out
            assert hint in said
            assert ("No GPU" in said) == bool(hint)
            assert f"jobs of 1 node, {gpus} GPU" in said
            assert ("--gpus-per-node=1" in said) == bool(gpus)


def untils(runs: Path) -> dict[tuple[str, int], list[int]]:
    return {key: [job.until for job in jobs] for key, jobs in by_chain(read_queue(), "digits", runs).items()}


@pytest.mark.slurm
def test_a_chain_waits_for_the_one_that_trains_the_same(cluster: LocalSlurm, tmp_path: Path) -> None:
    """Random and entropy have the same task model in round 0: the second one waits, and takes it."""
    arguments = [*SHORT, "methods=[random,entropy]", "seeds=1", *ON_SLURM, f"runs={tmp_path}"]
    assert main([*arguments, "+cluster.sbatch.begin=now+1hour"]) == 0
    first, second = (
        sorted(job.id for job in read_queue() if method in job.comment) for method in ("random", "entropy")
    )
    shown = subprocess.run(
        ["scontrol", "show", "job", str(second[0])], capture_output=True, text=True, check=True
    ).stdout
    assert f"afterany:{first[0]}(" in shown
    for job in (*first, *second):
        subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)
    folders = [run_folder.chain_folder(tmp_path, "digits", method, 0) for method in ("random", "entropy")]
    wait_until(lambda: all(run_folder.committed_rounds(f) == 2 for f in folders), "the sweep", timeout_s=180)
    assert run_folder.read_round(folders[1] / "round-0").provenance["taken"] == {"task": "random/seed-0"}


@pytest.mark.slurm
def test_two_launchers_and_a_killed_one_double_nothing(cluster: LocalSlurm, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = [*SHORT, "methods=[random]", "seeds=20", *LATER, f"runs={runs}"]
    command = [sys.executable, str(LAUNCH), *arguments]
    env = environment(SLURM_CONF=os.environ["SLURM_CONF"])
    first = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(read_queue()) > 5, "some submissions")
    first.kill()
    first.wait()
    both = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [launcher.wait() for launcher in both] == [0, 0]
    assert untils(runs) == {("random", seed): [1, 2] for seed in range(20)}


@pytest.mark.slurm
def test_a_silent_controller_is_waited_for(cluster: LocalSlurm, tmp_path: Path) -> None:
    asked = profile(time={"default": 10}, cpus_per_task=1, sbatch={"begin": "now+1hour"})
    submitter = Submitter("digits", tmp_path, asked, CODE)
    submissions = submitter.missing(wanted("mal/seed-0", "random/seed-0"), [])
    cluster.kill_controller()
    back = threading.Timer(1, cluster.start_controller)
    back.start()
    assert submitter.submit(submissions, lambda done: None) == (6, "")
    back.join()
    assert untils(tmp_path) == {("mal", 0): [1, 2, 3], ("random", 0): [1, 2, 3]}


@pytest.mark.slurm
def test_what_this_cluster_could_never_run_is_refused(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHORT, *ON_SLURM, "cluster.nodes=3", f"runs={tmp_path}"]) == 2
    assert "cluster.nodes=3, but low has 2." in capsys.readouterr().err
    assert not read_queue()
