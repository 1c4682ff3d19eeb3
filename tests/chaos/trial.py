"""One sweep of small chains on a private one-machine Slurm, and what can be done to it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mal.run import folder as run_folder
from slurm.local import LocalSlurm
from slurm.local_conf import ClusterShape
from slurm.squeue import Job, by_chain, order, read_queue
from slurm.submitted import claim, read_submitted
from sweeps.launch import main as launch

LAUNCH = Path(__file__).resolve().parents[2] / "sweeps" / "launch.py"
ROUNDS = 2
TIMEOUT_S = 420
CHAIN = [
    "dataset=digits", "methods=[mal]", "initial=20", "budget=20", "device=cpu", "threads=1",
    "backbone.width=4", "backbone.bottleneck=16", "backbone.discriminator=16",
    "minimax.epochs=4", "task.epochs=4", "checkpoint_minutes=0.01",
]  # fmt: skip
SLURM = [
    "cluster=slurm", "cluster.partition=low", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0",
    "cluster.time.default=30", "cluster.signal_lead_s=60",
]  # fmt: skip


@dataclass
class Trial:
    """One sweep on one cluster, and what was done to it."""

    cluster: LocalSlurm
    runs: Path
    seeds: int
    rng: random.Random
    span: float
    extra: list[str] = field(default_factory=list)
    rounds: int = ROUNDS
    injected: int = 0
    by_hand: int = 0

    @property
    def arguments(self) -> list[str]:
        """Of launch.py."""
        return [*CHAIN, *SLURM, f"rounds={self.rounds}", f"runs={self.runs}", f"seeds={self.seeds}", *self.extra]

    @property
    def chains(self) -> list[Path]:
        """The chains' folders, by seed."""
        return [run_folder.chain_folder(self.runs, "digits", "mal", seed) for seed in range(self.seeds)]

    def launch(self) -> None:
        """What a person types; its words go to a log."""
        with contextlib.redirect_stdout(io.StringIO()) as words:
            status = launch(self.arguments)
        if status:
            raise RuntimeError(f"launch.py returned {status}: {words.getvalue()}")

    def launcher(self, **environment: str) -> subprocess.Popen[bytes]:
        """The same in a process of its own, with this environment on top."""
        with (self.runs.parent / "launch.log").open("ab") as log:
            environ = {**os.environ, **environment}
            return subprocess.Popen([sys.executable, LAUNCH, *self.arguments], env=environ, stdout=log, stderr=log)

    def done(self) -> bool:
        return all(run_folder.committed_rounds(chain) >= self.rounds for chain in self.chains)

    def running(self, seed: int | None = None) -> list[Job]:
        """Jobs of a chain, or of all, that are on a node."""
        return [job for job in self.jobs(seed) if job.state == "RUNNING"]

    def jobs(self, seed: int | None = None, over: bool = False) -> list[Job]:
        """Jobs of a chain, or of all, in the order of their ids; over: also those that are, or are being requeued."""
        queue = claim(read_queue(), read_submitted(self.runs / "digits"), "digits", self.runs)
        chains = by_chain(queue, "digits", self.runs)
        found = {
            job.id: job
            for key, jobs in chains.items()
            for job in jobs
            if (job.alive or over) and seed in (None, key[1])
        }
        return sorted(found.values(), key=lambda job: order(job.id))

    def pause(self, share: float = 1.0) -> None:
        """Until a random moment."""
        time.sleep(self.rng.uniform(0, self.span * share))

    def workers(self, seed: int | None = None) -> list[psutil.Process]:
        """The processes of a chain, or of all, that do its work; not their srun."""
        folders = {str(chain.resolve()) for chain in (self.chains if seed is None else [self.chains[seed]])}
        found = []
        for process in psutil.process_iter(["cmdline", "name"]):
            words = process.info["cmdline"] or []
            if "mal.chain" in words and folders & set(words) and not process.info["name"].startswith("srun"):
                found.append(process)
        return found


def wait_for(true: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll; TimeoutError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.2)


def send(processes: list[psutil.Process], number: int) -> bool:
    sent = False
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            sent = True
    return sent


def on_node(trial: Trial, seed: int, *command: str) -> bool:
    for job in trial.running(seed):
        trial.cluster.run(*command, job.id)
        return True
    return False


def names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def lose_node(trial: Trial, with_jobs: bool) -> int:
    busy = [job.nodes for job in trial.running()]
    if not busy:
        return 0
    node = trial.rng.choice(sorted(set(busy)))
    trial.cluster.kill_node(node, with_jobs=with_jobs)
    trial.cluster.wait_nodes("down", [node])
    time.sleep(1)
    trial.cluster.start_node(node)
    wait_for(lambda: "down" not in trial.cluster.run("sinfo", "--noheader", "--format=%T"), "the node to return")
    return busy.count(node)


def check_no_doubles(trial: Trial) -> None:
    """No chain has two jobs for one round."""
    for seed in range(trial.seeds):
        untils = [job.until for job in trial.jobs(seed)]
        assert len(set(untils)) == len(untils), f"seed {seed} has two jobs for one round: {untils}"


def bare_path(folder: Path) -> str:
    """A PATH that has srun and a shell's tools, but neither scontrol nor squeue."""
    folder.mkdir()
    for program in ("srun", "bash", "sh", "git", "env"):
        if found := shutil.which(program):
            (folder / program).symlink_to(found)
    return str(folder)


def files_of(chain: Path) -> dict[str, bytes | str]:
    """What must not depend on what happened: indices, metric values, losses."""
    found: dict[str, bytes | str] = {}
    for folder in run_folder.round_folders(chain):
        if not run_folder.is_committed(folder):
            continue
        for name in (run_folder.LABELED, run_folder.QUERY, run_folder.HISTORY):
            if (folder / name).exists():
                found[f"{folder.name}/{name}"] = (folder / name).read_bytes()
        metrics = run_folder.read_json(folder / run_folder.METRICS)
        found[f"{folder.name}/metrics"] = repr({k: metrics[k] for k in ("value", "per_class", "labeled")})
    return found


def undisturbed(runs: Path, seeds: int, rounds: int = ROUNDS) -> float:
    """Run the reference chains in worker processes; mean seconds of a chain, starts included."""
    begun, where = time.monotonic(), [f"runs={runs}", f"seeds={seeds}", f"rounds={rounds}"]
    with contextlib.redirect_stdout(io.StringIO()):
        status = launch([*CHAIN, *where, "cluster=local", "cluster.workers=2"])
    assert status == 0, "the reference chains failed"
    return (time.monotonic() - begun) * 2 / seeds


@contextlib.contextmanager
def private_cluster(shape: ClusterShape, folder: Path | None = None) -> Iterator[LocalSlurm]:
    """In a folder that is removed afterwards."""
    folder = folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    with LocalSlurm(folder, shape) as cluster:
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    shutil.rmtree(folder, ignore_errors=True)
