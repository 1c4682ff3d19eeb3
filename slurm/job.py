"""What a Slurm job does: see to it that its chains are committed up to a round, and that nobody has to look after them.

    python -m slurm.job CHAIN [CHAIN ...] --until N --minutes M

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
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType

from mal.chain import EXIT_DONE, EXIT_ERROR, EXIT_LOCKED, EXIT_OUT_OF_MEMORY, is_locked, read_failure
from mal.config.frozen import load_chain
from mal.files import write_json
from mal.process.interrupt import EXIT_INTERRUPTED
from mal.process.start import last_lines, start_chain
from mal.run import folder as run_folder
from mal.run.code_copy import other_code
from mal.run.heartbeat import now, read_progress
from slurm.attempts import FOLDER, give_up, may_go_on, read_attempts, write_end, write_start
from slurm.client import SlurmError, call
from slurm.squeue import read_queue

POLL_SECONDS = 0.1
START_MINUTES = 1.0  # at least, until the first sign of life: torch comes from a file system that may be busy
LOCKED_TIMES = 5
LOCK_MINUTES = 10.0  # to wait for another process on the chain, such as a job on a node that is cut off
KILLED_MINUTES = 10.0  # to wait for the end of a preemption's grace where scontrol cannot be run
GUARD_SECONDS = 25  # before the time limit: what has not ended by then is stopped, so that the job can requeue itself
SLURM_EARLY_SECONDS = 65  # Slurm may send the signal of --signal so much early
# Of srun, for a process that ended by a signal before it could handle it, or that said that it was interrupted.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
INTERRUPTED = {EXIT_INTERRUPTED, *(128 + number for number in SIGNALS)}
KILLED = 128 + signal.SIGKILL
# Of Slurm and srun, where the kernel ended a process for its memory.
KERNEL_KILLED = re.compile(r"oom[-_ ]kill|out of memory", re.IGNORECASE)
SETTLED = frozenset({"done", "error", "locked", "stopped"})

log = logging.getLogger("slurm.job")


@dataclass(frozen=True)
class Limits:
    """minutes: the job's time limit; lead_s: when before it the signal comes; hang_minutes: of a silent round."""

    until: int
    minutes: float
    lead_s: int
    hang_minutes: float


@dataclass
class Run:
    """A chain at work: its srun, its attempt in the log, and where its output began."""

    chain: Path
    process: subprocess.Popen[bytes]
    started: float
    log_start: int
    hung: bool = False
    late: bool = False


