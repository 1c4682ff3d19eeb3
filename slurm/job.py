"""What a Slurm job does: commit its chains up to a round, and requeue itself where that helps.

    python -m slurm.job CHAIN [CHAIN ...] --until N --minutes M
    python -m slurm.job --array FILE --minutes M      a task of an array: FILE says which chains, and how far

It is the one process of the batch script. For each chain that is not there yet it starts `srun python -m mal.chain`,
which does the work in one process or in many; it watches their heartbeats; and when they have ended early it puts the
job back into the queue, as far as the budget of the cause allows (slurm/attempts.py). So no rank and no loader worker
ever requeues.
Exit status: 0 reached, also at once; 1 an error or a spent budget, recorded in the round's FAILED; 75 interrupted; 76
another process is working on the chain.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType

from mal.chain import EXIT_DONE, EXIT_ERROR, EXIT_LOCKED, is_locked, read_failure
from mal.config.frozen import load_chain
from mal.config.schema import Chain
from mal.files import write_json
from mal.labels.asking import awaited
from mal.process.interrupt import EXIT_INTERRUPTED
from mal.process.start import last_lines, start_chain
from mal.run import folder as run_folder
from mal.run.code_copy import other_code
from mal.run.heartbeat import now, read_progress
from slurm.attempts import (
    FIRST_WAIT_SECONDS,
    FOLDER,
    PLACE,
    bad_nodes,
    delay_s,
    give_up,
    may_go_on,
    read_attempts,
    write_end,
    write_start,
)
from slurm.avoid import away_from, excluded_before, lift_lapsed, others_remain, waiting_of_chain
from slurm.causes import SETTLED, SIGNALS, cause_of, node_of
from slurm.client import SlurmError
from slurm.clock import RunClock
from slurm.gpu_share import GpuShare
from slurm.patience import StorageError, insist
from slurm.requeue import RequeueForbiddenError, requeue, submit_again
from slurm.squeue import read_queue
from slurm.submitted import read_submitted, read_task
from slurm.traces import note_began
from slurm.watch import Watch

POLL_SECONDS = 0.1  # between two looks at srun's process; files are looked at by slurm/watch.py, less often
LOCKED_TIMES = 5
LOCK_MINUTES = 10.0  # to wait for another process on the chain, such as a job on a node that is cut off
KILLED_MINUTES = 10.0  # to wait for the end of a preemption's grace where scontrol cannot be run
GUARD_SECONDS = 25  # before the time limit: what has not ended by then is stopped, so that the job can requeue itself
SLURM_EARLY_SECONDS = 65  # Slurm may send the signal of --signal so much early
# Until an edited or cut configuration counts as that: another node's writing may show late.
CONFIG_WAITS = (1.0, 2.0, 5.0, 10.0)
HERE_TIMES = 3  # that a job tries again where it is, after an error of the storage or where it cannot be requeued
EVADE_TIMES = 20  # that a job leaves a node which has failed its chain

log = logging.getLogger("slurm.job")


@dataclass(frozen=True)
class Limits:
    """minutes: the job's time limit; lead_s: when before it the signal comes; hang_minutes: of a silent round.

    asked: what mal.chain is to check where it runs.
    """

    until: int
    minutes: float
    lead_s: int
    hang_minutes: float
    asked: tuple[str, ...] = ()


@dataclass
class Run:
    """A chain at work: its srun, its attempt in the log, where its output began, and its signs of life.

    tail: the last lines of what its processes said, once they have ended.
    """

    chain: Path
    process: subprocess.Popen[bytes]
    started: float
    log_start: int
    watch: Watch
    hung: bool = False
    late: bool = False
    tail: Sequence[str] = ()


class Job:
    """The Slurm job that this process runs in."""

    def __init__(self, chains: Sequence[Path], limits: Limits) -> None:
        self.chains, self.limits = list(chains), limits
        self.id = own_id()
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        self.node = os.environ.get("SLURMD_NODENAME", "")
        self.gpus = self.nodes * len([name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name])
        self.clock, self.share = RunClock(), GpuShare(self.gpus)
        self.tries = 0  # again, where it is

    def run(self) -> int:
        """Work, and requeue where that helps; returns the exit status."""
        while True:
            try:
                return self._work()
            except StorageError as error:
                log.error("%s", error)
                state = self._state()
                if state not in ("RUNNING", "") or not self._again({self.chains[0]: "storage"}, known=bool(state)):
                    return EXIT_INTERRUPTED

    def _work(self) -> int:
        for chain in self.chains:
            insist(partial(note_began, chain, self.id, self.restart))
            insist(partial(lift_lapsed, self.id, chain))
        if self._evade():
            return EXIT_INTERRUPTED
        for attempt in count(1):
            causes = {chain: self._refuse(chain) for chain in self.chains if not self._reached(chain)}
            runs = self._supervise([chain for chain, cause in causes.items() if not cause])
            for run in runs:  # before this process writes to the log itself
                run.tail = insist(partial(last_lines, self._log(run.chain), run.log_start))
            early = any(run.process.returncode not in (EXIT_DONE, EXIT_LOCKED) for run in runs)
            state = self._state() if early else "RUNNING"
            causes |= {run.chain: self._end(run, state) for run in runs}
            if any(run.process.returncode == EXIT_LOCKED for run in runs) and attempt < LOCKED_TIMES:
                continue  # another process took the lock between our look and our start
            if set(causes.values()) == {"done"} and not all(self._reached(chain) for chain in self.chains):
                continue  # the launch has let this job go further meanwhile
            if not self._again(causes, known=bool(state)):
                break
        if "error" in causes.values():
            return EXIT_ERROR
        if "locked" in causes.values():
            return EXIT_LOCKED
        return EXIT_DONE if set(causes.values()) <= {"done"} else EXIT_INTERRUPTED

    def _until(self) -> int:
        """How far: as the script says, or further where Slurm took no other job of the chain."""
        ours = insist(lambda: read_submitted(self._sweep)).get(self.id)
        named = ours is not None and ours.name == os.environ.get("SLURM_JOB_NAME", ours.name)
        return max(self.limits.until, ours.aim if ours is not None and named else 0)

    @property
    def _sweep(self) -> Path:
        return self.chains[0].parents[1]

    def _reached(self, chain: Path) -> bool:
        """Whether nothing is left to do for the chain, or for people alone."""
        config = self._config(chain)
        if config is None:
            return False
        committed = insist(lambda: run_folder.committed_rounds(chain))
        return committed >= min(self._until(), config.rounds) or insist(lambda: awaited(chain, config)) is not None

    def _config(self, chain: Path) -> Chain | None:
        """The chain's configuration; None, with the reason recorded, where it is cut or edited."""
        for wait in (*CONFIG_WAITS, None):
            insist((chain / run_folder.CONFIG).stat)  # it may show late on this node, or be out of sight for a while
            try:
                return insist(lambda: load_chain(chain / run_folder.CONFIG))
            except ValueError as error:
                if wait is not None:
                    time.sleep(wait)
                elif not insist(lambda: read_failure(chain)):
                    note = {"error": f"ValueError: {error}", "traceback": "", "time": now()}
                    number = insist(lambda: run_folder.committed_rounds(chain))
                    failed = run_folder.round_folder(chain, number) / run_folder.FAILED
                    insist(partial(write_json, failed, note))
        return None

    def _refuse(self, chain: Path) -> str:
        """Why the chain is not to be started: error, locked, or nothing."""
        if failure := insist(lambda: read_failure(chain)):
            log.error("%s failed before: %s Launch with retry=true to run it again.", chain, failure["error"])
            return "error"
        if warning := insist(lambda: other_code(chain)):
            log.warning("%s: %s", chain, warning)
        deadline = time.monotonic() + 60 * LOCK_MINUTES
        while insist(lambda: is_locked(chain)):
            if time.monotonic() > deadline:
                log.error("%s is still being worked on by another process after %g minutes.", chain, LOCK_MINUTES)
                return "locked"
            time.sleep(2)
        return ""

    def _evade(self) -> bool:
        """Leave a node that has failed one of the chains before, where there are others."""
        bad = sorted({node for chain in self.chains for node in insist(partial(bad_nodes, chain))})
        if self.node not in bad or self.restart >= EVADE_TIMES or not others_remain(bad, self.nodes):
            return False
        log.warning("This node, %s, has failed the chain before.", self.node)
        try:
            return requeue(self.id, [*excluded_before(self.id), *bad])
        except RequeueForbiddenError:
            return False

    def _supervise(self, chains: Sequence[Path]) -> list[Run]:
        """Run the chains, all at the same time, and watch them until they have ended."""
        runs = [self._start(chain, overlap=len(self.chains) > 1) for chain in chains]
        while any(run.process.poll() is None for run in runs):
            time.sleep(POLL_SECONDS)
            self.share.look()
            for run in runs:
                if run.process.poll() is None and not (run.hung or run.late):
                    self._watch(run)
        return runs

    def _watch(self, run: Run) -> None:
        """Stop what is silent, and what would still be there at the time limit, which Slurm does not requeue."""
        if run.watch.silent():
            log.error("%s has shown no sign of life for %g minutes.", run.chain, self.limits.hang_minutes)
            run.hung = True
        elif self._left() < GUARD_SECONDS:
            log.warning("%s has not stopped in time before the limit.", run.chain)
            run.late = True
        if run.hung or run.late:
            run.process.terminate()  # srun then kills the step's processes, on all nodes

    def _left(self) -> float:
        """Seconds until the time limit, over which this job runs; Slurm counts none in which it is suspended."""
        return 60 * self.limits.minutes - self.clock.seconds

    def _start(self, chain: Path, overlap: bool) -> Run:
        # srun has not taken the number of CPUs from sbatch since Slurm 22.05, and hands on nothing under --export=NONE
        cpus = f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}"
        srun = ["srun", "--unbuffered", "--kill-on-bad-exit=1", "--export=ALL", cpus]
        srun += ["--overlap"] if overlap else []
        config = self._config(chain)
        threads = config.threads if config else 1  # of what is broken now the process itself says what
        until = self._until()
        started = insist(partial(write_start, chain, self.id, self.restart, self.gpus))
        watch = insist(lambda: Watch(chain, self.limits.hang_minutes, self.clock))
        process, log_start = insist(
            lambda: start_chain(chain, until, self._log(chain), threads, {}, srun, self.limits.asked)
        )
        return Run(chain, process, started, log_start, watch)

    def _log(self, chain: Path) -> Path:
        return chain / FOLDER / f"{self.id}.log"

    def _state(self) -> str:
        """What Slurm calls this job: RUNNING unless cancelled, or requeued already; "" where it cannot be asked."""
        try:
            return next((job.state for job in read_queue([self.id])), "")
        except SlurmError as error:
            log.warning("The state of this job is not known: %s", error)
            return ""

    def _end(self, run: Run, state: str) -> str:
        """Note why a chain's processes have ended; the cause."""
        cause = self._cause(run)
        if cause not in SETTLED and state not in ("RUNNING", ""):
            cause = "stopped"
        if cause not in ("done", "error"):
            log.warning("%s: %s (exit status %d)", run.chain, cause, run.process.returncode)
        host = node_of(run.tail, self.node) if cause == PLACE else ""
        insist(partial(write_end, run.chain, self.id, self.restart, run.started, cause, host, self.share))
        if cause not in SETTLED and not may_go_on(cause, insist(partial(read_attempts, run.chain))):
            insist(partial(give_up, run.chain, cause, run.tail))
            log.error("%s", (insist(lambda: read_failure(run.chain)) or {})["error"])
            return "error"
        return cause

    def _cause(self, run: Run) -> str:
        if run.process.returncode != EXIT_DONE and insist(lambda: read_failure(run.chain)):
            return "error"
        if run.hung or run.late:
            return "hung" if run.hung else "timeout"
        near = self._left() <= self.limits.lead_s + SLURM_EARLY_SECONDS
        return cause_of(run.process.returncode, run.tail, insist(lambda: self._said_goodbye(run)), near)

    def _said_goodbye(self, run: Run) -> bool:
        """Whether rank 0 saved and left: srun may kill it when another rank has left a moment before."""
        number = run_folder.committed_rounds(run.chain)
        heartbeat = read_progress(run_folder.round_folder(run.chain, number)) or {}
        return "interrupted" in heartbeat and float(heartbeat["updated"]) > run.started

    def _again(self, causes: dict[Path, str], known: bool) -> bool:
        """Settle what follows: requeue this job, which Slurm then ends, or True to go on here; False: that was it.

        known: whether Slurm told that this job is running; a cancelled one must not be brought back.
        """
        reasons = set(causes.values()) - SETTLED
        if not reasons:
            return False
        if reasons == {"storage"} and self.tries < HERE_TIMES:
            return self._wait()
        away = insist(partial(away_from, self.id, list(causes), self.nodes)) if PLACE in reasons else []
        delay = delay_s(causes, bool(away), self.restart)
        try:
            if known and requeue(self.id, away, delay):
                return False
        except RequeueForbiddenError as error:
            log.warning("Slurm does not requeue this job: %s", error)
            if reasons & {"preempted", "timeout", PLACE} or self.tries >= HERE_TIMES:
                return not self._hand_on(away, delay)
        if "timeout" in reasons:
            return False  # the next job of the chain goes on
        if "preempted" in reasons:
            # Slurm requeues a preempted job that is still there at the end of its grace
            time.sleep(60 * KILLED_MINUTES)
            return True
        return self._wait()

    def _wait(self) -> bool:
        """Let some time pass, the longer the more often; True, to go on here."""
        time.sleep(FIRST_WAIT_SECONDS * 4 ** min(self.tries, HERE_TIMES))
        self.tries += 1
        return True

    def _hand_on(self, away: Sequence[str], delay: float) -> bool:
        """See to it that a job goes on after this one: one of the chain that waits, or else a copy of this one.

        away: nodes that the copy must not start on; the jobs that wait avoid them already. delay: seconds until the
        copy may start.
        """
        try:
            return bool(waiting_of_chain(self.id)) or submit_again(self.id, self._sweep, away, delay)
        except SlurmError as error:
            log.warning("Whether another job goes on is not known: %s", error)
            return False


