"""k-center greedy at ImageNet's size, whole: a budget of 64,058 of 1,217,109 candidates, 64,058 labelled, d = 512.

python -m benchmarks.kcenter [--images 100000 --dimensions 64]

Features are a random layer with ReLU on 64 numbers of 1,000 classes; labelled and bought are the paper's 5% + 5%.
Prints seconds, processor seconds and memory beyond the features.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.parts import Clock
from mal.acquisition import kcenter_greedy

CLASSES, INPUTS, ROWS = 1000, 64, 16_384


def features(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """float32 (count, dimensions)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, INPUTS), dtype=np.float32)
    layer = rng.standard_normal((INPUTS, dimensions), dtype=np.float32) / INPUTS**0.5
    found = np.empty((count, dimensions), np.float32)
    for first in range(0, count, ROWS):
        part = found[first : first + ROWS]
        inputs = centres[rng.integers(0, CLASSES, len(part))]
        inputs = inputs + 0.5 * rng.standard_normal(inputs.shape, dtype=np.float32)
        np.maximum(inputs @ layer, 0, out=part)
    return found


def is_greedy(candidates: np.ndarray, labelled: np.ndarray, picks: np.ndarray, sample: int = 500) -> bool:
    """Whether picks are farthest first, as far as a sample of them and of the rest tells, to float32's rounding.

    The distance of each pick to all centres before it never grows, and nobody left is farther than the last one.
    """
    rng = np.random.default_rng(0)
    centres = np.concatenate([labelled, candidates[picks]])
    at = np.unique(np.append(rng.integers(0, len(picks), sample), len(picks) - 1))
    radii = [nearest(candidates[picks[each]][None], centres[: len(labelled) + each])[0] for each in at]
    left = rng.choice(np.setdiff1d(np.arange(len(candidates)), picks), min(sample, len(candidates) - len(picks)), False)
    slack = 1e-4 * max(radii)
    return bool((np.diff(radii) <= slack).all() and nearest(candidates[left], centres).max() <= radii[-1] + slack)


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The squared distance of each point to its nearest centre."""
    found = np.full(len(points), np.inf)
    for first in range(0, len(centres), ROWS):
        block = centres[first : first + ROWS].astype(np.float64)
        squared = (block**2).sum(1) - 2 * points.astype(np.float64) @ block.T
        found = np.minimum(found, squared.min(axis=1))
    return found + (points.astype(np.float64) ** 2).sum(1)


def main() -> None:
    """One line when it is done, and one per tenth of the picks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--dimensions", type=int, default=512)
    given = parser.parse_args()
    budget = given.images // 20
    points = features(given.images, given.dimensions)
    labelled, candidates = points[:budget], points[budget:]
    kcenter_greedy(candidates[:300], None, 20)  # compiles, or loads what was compiled
    clock, began, told = Clock(), time.process_time(), 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if 10 * done // total > told:
            told = 10 * done // total
            print(f"  {done:,} of {total:,} picks, {time.process_time() - began:.0f} processor s", flush=True)

    with clock.part("k-center"):
        picks = kcenter_greedy(candidates, labelled, budget, progress=tell)
    (part,) = clock.parts
    assert len(np.unique(picks)) == budget
    assert is_greedy(candidates, labelled, picks)
    print(
        f"N = {len(candidates):,}, {budget:,} labelled, d = {given.dimensions}, b = {budget:,}: {part.seconds:.0f} s, "
        f"{part.cpu:.0f} processor s, {part.mib:.0f} MiB beyond {points.nbytes / 2**20:,.0f} of features"
    )


if __name__ == "__main__":
    main()