class Job:
    """The Slurm job that this process runs in."""

    def __init__(self, chains: Sequence[Path], limits: Limits) -> None:
        self.chains, self.limits = list(chains), limits
        self.id = int(os.environ["SLURM_JOB_ID"])
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        self.gpus = self.nodes * len([name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name])
        self.began = time.monotonic()

    def run(self) -> int:
        """Work, and requeue where that helps; returns the exit status."""
        for attempt in count(1):
            causes = {chain: self._refuse(chain) for chain in self.chains if not self._reached(chain)}
            runs = self._supervise([chain for chain, cause in causes.items() if not cause])
            early = any(run.process.returncode not in (EXIT_DONE, EXIT_LOCKED) for run in runs)
            state = self._state() if early else "RUNNING"
            causes |= {run.chain: self._end(run, state) for run in runs}
            if any(run.process.returncode == EXIT_LOCKED for run in runs) and attempt < LOCKED_TIMES:
                continue  # another process took the lock between our look and our start
            if not self._again(causes, known=bool(state)):
                break
        if "error" in causes.values():
            return EXIT_ERROR
        if "locked" in causes.values():
            return EXIT_LOCKED
        return EXIT_DONE if set(causes.values()) <= {"done"} else EXIT_INTERRUPTED

    def _reached(self, chain: Path) -> bool:
        """Whether nothing is left to do for the chain."""
        committed = run_folder.committed_rounds(chain)
        try:
            return committed >= min(self.limits.until, load_chain(chain / run_folder.CONFIG).rounds)
        except ValueError as error:  # cut or edited by hand
            if not read_failure(chain):
                note = {"error": f"ValueError: {error}", "traceback": "", "time": now()}
                write_json(run_folder.round_folder(chain, committed) / run_folder.FAILED, note)
            return False

    def _refuse(self, chain: Path) -> str:
        """Why the chain is not to be started: error, locked, or nothing."""
        if failure := read_failure(chain):
            log.error("%s failed before: %s Launch with retry=true to run it again.", chain, failure["error"])
            return "error"
        if warning := other_code(chain):
            log.warning("%s: %s", chain, warning)
        deadline = time.monotonic() + 60 * LOCK_MINUTES
        while is_locked(chain):
            if time.monotonic() > deadline:
                log.error("%s is still being worked on by another process after %g minutes.", chain, LOCK_MINUTES)
                return "locked"
            time.sleep(2)
        return ""

    def _supervise(self, chains: Sequence[Path]) -> list[Run]:
        """Run the chains, all at the same time, and watch them until they have ended."""
        runs = [self._start(chain, overlap=len(self.chains) > 1) for chain in chains]
        while any(run.process.poll() is None for run in runs):
            time.sleep(POLL_SECONDS)
            for run in runs:
                if run.process.poll() is None and not (run.hung or run.late):
                    self._watch(run)
        return runs

    def _watch(self, run: Run) -> None:
        """Stop what is silent, and what would still be there at the time limit, which Slurm does not requeue."""
        if self._silent(run):
            log.error("%s has shown no sign of life for %g minutes.", run.chain, self.limits.hang_minutes)
            run.hung = True
        elif self._left() < GUARD_SECONDS:
            log.warning("%s has not stopped in time before the limit.", run.chain)
            run.late = True
        if run.hung or run.late:
            run.process.terminate()  # srun then kills the step's processes, on all nodes

    def _left(self) -> float:
        """Seconds until the time limit."""
        return 60 * self.limits.minutes - (time.monotonic() - self.began)

    def _start(self, chain: Path, overlap: bool) -> Run:
        # srun has not taken the number of CPUs from sbatch since Slurm 22.05
        cpus = f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}"
        srun = ["srun", "--unbuffered", "--kill-on-bad-exit=1", cpus, *(["--overlap"] if overlap else [])]
        threads = load_chain(chain / run_folder.CONFIG).threads
        started = write_start(chain, self.id, self.restart, self.gpus)
        process, log_start = start_chain(chain, self.limits.until, self._log(chain), threads, {}, srun)
        return Run(chain, process, started, log_start)

    def _log(self, chain: Path) -> Path:
        return chain / FOLDER / f"{self.id}.log"

    def _silent(self, run: Run) -> bool:
        """Whether the last sign of life is too long ago."""
        number = run_folder.committed_rounds(run.chain)
        heartbeat = read_progress(run_folder.round_folder(run.chain, number)) or {}
        beat = float(heartbeat.get("updated", 0.0))
        minutes = max(self.limits.hang_minutes, START_MINUTES if beat < run.started else 0.0)
        return time.time() - max(run.started, beat) > 60 * minutes

    def _state(self) -> str:
        """What Slurm calls this job: RUNNING unless cancelled, or requeued already; "" where it cannot be asked."""
        try:
            return read_queue([self.id])[0].state
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
        write_end(run.chain, self.id, self.restart, run.started, cause)
        if cause not in SETTLED and not may_go_on(cause, read_attempts(run.chain)):
            give_up(run.chain, cause, self._tail(run))
            log.error("%s", (read_failure(run.chain) or {})["error"])
            return "error"
        return cause

    def _cause(self, run: Run) -> str:
        status = run.process.returncode
        if status == EXIT_DONE:
            return "done"
        if read_failure(run.chain):
            return "error"
        if status == EXIT_LOCKED:
            return "locked"
        if run.hung:
            return "hung"
        if run.late:
            return "timeout"
        if status in INTERRUPTED or (status == KILLED and self._said_goodbye(run)):
            return "timeout" if self._left() <= self.limits.lead_s + SLURM_EARLY_SECONDS else "preempted"
        if status == EXIT_OUT_OF_MEMORY or any(KERNEL_KILLED.search(line) for line in self._tail(run)):
            return "out of memory"
        return "killed" if status == KILLED else "died"

    def _said_goodbye(self, run: Run) -> bool:
        """Whether rank 0 saved and left: srun may kill it when another rank has left a moment before."""
        heartbeat = read_progress(run_folder.round_folder(run.chain, run_folder.committed_rounds(run.chain))) or {}
        return "interrupted" in heartbeat and float(heartbeat["updated"]) > run.started

    def _tail(self, run: Run) -> list[str]:
        return last_lines(self._log(run.chain), run.log_start)

    def _again(self, causes: dict[Path, str], known: bool) -> bool:
        """Settle what follows: requeue this job, which Slurm then ends, or True to go on here; False: that was it.

        known: whether Slurm told that this job is running; a cancelled one must not be brought back.
        """
        reasons = set(causes.values()) - SETTLED
        if not reasons:
            return False
        if known:
            try:
                log.warning("This job goes back into the queue.")
                call("scontrol", "requeue", str(self.id), attempts=6, wait_s=3)
                return False
            except SlurmError as error:
                log.warning("This job cannot requeue itself: %s", error)
        if "timeout" in reasons:
            return False  # the next job of the chain goes on
        if "preempted" in reasons:
            # Slurm requeues a preempted job that is still there at the end of its grace
            time.sleep(60 * KILLED_MINUTES)
        return True


def handle_signals() -> None:
    """Outlive the signals that tell a job to save: Slurm sends them to the processes that do the work, too."""

    def note(number: int, frame: FrameType | None) -> None:
        log.warning("received %s", signal.Signals(number).name)

    for number in SIGNALS:
        signal.signal(number, note)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m slurm.job", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chains", type=Path, nargs="+", metavar="CHAIN", help="folder RUNS/NAME/METHOD/seed-S")
    parser.add_argument("--until", type=int, required=True, help="how many rounds must be committed")
    parser.add_argument("--minutes", type=float, required=True, help="the job's time limit")
    parser.add_argument("--lead", type=int, default=120, help="seconds before it at which the job is told")
    parser.add_argument(
        "--hang-minutes", type=float, default=60, help="a round silent for so long is killed and requeued"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    handle_signals()
    return Job(options.chains, Limits(options.until, options.minutes, options.lead, options.hang_minutes)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