def own_id() -> str:
    """The id of the job that this process runs in, as Slurm's commands take it."""
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    return os.environ["SLURM_JOB_ID"]


def handle_signals() -> None:
    """Outlive the signals that tell a job to save: Slurm sends them to the processes that do the work, too."""

    def note(number: int, frame: FrameType | None) -> None:
        log.warning("received %s", signal.Signals(number).name)

    for number in SIGNALS:
        signal.signal(number, note)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m slurm.job", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chains", type=Path, nargs="*", metavar="CHAIN", help="folder RUNS/NAME/METHOD/seed-S")
    parser.add_argument("--until", type=int, default=0, help="how many rounds must be committed")
    parser.add_argument("--array", type=Path, default=None, help="what each task of an array is for")
    parser.add_argument("--minutes", type=float, required=True, help="the job's time limit")
    parser.add_argument("--lead", type=int, default=120, help="seconds before it at which the job is told")
    parser.add_argument(
        "--hang-minutes", type=float, default=60, help="a round silent for so long is killed and requeued"
    )
    parser.add_argument("--code", default=None, help="hash of the code that the work is to be done by")
    parser.add_argument("--tasks", default=None, help="processes of the job, on all nodes")
    parser.add_argument("--gpus", default=None, help="GPUs of each node")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    handle_signals()
    asked = [w for key in ("code", "tasks", "gpus") if (v := getattr(options, key)) for w in (f"--{key}", v)]
    chains, until = options.chains, options.until
    if options.array:
        names, until = insist(partial(read_task, options.array, int(os.environ["SLURM_ARRAY_TASK_ID"])))
        chains = [options.array.parents[1] / name for name in names]
    limits = Limits(until, options.minutes, options.lead, options.hang_minutes, tuple(asked))
    return Job(chains, limits).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
