"""Single faults for hours of them: each yields the seeds of the chains that it hits, strikes, and mends itself.

A kind that hits nothing yields no seed. INTERRUPTING kinds end the process that works on a chain; under the others it
works on.
"""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from mal.run import folder as run_folder
from slurm.squeue import Job, chains_of, read_queue
from tests.chaos.trial import LAUNCH, Trial, check_no_doubles, names_in, send, wait_for

STATUS = LAUNCH.with_name("status.py")
Strike = Callable[[Trial], Iterator[list[int]]]
MOMENTS = (errno.ESHUTDOWN, errno.ESTALE, errno.EIO, errno.ENOENT)  # of a shared file system
# In every process that does a job's work: a GPU that breaks and is mended, by a file for each node.
BROKEN_GPU = """
import os, sys
_flag = f"{os.environ.get('STORM')}/gpu-{os.environ.get('SLURMD_NODENAME')}"
if "STORM" in os.environ and "mal.chain" in sys.orig_argv:
    import torch
    def _step(real):
        def step(*arguments, **options):
            if os.path.exists(_flag):
                raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
            return real(*arguments, **options)
        return step
    for _kind in (torch.optim.SGD, torch.optim.Adam):
        _kind.step = _step(_kind.step)
"""
PROLOG = '#!/bin/sh\n[ ! -e "STORM/prolog-$SLURMD_NODENAME" ]\n'


def prepare_faults(folder: Path, library: Path) -> str:
    """What jobs need so that they can be struck, in a folder; the line of shell that sets it up."""
    (folder / "sitecustomize.py").write_text(BROKEN_GPU)
    return (
        f"[ ! -e {folder}/no-python ] || exit 1; "
        f"export STORM={folder} PYTHONPATH={folder} LD_PRELOAD={library} FAULT_FLAG={folder}/flag"
    )


def seeds_of(jobs: list[Job]) -> list[int]:
    """The seeds of the chains that jobs work on."""
    return sorted({chain.seed for job in jobs for chain in chains_of(job)})


def hosts(nodes: str) -> list[str]:
    """Slurm's list of nodes (n1, n[1-2], n[1,3]) one by one."""
    prefix, _, inside = nodes.rstrip("]").partition("[")
    if not inside:
        return [nodes]
    ends = [part.split("-") for part in inside.split(",")]
    return [f"{prefix}{number}" for part in ends for number in range(int(part[0]), int(part[-1]) + 1)]


def _victim(trial: Trial) -> Job | None:
    running = trial.running()
    return trial.rng.choice(running) if running else None


def _busy_node(trial: Trial) -> tuple[str, list[int]]:
    """A node with jobs, and the seeds of their chains."""
    running = trial.running()
    names = sorted({name for job in running for name in hosts(job.nodes)})
    if not names:
        return "", []
    node = trial.rng.choice(names)
    return node, seeds_of([job for job in running if node in hosts(job.nodes)])


def _workers(trial: Trial, job: Job | None) -> list[psutil.Process]:
    return [] if job is None else [worker for seed in seeds_of([job]) for worker in trial.workers(seed)]


def preempted(trial: Trial) -> Iterator[list[int]]:
    """By a job that takes a whole node, with grace or without."""
    node, seeds = _busy_node(trial)
    yield seeds
    if seeds:
        trial.cluster.run("scontrol", "update", "partitionname=low", f"gracetime={trial.rng.choice((0, 5))}")
        high = ["sbatch", "--parsable", "--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null"]
        number = trial.cluster.run(*high, "--wrap=sleep 1")
        wait_for(lambda: not any(job.id == number for job in read_queue()), "the preempting job", 60)


def requeued(trial: Trial) -> Iterator[list[int]]:
    """By an administrator."""
    job = _victim(trial)
    yield seeds_of([job] if job else [])
    if job:
        trial.cluster.run("scontrol", "requeue", job.id, check=False)


def cancelled(trial: Trial) -> Iterator[list[int]]:
    """One job of a chain that has another."""
    job = _victim(trial)
    if job is None or len(trial.jobs(seeds_of([job])[0])) < 2:
        yield []
        return
    yield seeds_of([job])
    trial.cluster.run("scancel", job.id)


def killed(trial: Trial) -> Iterator[list[int]]:
    """SIGKILL of the process at work."""
    yield from _sent(trial, signal.SIGKILL)


def frozen(trial: Trial) -> Iterator[list[int]]:
    """SIGSTOP: only the heartbeat tells, or the time limit."""
    yield from _sent(trial, signal.SIGSTOP)


def _sent(trial: Trial, number: int) -> Iterator[list[int]]:
    job = _victim(trial)
    workers = _workers(trial, job)
    yield seeds_of([job]) if job and workers else []
    send(workers, number)


