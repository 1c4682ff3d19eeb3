"""How a whole round grows: seconds and memory against the candidates N and the budget b, as exponents.

python -m benchmarks.growth [--threads 1 --clock cpu]

Noise of 8x8 pixels through a narrow network; each round in a process of its own, so that its peak of memory is its own.
An exponent is the slope of a line through the logarithms: 1 is proportional, 0 does not grow.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import CLOCKS, arguments, chain, noise
from mal.config.schema import Chain

CANDIDATES, BUDGETS = (10_000, 50_000, 200_000), (100, 1000, 4000)
FIXED_N, FIXED_B = 50_000, 1000
METHODS = ("mal", "coreset")
TEST, INITIAL, WARM = 450, 100, 1000


def configured(method: str, count: int, budget: int, threads: int) -> Chain:
    options = ("device=cpu", f"threads={threads}", "rounds=2", "initial=10", "budget=10")
    small = ("backbone.width=8", "minimax.epochs=0.2", "task.epochs=0.2", "dataset.pool=null")
    config = chain("dataset=digits", *options, *small, method=method)
    config.initial, config.budget, config.dataset.train, config.dataset.test = INITIAL, budget, count, TEST
    return config


def one_round(config: Chain, clock: str) -> dict[str, float]:
    """Seconds of each phase of round 0, and MiB of memory beyond what the process had before."""
    from mal.data.dataset import Dataset
    from mal.data.image_set import Arrays, hash_arrays
    from mal.process.device import prepare_device
    from mal.process.interrupt import Interrupt
    from mal.process.memory import peak_host_mib
    from mal.round import Rounds
    from mal.run.heartbeat import Progress
    from mal.run.ledger import Oracle

    marks: list[tuple[str, float]] = []

    class Marked(Progress):
        """Notes when each phase begins."""

        def phase(self, name: str, steps: int, step: int = 0) -> None:
            marks.append((name, CLOCKS[clock]()))
            super().phase(name, steps, step)

    def run(count: int) -> None:
        spec = config.dataset
        train, test = (Arrays(noise(n, 1, 8), np.arange(n) % spec.classes) for n in (count, TEST))
        pool = np.arange(count)
        data = Dataset(spec, train, pool, Oracle(train.labels), test, hash_arrays((pool,)), Path())
        with tempfile.TemporaryDirectory() as folder:
            Rounds(Path(folder), config, data, device, Interrupt()).run(0)

    import mal.round

    mal.round.Progress = Marked  # type: ignore[misc]
    device, count, budget = prepare_device(config), config.dataset.train, config.budget
    config.dataset.train, config.budget = WARM, 10
    run(WARM)  # libraries, kernels, buffers
    before = peak_host_mib()
    config.dataset.train, config.budget = count, budget
    marks.clear()
    run(count)
    marks.append(("end", CLOCKS[clock]()))
    seconds: dict[str, float] = {}
    for (name, began), (_, ended) in itertools.pairwise(marks):
        kind = {"score labelled": "score"}.get(name, name)
        seconds[kind] = seconds.get(kind, 0.0) + ended - began
    return {**seconds, "round": sum(seconds.values()), "MiB": peak_host_mib() - before}


def measured(method: str, count: int, budget: int, threads: int, clock: str) -> dict[str, float]:
    """`one_round` in a process of its own."""
    words = ("--method", method, "--count", count, "--budget", budget, "--threads", threads, "--clock", clock)
    command = [sys.executable, "-m", "benchmarks.growth", *map(str, words)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def exponents(sizes: tuple[int, ...], rounds: list[dict[str, float]]) -> dict[str, float]:
    """By part of the round; parts that never take 0.05 s, or a MiB, are left out."""
    found = {}
    for part in rounds[-1]:
        values = np.array([r.get(part, 0.0) for r in rounds])
        if values.max() > (1 if part == "MiB" else 0.05) and values.min() > 0:
            found[part] = float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
    return found


def main() -> None:
    given = arguments(__doc__, method="", count=0, budget=0)
    if given.method:
        config = configured(given.method, given.count, given.budget, given.threads)
        print(json.dumps(one_round(config, given.clock)))
        return
    for method in METHODS:
        by_n = [measured(method, n, FIXED_B, given.threads, given.clock) for n in CANDIDATES]
        by_b = [measured(method, FIXED_N, b, given.threads, given.clock) for b in BUDGETS]
        for name, sizes, rounds in (("N", CANDIDATES, by_n), ("b", BUDGETS, by_b)):
            fixed = f"b={FIXED_B:,}" if name == "N" else f"N={FIXED_N:,}"
            print(f"{method}, {fixed}: seconds (and MiB) of a round by {name}", flush=True)
            for size, parts in zip(sizes, rounds, strict=True):
                print(f"  {size:>8,}  " + "  ".join(f"{part} {value:.2f}" for part, value in parts.items()))
            print("  exponent  " + "  ".join(f"{part} {value:.2f}" for part, value in exponents(sizes, rounds).items()))


if __name__ == "__main__":
    main()
