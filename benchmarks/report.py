"""How long a report of 10,000 rounds takes, with and without figures, against reading the files alone.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from analysis import curves
from tests.made_up_runs import write_chain

METHODS = ("mal", "random", "entropy", "coreset", "bald", "vaal", "badge", "margin", "typiclust", "probcover")
SEEDS, ROUNDS, CLASSES = 10, 100, 100


def write_runs(runs: Path) -> None:
    """100 chains of 100 rounds with 100 classes."""
    for m, method in enumerate(METHODS):
        for seed in range(SEEDS):
            rng = np.random.default_rng([m, seed])
            values = 60 + 25 * (1 - np.exp(-np.arange(ROUNDS) / 25)) + rng.normal(0, 0.6, ROUNDS)
            per_class = rng.uniform(30, 90, CLASSES).round(2).tolist()
            write_chain(
                runs,
                method,
                seed,
                values.tolist(),
                budget=20,
                pool=5000,
                classes=CLASSES,
                metrics={"per_class": per_class},
            )


def seconds(*words: str) -> float:
    """Wall seconds of one command line, in a process of its own: imports count."""
    began = time.perf_counter()
    subprocess.run([sys.executable, curves.__file__, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder, "runs")
        write_runs(runs)
        began = time.perf_counter()
        for path in runs.rglob("*.json"):
            json.loads(path.read_bytes())
        plain = time.perf_counter() - began
        words = (f"runs={runs}", f"out={folder}/out")
        for name, more in (("tables and report", ["--no-figures"]), ("with figures", [])):
            took = min(seconds(*words, *more) for _ in range(2))
            print(f"{name}: {took:.1f} s for 10,000 rounds, {took / plain:.1f} times parsing their JSON")


if __name__ == "__main__":
    main()
