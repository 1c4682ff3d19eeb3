"""From the start of a worker's process to its first step, split into its parts, and from its last line to its end.

python -m benchmarks.startup [--threads 1 --clock cpu]
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import arguments, chain
from mal.config.frozen import save_chain
from mal.config.schema import Chain
from mal.files import write_atomic
from mal.run import folder as run_folder

CHAINS = {
    "digits, small_cnn": ("dataset=digits",),
    "digits, resnet18": ("dataset=digits", "backbone=resnet18"),
}
# What `python -m mal.chain` does, with the time noted where a part ends.
WORKER = """
import json, sys, time
now = time.process_time if sys.argv[3] == "cpu" else time.time
marks = [("python", now())]
def mark(name): marks.append((name, now()))
from pathlib import Path
from mal.chain import run_chain
from mal.process.interrupt import Interrupt
mark("configuration's imports")
import torch
mark("import torch")
from mal import round as rounds
from mal.data import dataset
from mal.run.heartbeat import Progress
mark("our imports")
if sys.argv[2] == "resnet18":
    import torchvision
    mark("import torchvision")
def noted(owner, name, label, once=True):
    function = getattr(owner, name)
    def call(*arguments, **options):
        result = function(*arguments, **options)
        if label not in dict(marks):
            mark(label)
        return result
    setattr(owner, name, call)
noted(dataset, "load", "data")
noted(rounds.Rounds, "__init__", "images to the device")
noted(Progress, "phase", "networks")
noted(Progress, "at", "first step")
run_chain(Path(sys.argv[1]), None, Interrupt())
mark("rest of the round")
print(json.dumps(marks))
from mal.process.distributed import leave
leave(0)
"""


def timeline(config: Chain, threads: int, clock: str) -> dict[str, float]:
    """Seconds of each part of one worker's life, in order."""

    def now() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime if clock == "cpu" else time.time()

    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "chain")
        write_atomic(folder / run_folder.CONFIG, save_chain(config).encode())
        command = [sys.executable, "-c", WORKER, str(folder), str(config.backbone["name"]), clock]
        began = now()
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        end = now()
    marks = json.loads(ended.stdout.splitlines()[-1])
    if clock == "cpu":  # the worker counts from its own start
        began, end = 0.0, end - began
    marks = [("", began), *marks, ("exit", end)]
    return {name: at - before for (_, before), (name, at) in itertools.pairwise(marks)}


def main() -> None:
    given = arguments(__doc__)
    for name, overrides in CHAINS.items():
        short = ("rounds=1", "minimax.epochs=0.05", "task.epochs=0.05", f"threads={given.threads}")
        config = chain(*overrides, *short)
        timeline(config, given.threads, given.clock)  # bytecode and the system's file cache
        lives = [timeline(config, given.threads, given.clock) for _ in range(max(2, given.repeats // 3))]
        parts = {part: statistics.median(life[part] for life in lives) for part in lives[0]}
        rest = parts.pop("rest of the round"), parts.pop("exit")
        print(f"start-up, {name}: {sum(parts.values()):.2f} s to the end of the first step; exit {rest[1]:.2f} s")
        print("  " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items()))


if __name__ == "__main__":
    main()
