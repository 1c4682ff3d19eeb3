"""A chain with two threads beside a busy neighbour: its processor seconds against those of one thread.

python -m benchmarks.busy

Threads that wait by spinning burn what they wait for. The neighbour is as many processes as there are cores, which only
count. The first row is what a launch makes of the network (`threads=0`), the others have two threads whatever it is.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import HEAD, arguments, chain, paired, row
from benchmarks.side_by_side import CHAINS
from mal.config.frozen import save_chain
from mal.files import write_atomic
from mal.run import folder as run_folder
from sweeps.plan import ChainPlan, State, cores, share_threads

SPIN = [sys.executable, "-c", "while True: pass"]


def seconds(overrides: tuple[str, ...], threads: int) -> float:
    """User and system time of a chain's process; threads: 0 for what a launch of one chain chooses."""
    config = chain(*overrides, f"threads={threads}", "device=cpu")
    with tempfile.TemporaryDirectory() as place:
        plan = ChainPlan(Path(place), config, config.rounds, 0, State.NEW, "new")
        share_threads([plan], cores())
        write_atomic(Path(place) / run_folder.CONFIG, save_chain(plan.config).encode())
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = os.environ | {"OMP_NUM_THREADS": str(plan.config.threads), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "mal.chain", place]
        subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    given = arguments(__doc__)
    repeats = max(1, given.repeats // 3)
    neighbours = [subprocess.Popen(SPIN) for _ in os.sched_getaffinity(0)]
    try:
        print(HEAD)
        for name, overrides in CHAINS.items():
            for threads, what in ((0, "as launched"), (2, "two threads")):
                pairs = [(seconds(overrides, threads), seconds(overrides, 1)) for _ in range(repeats)]
                row(f"CPU seconds, {what} / one thread, {name}", paired(pairs), 1.3)
    finally:
        for process in neighbours:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