def killed_while_saving(trial: Trial) -> Iterator[list[int]]:
    """SIGKILL while a checkpoint is half written."""
    job, deadline = _victim(trial), time.monotonic() + 3
    workers = _workers(trial, job)
    while job and workers and time.monotonic() < deadline:
        for seed in seeds_of([job]):
            for folder in run_folder.round_folders(trial.chains[seed]):
                if any(n.endswith(".tmp") and ".ckpt" in n for n in names_in(folder / run_folder.CHECKPOINT)):
                    yield [seed]
                    send(workers, signal.SIGKILL)
                    return
    yield []


def every_process_signalled(trial: Trial) -> Iterator[list[int]]:
    """SIGTERM to everything under the job's step."""
    job = _victim(trial)
    workers = _workers(trial, job)
    yield seeds_of([job]) if job and workers else []
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            send([*worker.children(recursive=True), worker], signal.SIGTERM)


def one_of_two_killed(trial: Trial) -> Iterator[list[int]]:
    """SIGKILL or SIGTERM to one process of a job of two."""
    job = _victim(trial)
    workers = _workers(trial, job)
    yield seeds_of([job]) if job and len(workers) > 1 else []
    if len(workers) > 1:
        send([trial.rng.choice(workers)], trial.rng.choice((signal.SIGKILL, signal.SIGTERM)))


def loader_killed(trial: Trial) -> Iterator[list[int]]:
    """SIGKILL of a process that reads images for another: what the kernel does first where memory is short."""
    job = _victim(trial)
    children = []
    for worker in _workers(trial, job):
        with contextlib.suppress(psutil.NoSuchProcess):
            children += worker.children(recursive=True)
    yield seeds_of([job]) if job and children else []
    send(children[:1], signal.SIGKILL)


def node_lost(trial: Trial) -> Iterator[list[int]]:
    """With its jobs."""
    yield from _lost(trial, with_jobs=True)


def node_cut_off(trial: Trial) -> Iterator[list[int]]:
    """Its jobs run on."""
    yield from _lost(trial, with_jobs=False)


def _lost(trial: Trial, with_jobs: bool) -> Iterator[list[int]]:
    node, seeds = _busy_node(trial)
    yield seeds
    if not seeds:
        return
    trial.cluster.kill_node(node, with_jobs=with_jobs)
    wait_for(lambda: re.search(rf"{node} \S*(down|\*)", _nodes(trial)), "the node to be missed", 60)
    time.sleep(trial.rng.uniform(0, 5))
    trial.cluster.start_node(node)
    wait_for(lambda: not re.search(rf"{node} \S*(down|\*)", _nodes(trial)), "the node to return", 60)


def controller_silent(trial: Trial) -> Iterator[list[int]]:
    """For some seconds; status.py says so meanwhile."""
    yield seeds_of(trial.running())
    trial.cluster.kill_controller(signal.SIGTERM)
    until = time.monotonic() + trial.rng.uniform(1, 20)
    if trial.rng.random() < 0.3:
        said = subprocess.run([sys.executable, STATUS, f"runs={trial.runs}"], stdout=subprocess.DEVNULL, check=False)
        assert said.returncode in (1, 3), "status.py takes silence for an answer"
    time.sleep(max(0.0, until - time.monotonic()))
    trial.cluster.start_controller()


def storage_fails_for_supervisor(trial: Trial) -> Iterator[list[int]]:
    """Calls on the runs folder fail for a moment in the jobs' own processes."""
    yield from _storage(trial, trial.rng.choice(MOMENTS), "/runs", "slurm.job")


def storage_fails_for_workers(trial: Trial) -> Iterator[list[int]]:
    """The same where the work is done."""
    yield from _storage(trial, trial.rng.choice(MOMENTS), "/runs", "mal.chain")


def disk_full(trial: Trial) -> Iterator[list[int]]:
    """No process of a job can write to the runs folder."""
    yield from _storage(trial, errno.ENOSPC, "/runs", "-m")


def _storage(trial: Trial, number: int, where: str, who: str, seconds: float = 6.0) -> Iterator[list[int]]:
    yield seeds_of(trial.running())
    flag = trial.runs.parent / "flag"
    flag.write_text(f"{number} {where} {who}")
    time.sleep(trial.rng.uniform(0.5, seconds))
    flag.unlink()


def configuration_late(trial: Trial) -> Iterator[list[int]]:
    """A job that starts does not see config.yaml yet."""
    job = _victim(trial)
    yield seeds_of([job] if job else [])
    if job:
        trial.cluster.run("scontrol", "requeue", job.id, check=False)
        list(_storage(trial, errno.ENOENT, "config.yaml", "slurm.job", 12))


