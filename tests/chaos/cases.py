"""The table of faults: one sweep for each, struck at random moments, compared byte for byte with undisturbed chains."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mal.run import folder as run_folder
from slurm.attempts import read_attempts
from slurm.local_conf import ClusterShape
from slurm.squeue import read_queue
from tests.chaos import faults
from tests.chaos.faults import Fault
from tests.chaos.trial import ROUNDS, TIMEOUT_S, Trial, bare_path, files_of, private_cluster


@dataclass(frozen=True)
class Case:
    """A fault of the table."""

    name: str
    fault: Fault
    shape: ClusterShape
    launched: bool = True  # before the fault; else the fault launches
    extra: tuple[str, ...] = ()


PLAIN = ClusterShape(grace_s=5, kill_wait_s=3, gpus_per_node=0)
# Slurm's own pause is 121 s. A job that starts on its node again before what ran on there has been ended drains it.
PAUSE = ClusterShape(grace_s=5, kill_wait_s=3, gpus_per_node=0, requeue_s=20)
BOTH = ("cluster.nodes=2",)
SHORT = ("cluster.time.default=3",)
CASES = {
    "preempt": Case("preempted, 5 s of grace", faults.preempted, PLAIN),
    "preempt_now": Case("preempted without grace", faults.preempted, ClusterShape(grace_s=0, kill_wait_s=3)),
    "preempt_usr": Case(
        "preempted with the user signal, 5 s of grace",
        faults.preempted,
        ClusterShape(grace_s=5, kill_wait_s=3, user_signal=True),
    ),
    "preempt_usr_now": Case(
        "preempted with the user signal, without grace",
        faults.preempted,
        ClusterShape(grace_s=0, kill_wait_s=3, user_signal=True),
    ),
    "no_scontrol": Case("preempted, no `scontrol` and no `squeue` on the node", faults.no_scontrol, PLAIN),
    "timeout": Case("time limit, warned by SIGUSR2", faults.timed_out, PLAIN, extra=SHORT),
    "limit": Case("time limit, the warning ignored", faults.out_of_time, PLAIN, extra=SHORT),
    "hang": Case("hung (frozen) process", faults.hung, PLAIN, extra=("cluster.hang_minutes=0.3",)),
    "requeue": Case("`scontrol requeue`", faults.requeued, PLAIN),
    "scancel": Case("`scancel` of one job of the chain", faults.cancelled, PLAIN),
    "kill": Case("SIGKILL of the process", faults.killed, PLAIN),
    "kill_saving": Case("SIGKILL in the middle of a checkpoint", faults.killed_saving, PLAIN),
    "workers": Case("SIGTERM to every process of the step", faults.every_process_signalled, PLAIN),
    "node": Case("node lost with its jobs", faults.node_lost, PLAIN),
    "cut_off": Case("node cut off, its jobs running on", faults.node_cut_off, PAUSE),
    "two_preempt": Case("two-node job preempted", faults.preempted, PLAIN, extra=BOTH),
    "two_signal": Case("two-node job, SIGTERM to rank 1 alone", faults.rank_signalled, PLAIN, extra=BOTH),
    "two_kill": Case("two-node job, SIGKILL of rank 1", faults.rank_killed, PLAIN, extra=BOTH),
    "controller": Case("slurmctld restarted during the launch", faults.controller_restarted, PLAIN, launched=False),
    "launcher": Case("launcher killed after sbatch, launched again", faults.launcher_killed, PLAIN, launched=False),
    "launchers": Case("two launchers at once", faults.two_launchers, PLAIN, launched=False),
}


@dataclass
class Outcome:
    """A row of the table."""

    name: str
    injected: int
    chains: int
    identical: int
    lost: int
    by_hand: int
    redone: float
    seconds: float

    def row(self) -> str:
        cells = [self.name, self.injected, f"{self.identical} of {self.chains}", self.lost, self.by_hand]
        return f"| {' | '.join(map(str, cells))} | {self.redone:.1f} |"


HEADER = """\
| fault | times injected | chains byte-identical | rounds lost | interventions needed | s lost per fault |
|---|---|---|---|---|---|"""


def study(case: Case, reference: Path, span: float, seeds: int, rng: random.Random) -> Outcome:
    """Run one case."""
    begun = time.monotonic()
    with private_cluster(case.shape) as cluster:
        extra = list(case.extra)
        if case.fault is faults.no_scontrol:
            bare = bare_path(cluster.folder / "bin")
            extra.append(f"cluster.setup=['export PATH={bare}']")
        trial = Trial(cluster, cluster.folder / "runs", seeds, rng, span, extra)
        if case.extra == BOTH:  # equal to what two processes arrive at undisturbed
            calm = Trial(cluster, cluster.folder / "calm", seeds, rng, span, extra)
            calm.launch()
            finish(calm)
            reference = calm.runs
        if case.launched:
            trial.launch()
        case.fault(trial)
        finish(trial)
        lost = sum(ROUNDS - run_folder.committed_rounds(chain) for chain in trial.chains)
        same = [
            files_of(chain) == files_of(run_folder.chain_folder(reference, "digits", "mal", seed))
            for seed, chain in enumerate(trial.chains)
        ]
        redone = sum(attempt.lost for chain in trial.chains for attempt in read_attempts(chain))
        if not all(same) or trial.by_hand:
            shutil.copytree(trial.runs, Path(tempfile.mkdtemp(prefix="chaos-kept-")) / "runs")
    redone /= max(1, trial.injected)
    return Outcome(case.name, trial.injected, seeds, sum(same), lost, trial.by_hand, redone, time.monotonic() - begun)


def finish(trial: Trial) -> None:
    """Wait for the chains; where no job is left to finish them, a person would have to launch again."""
    deadline = time.monotonic() + TIMEOUT_S
    while not trial.done() and time.monotonic() < deadline:
        if not read_queue() and not trial.done():
            open_ends = [chain for chain in trial.chains if run_folder.committed_rounds(chain) < ROUNDS]
            print(f"    a person must look at {open_ends}", flush=True)
            trial.by_hand += len(open_ends)
            trial.extra.append("retry=true")
            trial.launch()
        time.sleep(0.5)
