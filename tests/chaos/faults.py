"""The faults of the table: each strikes the chains of a trial, or its cluster, at moments drawn at random."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from mal.run import folder as run_folder
from slurm.squeue import by_chain, read_queue
from tests.chaos.trial import ROUNDS, Trial, check_no_doubles, lose_node, names_in, on_node, send, wait_for

Fault = Callable[[Trial], None]


def each_chain(trial: Trial, hit: Callable[[int], bool], share: float = 0.8) -> None:
    """Hit every chain once, at a random moment of its first `share`; one that is done by then is hit no more."""
    moments = sorted((trial.rng.uniform(0, share * trial.span), seed) for seed in range(trial.seeds))
    wait_for(lambda: len(trial.running()) >= min(trial.seeds, 2) or trial.done(), "jobs to start")
    begun = time.monotonic()
    for moment, seed in moments:
        time.sleep(max(0.0, moment - (time.monotonic() - begun)))
        while run_folder.committed_rounds(trial.chains[seed]) < ROUNDS:
            if hit(seed):
                trial.injected += 1
                break
            time.sleep(0.05)


def all_chains(trial: Trial, hit: Callable[[], int], times: int = 2) -> None:
    """Hit the cluster at random moments; `hit` returns how many jobs were hit."""
    for _ in range(times):
        wait_for(lambda: trial.running() or trial.done(), "jobs to start")
        trial.pause(0.5)
        if trial.done():
            return
        trial.injected += hit()


def preempted(trial: Trial) -> None:
    """A job of a higher partition takes both nodes for a second."""

    def hit() -> int:
        found = len(trial.running())
        command = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
        job = trial.cluster.run(*command, "--wrap=sleep 1")
        wait_for(lambda: not any(j.id == job for j in read_queue()), "the preempting job")
        return found

    all_chains(trial, hit)


def timed_out(trial: Trial) -> None:
    """The process is frozen until Slurm's warning is pending: a round that is longer than its time limit."""
    frozen: list[psutil.Process] = []

    def wake() -> None:
        while not trial.done():
            for process in list(frozen):
                if _pending(process.pid, signal.SIGUSR2):
                    frozen.remove(process)
                    send([process], signal.SIGCONT)
            time.sleep(0.1)

    def hit(seed: int) -> bool:
        workers = trial.workers(seed)
        send(workers, signal.SIGSTOP)
        frozen.extend(workers)
        return bool(workers)

    threading.Thread(target=wake, daemon=True).start()
    each_chain(trial, hit)


def out_of_time(trial: Trial) -> None:
    """The process is frozen and stays so: the time limit itself."""
    each_chain(trial, lambda seed: send(trial.workers(seed), signal.SIGSTOP))


def hung(trial: Trial) -> None:
    """The process is frozen: only its heartbeat tells."""
    each_chain(trial, lambda seed: send(trial.workers(seed), signal.SIGSTOP))


def requeued(trial: Trial) -> None:
    """An administrator's scontrol requeue."""
    each_chain(trial, lambda seed: on_node(trial, seed, "scontrol", "requeue"))


def cancelled(trial: Trial) -> None:
    """Scancel of a chain's first job, on its node; the second does the work of both."""

    def hit(seed: int) -> bool:
        queued = by_chain(read_queue(), "digits", trial.runs).get(("mal", seed), [])
        return len(queued) > 1 and on_node(trial, seed, "scancel")

    each_chain(trial, hit, share=0.3)  # while there is a second


def killed(trial: Trial) -> None:
    """SIGKILL of the working process."""
    each_chain(trial, lambda seed: send(trial.workers(seed), signal.SIGKILL))


def killed_saving(trial: Trial) -> None:
    """SIGKILL while a checkpoint is half written: its temporary file is there."""

    def hit(seed: int) -> bool:
        workers = trial.workers(seed)
        deadline = time.monotonic() + 2
        while workers and time.monotonic() < deadline:
            for folder in run_folder.round_folders(trial.chains[seed]):
                parts = [n for n in names_in(folder / run_folder.CHECKPOINT) if n.endswith(".tmp") and ".ckpt" in n]
                if parts:
                    return send(workers, signal.SIGKILL)
        return False

    each_chain(trial, hit)


def node_lost(trial: Trial) -> None:
    """A node dies with everything on it, and comes back later."""
    all_chains(trial, lambda: lose_node(trial, with_jobs=True))


def node_cut_off(trial: Trial) -> None:
    """Slurm loses sight of a node whose jobs run on, and starts them elsewhere."""
    all_chains(trial, lambda: lose_node(trial, with_jobs=False))


def every_process_signalled(trial: Trial) -> None:
    """SIGTERM to everything under the job: its Python, srun's processes and their children."""

    def hit(seed: int) -> bool:
        found = trial.workers(seed)
        return send([c for p in found for c in [p, *p.children(recursive=True)]], signal.SIGTERM)

    each_chain(trial, hit)


def controller_restarted(trial: Trial) -> None:
    """Slurmctld restarts while a launcher submits."""
    launcher = trial.launcher()
    wait_for(lambda: read_queue() or launcher.poll() is not None, "the first submission")
    trial.cluster.restart_controller()
    trial.injected += trial.seeds
    trial.by_hand += launcher.wait() != 0


def launcher_killed(trial: Trial) -> None:
    """SIGKILL of the launcher after some sbatch; the same command again."""
    launcher = trial.launcher()
    wanted = trial.rng.randint(1, trial.seeds * ROUNDS - 1)
    wait_for(lambda: len(read_queue()) >= wanted or launcher.poll() is not None, "some submissions")
    launcher.kill()
    launcher.wait()
    trial.injected += trial.seeds
    trial.launch()
    check_no_doubles(trial)


def two_launchers(trial: Trial) -> None:
    """The same command twice at once."""
    both = [trial.launcher(), trial.launcher()]
    trial.injected += trial.seeds
    trial.by_hand += sum(launcher.wait() != 0 for launcher in both)
    check_no_doubles(trial)


def no_scontrol(trial: Trial) -> None:
    """Preempted where the node has neither scontrol nor squeue."""
    preempted(trial)


def rank_signalled(trial: Trial) -> None:
    """SIGTERM to rank 1 of two alone: both save and leave."""

    def hit(seed: int) -> bool:
        return send([p for p in trial.workers(seed) if p.environ().get("SLURM_PROCID") == "1"], signal.SIGTERM)

    each_chain(trial, hit)


def rank_killed(trial: Trial) -> None:
    """SIGKILL of rank 1 of two."""

    def hit(seed: int) -> bool:
        return send([p for p in trial.workers(seed) if p.environ().get("SLURM_PROCID") == "1"], signal.SIGKILL)

    each_chain(trial, hit)


def _pending(pid: int, number: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)