def gpu_broken(trial: Trial) -> Iterator[list[int]]:
    """On one node, until somebody mends it."""
    node, seeds = _busy_node(trial)
    yield seeds
    if seeds:
        flag = trial.runs.parent / f"gpu-{node}"
        flag.touch()
        threading.Timer(trial.rng.uniform(10, 60), flag.unlink, kwargs={"missing_ok": True}).start()


def suspended(trial: Trial) -> Iterator[list[int]]:
    """By gang scheduling or an administrator."""
    job = _victim(trial)
    yield seeds_of([job] if job else [])
    if job:
        trial.cluster.run("scontrol", "suspend", job.id, check=False)
        time.sleep(trial.rng.uniform(1, 30))
        trial.cluster.run("scontrol", "resume", job.id, check=False)


def foreign_jobs(trial: Trial) -> Iterator[list[int]]:
    """Odd rows in the user's queue, and the launch command again."""
    yield seeds_of(trial.running())
    held = ["sbatch", "--hold", "--output=/dev/null", "--partition=high"]
    trial.cluster.run(*held, "-n1", ":", "-n1", "--hold", "--wrap=true")
    trial.cluster.run(*held, "--job-name=a\nb\n12\x1fc", "--comment=x\ny", "--array=1-3%2", "--wrap=true")
    _launch_again(trial)
    trial.cluster.run("scancel", "--me", "--partition=high")


def comments_rewritten(trial: Trial) -> Iterator[list[int]]:
    """By the site, and the launch command again."""
    jobs = trial.jobs()
    yield seeds_of(trial.running())
    for job in jobs:
        trial.cluster.run("scontrol", "update", f"jobid={job.id}", "comment=billing=7", check=False)
    _launch_again(trial)


def launched_again(trial: Trial) -> Iterator[list[int]]:
    """While jobs run and wait."""
    yield seeds_of(trial.running())
    _launch_again(trial)


def _launch_again(trial: Trial) -> None:
    launcher = trial.launcher()
    assert launcher.wait(300) in (0, 3), "launch.py failed"
    check_no_doubles(trial)


def prolog_failed(trial: Trial) -> Iterator[list[int]]:
    """A node's prolog fails: Slurm drains the node and holds the job, which only a person releases."""
    job = _victim(trial)
    yield seeds_of([job] if job else [])
    if job is None:
        return
    flags = [trial.runs.parent / f"prolog-{node}" for node in trial.cluster.shape.node_names]
    for flag in flags:
        flag.touch()
    trial.cluster.run("scontrol", "requeue", job.id, check=False)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and "drain" not in _nodes(trial):
        time.sleep(0.2)
    for flag in flags:
        flag.unlink()
    resume_nodes(trial)


def resume_nodes(trial: Trial) -> None:
    """What an administrator does with nodes that Slurm has drained."""
    for node in set(re.findall(r"(\S+) \S*drain", _nodes(trial))):
        trial.cluster.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)


def _nodes(trial: Trial) -> str:
    return trial.cluster.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False)


def no_python(trial: Trial) -> Iterator[list[int]]:
    """A job ends before our code starts."""
    job = _victim(trial)
    yield seeds_of([job] if job else [])
    if job is None:
        return
    flag = trial.runs.parent / "no-python"
    flag.touch()
    trial.cluster.run("scontrol", "requeue", job.id, check=False)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(other.id == job.id for other in trial.jobs()):
        time.sleep(0.2)
    flag.unlink()


STRIKES: dict[str, Strike] = {
    "preempted": preempted,
    "scontrol requeue": requeued,
    "scancel of one job": cancelled,
    "SIGKILL": killed,
    "SIGKILL while saving": killed_while_saving,
    "SIGTERM to all processes": every_process_signalled,
    "frozen": frozen,
    "one of two processes": one_of_two_killed,
    "loader process killed": loader_killed,
    "node lost": node_lost,
    "node cut off": node_cut_off,
    "controller silent": controller_silent,
    "storage fails for the supervisor": storage_fails_for_supervisor,
    "storage fails for the workers": storage_fails_for_workers,
    "disk full": disk_full,
    "configuration late": configuration_late,
    "GPU broken": gpu_broken,
    "suspended": suspended,
    "foreign jobs": foreign_jobs,
    "comments rewritten": comments_rewritten,
    "launched again": launched_again,
    "prolog failed": prolog_failed,
    "no python on the node": no_python,
}
INTERRUPTING = set(STRIKES) - {
    "controller silent", "storage fails for the supervisor", "storage fails for the workers", "disk full",
    "suspended", "foreign jobs",    "comments rewritten", "launched again", "loader process killed", "node cut off",
}  # fmt: skip
