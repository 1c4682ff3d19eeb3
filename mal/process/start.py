"""Starting a chain's process, on this machine or as a step of a Slurm job: its command, its threads and its log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Of torchrun, MPI and Slurm's steps: where the launching shell has them, or is itself a task of a step, they are of
# something else. srun sets those of the step that it starts.
_FOREIGN = re.compile(
    r"(ROLE_|GROUP_|NODE_|LOCAL_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|OMPI|PMI|PMIX)_\w+"
    r"|SLURM_(PROCID|LOCALID|NODEID|STEP_\w+|STEPID|TASK_PID)|MAL_LAUNCHER"
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def start_chain(
    chain: Path,
    until: int,
    log: Path,
    threads: int,
    variables: Mapping[str, str],
    through: Sequence[str] = (),
    asked: Sequence[str] = (),
) -> tuple[subprocess.Popen[bytes], int]:
    """Start `python -m mal.chain`, appending to `log`; the process, and where in the log its words begin.

    threads: of each library, 0: as the environment says. variables: added to the environment. through: what starts it,
    e.g. srun with its options. asked: further options of mal.chain.
    """
    environment = {key: value for key, value in os.environ.items() if not _FOREIGN.fullmatch(key)}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(threads)) if threads else {}
    command = [*through, sys.executable, "-u", "-m", "mal.chain", str(chain), "--until", str(until), *asked]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        start = output.tell()
        # A session of its own: signals reach the launcher or the job alone, which pass on what they decide.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environment, **variables},
            start_new_session=True,
        )
    return process, start


def last_lines(log: Path, start: int, count: int = 10) -> list[str]:
    """The last lines that are not blank of what was written to a log from `start` on."""
    with log.open("rb") as file:
        file.seek(start)
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()][-count:]
