"""Why a chain's processes have ended: from srun's exit status, what they said, and what the job did to them."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from mal.chain import EXIT_DONE, EXIT_ERROR, EXIT_LOCKED, EXIT_OUT_OF_MEMORY, EXIT_PLACE, STORAGE_FAILED
from mal.process.interrupt import EXIT_INTERRUPTED

# Of srun, for a process that ended by a signal before it could handle it, or that said that it was interrupted.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
INTERRUPTED = {EXIT_INTERRUPTED, *(128 + number for number in SIGNALS)}
KILLED = 128 + signal.SIGKILL
NO_SUCH_INSTRUCTION = 128 + signal.SIGILL  # built for another processor than this node's
# Of Slurm and srun, where the kernel ended a process for its memory.
_KERNEL_KILLED = re.compile(r"oom[-_ ]kill|out of memory", re.IGNORECASE)
# Of srun, where the job was put back into the queue a moment before.
_REQUEUED = re.compile(r"Unable to confirm allocation.*pending execution")
# Of Python: our own code is on the storage of the runs.
_OUR_CODE = re.compile(r"No module named '(mal|slurm)\b")
# Of Python, where this node lacks a library, and of processes that have something else to say than that storage fails.
_LIBRARY = re.compile(r"ImportError|ModuleNotFoundError|cannot open shared object|GLIBC")
_OTHERWISE = re.compile(r"Traceback|lost the others|did not meet|usage:|Unable to create step|Task launch")
_ELSEWHERE = re.compile(r"process \d+ on (\S+): ")
SETTLED = frozenset({"done", "error", "locked", "stopped"})


def cause_of(status: int, tail: Sequence[str], said_goodbye: bool, near_limit: bool) -> str:
    """A cause of slurm/attempts.py.

    status: srun's exit status. tail: the last lines of what the processes said. said_goodbye: whether rank 0 saved and
    left. near_limit: whether a signal is the warning of the time limit.
    """
    if status == EXIT_DONE:
        return "done"
    if status == EXIT_LOCKED:
        return "locked"
    if status in INTERRUPTED or (status == KILLED and said_goodbye):
        return "timeout" if near_limit else "preempted"
    if status == EXIT_OUT_OF_MEMORY or any(_KERNEL_KILLED.search(line) for line in tail):
        return "out of memory"
    if status in (EXIT_PLACE, NO_SUCH_INSTRUCTION):
        return "place"
    if status == EXIT_ERROR:
        if any(_REQUEUED.search(line) for line in tail):
            return "stopped"
        return _of_error(" / ".join(tail))
    return "killed" if status == KILLED else "died"


def _of_error(words: str) -> str:
    """An error that no file tells of: the storage did not take it, nor, perhaps, the words in the log."""
    if STORAGE_FAILED in words or _OUR_CODE.search(words):
        return "storage"
    if _LIBRARY.search(words):
        return "place"
    return "died" if _OTHERWISE.search(words) else "storage"


def node_of(tail: Sequence[str], here: str) -> str:
    """The node that an error of the place is of: the one that the processes name, else this one."""
    return next((found[1] for line in reversed(tail) if (found := _ELSEWHERE.search(line))), here)
