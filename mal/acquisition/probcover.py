"""ProbCover: greedily, the candidates whose balls of radius delta cover most of what no label covers yet."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mal.acquisition.checks import Indices, Progress, check_budget, check_features, report, squared_norms
from mal.acquisition.estimate import Estimate
from mal.process.memory import available_memory

_BLOCK = 2048
_SAMPLE = 1024


def probcover(
    features_ND: ArrayLike,
    centres_MD: ArrayLike | None,
    budget: int,
    *,
    delta: float,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Indices:
    """Pick `budget` times the candidate with most uncovered candidates (itself counts) strictly within `delta` (L2).

    features_ND: (N, D) candidates; centres_MD: (M, D) labelled features, whose balls are covered from the
    start, or None. Distances are those of the float32 features in float64; ties go to the lowest position; a
    candidate is chosen once. The graph is built in blocks: 4 bytes per edge, N * N * D multiplications.
    `progress` counts its rows, then the picks.
    Returns int64 (budget,) in order of choice. Raises ValueError where a sample says that the graph will not
    fit in `memory` bytes (default: what is free). Source: Yehuda et al., Active Learning Through a Covering
    Lens (NeurIPS 2022), algorithm 1.
    """
    features = check_features(features_ND, "features")
    budget = check_budget(budget, len(features))
    width = features.shape[1]
    centres = check_features(np.empty((0, width)) if centres_MD is None else centres_MD, "centres", width)
    if not 0 < delta < np.inf:
        raise ValueError(f"delta={delta!r}: must be above 0 and finite (coverage_radius estimates one)")
    balls = _Balls(features, delta)
    balls.estimate().require(available_memory() if memory is None else memory)
    covered_N = np.zeros(len(features), dtype=bool)
    for start in range(0, len(centres), _BLOCK):
        covered_N |= balls.covered(centres[start : start + _BLOCK])
    starts, edges = balls.graph(progress, budget)
    return _greedy_cover(starts, edges, covered_N, budget, progress)


def coverage_radius(
    features_ND: ArrayLike, *, clusters: int, seed: int, purity: float = 0.95, sample: int = 4096
) -> float:
    """The largest delta whose balls hold points of one k-means cluster alone for at least `purity` of the points.

    features_ND: (N, D), best of unit length; clusters: the number of classes. Measured on `sample` points
    drawn by the seed, against all points. Raises ValueError where all points are in one cluster.
    Source: Yehuda et al. 2022, section 3.3 (there a search over values of delta; this is the value it
    approaches).
    """
    from mal.acquisition.typiclust import k_means

    features = check_features(features_ND, "features")
    if not 0 < purity <= 1:
        raise ValueError(f"purity={purity!r}: must be above 0 and at most 1")
    labels_N = k_means(features, min(clusters, len(features)), seed)
    if len(np.unique(labels_N)) < 2:
        raise ValueError(f"clusters={clusters} gave a single cluster: must be 2 or more, on features that differ")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(features), size=min(sample, len(features)), replace=False))
    norms_N = squared_norms(features, "features")
    nearest = np.full(len(rows), np.inf)
    for start in range(0, len(features), _BLOCK):
        others = slice(start, start + _BLOCK)
        squared = (
            norms_N[rows][:, None] + norms_N[others] - 2 * (features[rows] @ features[others].T).astype(np.float64)
        )
        squared[labels_N[rows][:, None] == labels_N[others]] = np.inf
        nearest = np.minimum(nearest, squared.min(axis=1))
    # A ball is open: it stays pure up to the distance of the nearest point of another cluster.
    ordered = np.sort(np.sqrt(np.maximum(nearest, 0)))
    return float(ordered[len(ordered) - int(np.ceil(purity * len(ordered)))])


class _Balls:
    """Which candidates lie within delta of which points, in float32 products checked in float64 near the edge."""

    def __init__(self, features: NDArray[np.float32], delta: float) -> None:
        self.features_ND, self.limit = features, float(delta) ** 2
        self.norms_N = squared_norms(features, "features")
        self.norms32_N = self.norms_N.astype(np.float32)

    def within(self, points_RD: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(R, N): whether candidate n lies strictly within delta of point r."""
        from mal.acquisition import _kernels

        norms_R = squared_norms(points_RD, "points")
        # The bound of kcenter.py, for the longest pair.
        unit, width = 2.0**-24, points_RD.shape[1]
        reach = (np.sqrt(norms_R.max(initial=0)) + np.sqrt(self.norms_N.max())) ** 2
        error = (width / 2 / max(1 - width * unit, 0.5) + 8) * unit * reach + 1e-30
        squared = points_RD @ self.features_ND.T
        squared *= -2
        squared += norms_R.astype(np.float32)[:, None]
        squared += self.norms32_N
        inside = squared < self.limit - error
        doubtful = np.flatnonzero(~inside & (squared <= self.limit + error))
        _kernels.settle_edges(points_RD, self.features_ND, doubtful, self.limit, inside.reshape(-1))
        return inside

    def covered(self, points_RD: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(N,): whether any of the points is within delta."""
        step = max(1, 2**24 // len(self.features_ND))
        covered_N = np.zeros(len(self.features_ND), dtype=bool)
        for start in range(0, len(points_RD), step):
            covered_N |= self.within(points_RD[start : start + step]).any(axis=0)
        return covered_N

    def estimate(self) -> Estimate:
        """Memory and work of the graph, from the degrees of a sample of candidates."""
        count, width = self.features_ND.shape
        rows = np.unique(np.linspace(0, count - 1, min(_SAMPLE, count)).astype(np.int64))
        step = max(1, 2**24 // count)
        edges = sum(int(self.within(self.features_ND[rows[s : s + step]]).sum()) for s in range(0, len(rows), step))
        return Estimate(
            "probcover",
            memory=int(4 * edges / len(rows) * count) + 200 * 2**20 + 24 * count,
            flops=2.0 * count * count * width,
            alternative="a smaller delta, probcover on a random subset of the candidates, or coreset",
        )

    def graph(self, progress: Progress | None, budget: int) -> tuple[Indices, NDArray[np.int32]]:
        """The neighbours of every candidate, itself among them, in compressed rows."""
        count = len(self.features_ND)
        step = max(1, 2**24 // count)
        degrees, parts = np.zeros(count + 1, dtype=np.int64), []
        for start in range(0, count, step):
            rows, columns = np.nonzero(self.within(self.features_ND[start : start + step]))
            degrees[start + 1 : start + step + 1] = np.bincount(rows, minlength=min(step, count - start))
            parts.append(columns.astype(np.int32))
            report(progress, min(start + step, count), count + budget)
        starts = np.cumsum(degrees)
        edges = np.empty(starts[-1], dtype=np.int32)
        place = 0
        # Freed as they are copied: the graph is never there twice.
        while parts:
            part = parts.pop(0)
            edges[place : place + part.size] = part
            place += part.size
        return starts, edges


def _greedy_cover(
    starts: Indices, edges: NDArray[np.int32], covered_N: NDArray[np.bool_], budget: int, progress: Progress | None
) -> Indices:
    """Lazy greedy: a candidate's count of uncovered neighbours only falls, so a stale one is an upper bound."""
    from mal.acquisition import _kernels

    picks_B = np.empty(budget, dtype=np.int64)
    bounds_N = np.diff(starts)
    taken_N = np.zeros(covered_N.size, dtype=bool)
    step = max(1, budget // 100) if progress else budget
    for done in range(0, budget, step):
        stop = min(budget, done + step)
        _kernels.cover(starts, edges, covered_N, bounds_N, taken_N, picks_B, done, stop)
        report(progress, covered_N.size + stop, covered_N.size + budget)
    return picks_B
