"""What Slurm costs: a round in a job above the same round in this process, and a launch of hundreds of jobs.

    python -m benchmarks.slurm_overhead [--chains 2] [--rounds 3] [--jobs 300] [--threads 1]

Both on the one-machine Slurm of slurm/local.py; medians of seconds over the rounds, with the machine's load.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mal.chain import run_chain
from mal.config.compose import compose_sweep
from mal.config.frozen import save_chain
from mal.files import write_atomic
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from slurm.attempts import read_attempts
from slurm.local import LocalSlurm
from slurm.local_conf import ClusterShape
from slurm.squeue import read_queue
from sweeps.launch import main as launch

LAUNCH = Path(__file__).resolve().parents[1] / "sweeps" / "launch.py"
CHAIN = ("dataset=digits", "methods=[mal]", "initial=20", "budget=20", "device=cpu")
SLURM = ("cluster=slurm", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1")


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def say(what: str, seconds: float, note: str = "") -> None:
    print(f"  {what:<58} {seconds:8.3f} s  {note}", flush=True)


def quietly(*arguments: str) -> None:
    """A launch whose words are kept for its failure."""
    with contextlib.redirect_stdout(io.StringIO()) as words:
        status = launch(list(arguments))
    if status:
        raise RuntimeError(f"launch.py returned {status}: {words.getvalue()}")


def in_process(folder: Path, sweep: tuple[str, ...]) -> list[float]:
    """Seconds of each round but the first, which also loads what this process keeps."""
    config = compose_sweep([*sweep, "seeds=[0]"]).chains[0]
    chain = run_folder.chain_folder(folder, "digits", "mal", 0)
    write_atomic(chain / run_folder.CONFIG, save_chain(config).encode())
    run_chain(chain, None, Interrupt())
    return [_round_seconds(chain, number) for number in range(1, config.rounds)]


def _round_seconds(chain: Path, number: int) -> float:
    return float(run_folder.read_json(run_folder.round_folder(chain, number) / run_folder.METRICS)["seconds"])


def in_jobs(folder: Path, sweep: tuple[str, ...], chains: int) -> dict[str, list[float]]:
    """Seconds of the parts of each job, in their order; the first jobs of the chains warm the file cache."""
    submitted = time.time()
    quietly(*sweep, *SLURM, f"seeds={chains}", f"runs={folder}")
    while read_queue():
        time.sleep(0.2)
    parts: dict[str, list[float]] = {"wait": [], "start": [], "round": [], "end": []}
    for seed in range(chains):
        chain = run_folder.chain_folder(folder, "digits", "mal", seed)
        before = submitted
        for number, attempt in enumerate(read_attempts(chain)):
            committed = (run_folder.round_folder(chain, number) / run_folder.COMMITTED).stat().st_mtime
            seconds = _round_seconds(chain, number)
            ended = attempt.started + attempt.seconds
            if number:
                parts["wait"].append(attempt.started - before)
                parts["start"].append(committed - seconds - attempt.started)
                parts["round"].append(seconds)
                parts["end"].append(ended - committed)
            before = ended
    return parts


def start_of_a_step(cluster: LocalSlurm) -> dict[str, float]:
    """Medians of three, each by itself: srun, Python, what a worker imports."""
    python = [sys.executable, "-c"]
    commands = {
        "srun of an empty step": ["srun", "--quiet", "--gres=none", "true"],
        "a Python that does nothing": [*python, "pass"],
        "a Python with the imports of mal.chain, slurm.job": [*python, "import mal.chain, slurm.job"],
        "a Python with the imports of a round (torch)": [*python, "import mal.round"],
    }
    environment = {**os.environ, **cluster.env}
    return {
        name: statistics.median(
            seconds_of(lambda c=command: subprocess.run(c, env=environment, check=True))
            for _ in range(3)  # type: ignore[misc]
        )
        for name, command in commands.items()
    }


def checkpoints(folder: Path, sweep: tuple[str, ...]) -> float:
    """Seconds that one checkpoint adds: short rounds that save at every step, less those that save as a phase ends."""
    sweep = (*sweep, "minimax.epochs=2", "task.epochs=2")
    found = {}
    steps = 0
    for name, minutes in (("each", 1e-9), ("none", 1e6)):
        found[name] = statistics.median(in_process(folder / name, (*sweep, f"checkpoint_minutes={minutes}")))
        chain = run_folder.chain_folder(folder / name, "digits", "mal", 0)
        history = run_folder.read_json(run_folder.round_folder(chain, 1) / run_folder.HISTORY)
        steps = sum(phase["window"] * len(next(iter(phase["losses"].values()))) for phase in history.values())
    return max(0.0, found["each"] - found["none"]) / steps


def overhead(cluster: LocalSlurm, folder: Path, options: argparse.Namespace) -> None:
    sweep = (*CHAIN, f"rounds={options.rounds}", f"threads={options.threads}")
    alone = statistics.median(in_process(folder / "alone", sweep))
    parts = {
        name: statistics.median(values) for name, values in in_jobs(folder / "jobs", sweep, options.chains).items()
    }
    print(f"a round of MAL on digits, {options.threads} thread(s), load {os.getloadavg()[0]:.1f}")
    say("in this process, loaded already", alone)
    say("in a job, from the end of the one before it to its own", sum(parts.values()))
    say("overhead of the job", sum(parts.values()) - alone, "of which")
    say("  Slurm starts the job, and python -m slurm.job", parts["wait"])
    say("  srun, Python, imports, data, to the round's first act", parts["start"])
    say("  the round in a fresh process, above the loaded one", parts["round"] - alone)
    say("  from the commit to the end of the job's step", parts["end"])
    print("the parts of a start, each by itself")
    for name, seconds in start_of_a_step(cluster).items():
        say(name, seconds)
    say("one checkpoint, to disk", checkpoints(folder / "checkpoints", sweep))


def launches(folder: Path, jobs: int) -> None:
    """The command of a person, twice: chains of three rounds that begin in an hour."""
    arguments = [
        *CHAIN,
        *SLURM,
        "rounds=3",
        f"seeds={-(-jobs // 3)}",
        f"runs={folder}",
        "+cluster.sbatch.begin=now+1hour",
    ]
    command = [sys.executable, str(LAUNCH), *arguments]
    run = lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: E731
    first = seconds_of(run)
    queued = len(read_queue())
    second = seconds_of(run)
    print(f"a launch of {queued} jobs, load {os.getloadavg()[0]:.1f}")
    say("the command, with its start and the checks", first, f"{1e3 * first / queued:.1f} ms per job")
    say("the same command again: nothing is submitted twice", second, f"{len(read_queue()) - queued} jobs more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=2, help="of the jobs that are timed, beside each other")
    parser.add_argument("--rounds", type=int, default=3, help="of each chain; the first is not counted")
    parser.add_argument("--jobs", type=int, default=300, help="of the launch")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        with LocalSlurm(folder / "slurm", ClusterShape(gpus_per_node=0)) as cluster:
            os.environ["SLURM_CONF"] = str(cluster.conf)
            overhead(cluster, folder, options)
            launches(folder / "many", options.jobs)
            cluster.run("scancel", "--me")


if __name__ == "__main__":
    main()
