"""How often a 95% interval of a mean difference over few seeds holds the true one, by simulation.

python -m benchmarks.coverage [--sweeps 100000]

Paired differences of 3, 5 and 10 seeds, drawn with mean 0 and standard deviation 1 from normal, heavy-tailed, bounded
and skewed distributions. Printed for each way to make the interval: its coverage in percent, and its mean width.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from analysis.stats import t_interval

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
SEEDS = (3, 5, 10)
RESAMPLES = 1000  # more move the coverage by less than 0.3
PART = 2000  # sweeps at a time
DRAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails (t, 5 degrees)": lambda rng, shape: rng.standard_t(5, shape) / np.sqrt(5 / 3),
    "bounded (uniform)": lambda rng, shape: rng.uniform(-1, 1, shape) * np.sqrt(3),
    "skewed (exponential)": lambda rng, shape: rng.exponential(size=shape) - 1,
}


def bootstrap_interval(differences: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean along the last axis: what reports showed before Student's."""
    n = differences.shape[-1]
    means = differences[:, rng.integers(n, size=(RESAMPLES, n))].mean(axis=-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=-1, method="inverted_cdf")
    return low, high


def coverage(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """Percent of the intervals that hold 0, and their mean width."""
    return 100 * float(np.mean((low <= 0) & (high >= 0))), float(np.mean(high - low))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=100_000, help="simulated sweeps (the bootstrap takes a tenth)")
    sweeps = parser.parse_args().sweeps
    for name, draw in DRAWS.items():
        for n in SEEDS:
            rng = np.random.default_rng(n)
            student = coverage(*t_interval(draw(rng, (sweeps, n))))
            parts = [bootstrap_interval(draw(rng, (PART, n)), rng) for _ in range(max(1, sweeps // 10 // PART))]
            boot = coverage(np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts]))
            print(
                f"{name:27} n = {n:2}:  Student {student[0]:5.1f}% (width {student[1]:5.2f})   "
                f"percentile bootstrap {boot[0]:5.1f}% ({boot[1]:4.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
