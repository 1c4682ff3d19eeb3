"""False claims and power of the sequential test "is A above B?", looked at after every seed, over simulated sweeps.

python -m benchmarks.sequential [--sweeps 1000]

A sweep: six methods, 30 seeds that come in one by one. Values are a seed's own level, shared by all methods, plus a
method's own part; every method is compared with the last one, and a look is taken after each seed from the second on.
First all methods are equal, so that each claim is false; then one is better by a known difference.
"""

from __future__ import annotations

import argparse

import numpy as np

from analysis import sequential
from analysis.stats import holm, paired_tests
from benchmarks.coverage import DRAWS

METHODS, SEEDS = 6, 30
DIFFERENCES = (0.5, 1.0, 1.5, 2.0, 3.0)
SCALES = (0.5, 1.0, 2.0, 3.0, 5.0)


def sweeps(rng: np.random.Generator, draw: str, count: int) -> np.ndarray:
    """Paired differences (count, METHODS - 1, SEEDS) of each method from the last, whose own part is normal."""
    others = METHODS - 1
    own = DRAWS[draw](rng, (count * others, SEEDS)).reshape(count, others, SEEDS)
    level = rng.normal(size=(count, 1, SEEDS))
    return (own + level) - (rng.normal(size=(count, 1, SEEDS)) + level)


def alone(rng: np.random.Generator, count: int) -> float:
    """Percent of single comparisons with a claim where each difference is 1 minus an exponential one: strong skew."""
    found = looks(1 - rng.exponential(size=(count, SEEDS)))
    return 100 * float(np.mean(np.any(found >= sequential.CLAIM, axis=-1)))


def looks(differences: np.ndarray, scale: float = sequential.SCALE) -> np.ndarray:
    """Evidence after each seed from the second on (..., SEEDS - 1)."""
    count = differences.shape[-1]
    return np.stack([sequential.evidence(differences[..., :n], scale) for n in range(2, count + 1)], axis=-1)


def false_claims(differences: np.ndarray) -> dict[str, float]:
    """Percent of the sweeps with any claim at any look, by rule; every claim is false."""
    found = looks(differences)
    p = np.stack([paired_tests(differences[..., :n]).p for n in range(2, SEEDS + 1)], axis=-1)
    above = np.stack([differences[..., :n].mean(axis=-1) > 0 for n in range(2, SEEDS + 1)], axis=-1)
    corrected = np.array([[holm(look) for look in sweep.T] for sweep in p]).swapaxes(1, 2)
    together = np.array([[sequential.over_all(look) for look in sweep.T] for sweep in found])
    return {
        "one comparison, t-test": 100 * float(np.mean(np.any((p < 0.05) & above, axis=-1)[:, 0])),
        "five, t-test with Holm": 100 * float(np.mean(np.any((corrected < 0.05) & above, axis=(1, 2)))),
        "one, sequential": 100 * float(np.mean(np.any(found >= sequential.CLAIM, axis=-1)[:, 0])),
        "five, sequential over all": 100 * float(np.mean(np.any(together >= sequential.CLAIM, axis=(1, 2)))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    count = parser.parse_args().sweeps
    print(f"sweeps of {count:,} with a false claim at any of {SEEDS - 1} looks, percent")
    for name in DRAWS:
        found = false_claims(sweeps(np.random.default_rng(0), name, count))
        print(f"  {name:27}" + "".join(f"  {rule} {percent:.1f}" for rule, percent in found.items()), flush=True)
    percent = alone(np.random.default_rng(2), count)
    print(f"  one comparison, each difference skewed (1 - exponential): sequential {percent:.1f}", flush=True)
    print("claims made by 5 / 10 / 20 seeds, percent, by true difference in sd of the differences, for each scale")
    for scale in SCALES:
        rng = np.random.default_rng(1)
        parts = []
        for true in DIFFERENCES:
            claimed = looks(rng.normal(true, 1, (10 * count, 20)), scale) >= sequential.CLAIM
            by = [100 * np.mean(claimed[:, : n - 1].any(axis=-1)) for n in (5, 10, 20)]
            parts.append(f"{true:g}: " + " / ".join(f"{share:.0f}" for share in by))
        print(f"  scale {scale:g}:  " + "   ".join(parts), flush=True)


if __name__ == "__main__":
    main()
