"""TypiClust and ProbCover against their definitions, spelt out in loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.acquisition import coverage_radius, probcover, typiclust
from mal.acquisition.typiclust import k_means, most_typical

seeds = st.integers(0, 2**32 - 1)


def plain_typical(
    features: np.ndarray, clusters: np.ndarray, labelled: np.ndarray, budget: int, neighbours: int, smallest: int
) -> list[int]:
    free = {c: [int(i) for i in np.flatnonzero(clusters == c)] for c in range(len(labelled))}
    order = sorted(free, key=lambda c: (labelled[c], -len(free[c]), c))
    large = [c for c in order if len(free[c]) >= smallest]
    small = [c for c in order if 0 < len(free[c]) < smallest]
    picks: list[int] = []
    for group in (large, small):
        while any(free[c] for c in group) and len(picks) < budget:
            for c in group:
                if free[c] and len(picks) < budget:
                    picks.append(most_typical_of(features.astype(np.float64), free[c], neighbours))
                    free[c].remove(picks[-1])
    return picks


def most_typical_of(features: np.ndarray, members: list[int], neighbours: int) -> int:
    count = max(1, min(neighbours, len(members) // 2))
    best, least = members[0], math.inf
    for i in members:
        distances = sorted(float(np.linalg.norm(features[i] - features[j])) for j in members if j != i)
        spread = sum(distances[:count]) / count if distances else 0.0
        if spread < least - 1e-12:
            best, least = i, spread
    return best


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_typical_candidates_are_those_of_the_definition(seed: int, neighbours: int, smallest: int) -> None:
    rng = np.random.default_rng(seed)
    n, count = int(rng.integers(1, 50)), int(rng.integers(1, 6))
    features = (rng.normal(size=(n, 3)) * 5).astype(np.float32)
    features[rng.integers(0, n, size=n // 4)] = features[0]
    clusters, labelled = rng.integers(0, count, size=n), rng.integers(0, 3, size=count)
    for budget in {1, n, 1 + seed % n}:
        picks = most_typical(features, clusters, labelled, budget, neighbours=neighbours, smallest=smallest)
        assert picks.tolist() == plain_typical(features, clusters, labelled, budget, neighbours, smallest)


def test_typiclust_visits_unlabelled_clusters_first() -> None:
    rng = np.random.default_rng(0)
    places = np.array([[0, 0], [100, 0], [0, 100], [100, 100]])
    features = np.concatenate(
        [p + rng.normal(size=(size, 2)) for p, size in zip(places, (40, 30, 20, 10), strict=True)]
    )
    picks = typiclust(features, features[:1], 3, seed=0)
    assert [int(np.searchsorted([40, 70, 90], p, side="right")) for p in picks] == [1, 2, 3]
    assert picks.tolist() == typiclust(features, features[:1], 3, seed=0).tolist()
    assert len(typiclust(features, None, 100, seed=1)) == len(set(typiclust(features, None, 100, seed=1).tolist()))


@pytest.mark.parametrize("clusters", [1, 10, 80])
def test_kmeans_gives_every_point_a_cluster(clusters: int) -> None:
    points = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    labels = k_means(points, clusters, 0)
    assert labels.shape == (300,)
    assert labels.min() >= 0
    assert labels.max() < clusters
    np.testing.assert_array_equal(labels, k_means(points, clusters, 0))


def plain_cover(features: np.ndarray, centres: np.ndarray, budget: int, delta: float) -> list[int]:
    def near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float64), b.astype(np.float64)
        return ((a[:, None] - b) ** 2).sum(2) < delta**2

    graph = near(features, features)
    uncovered = ~near(features, centres).any(1)
    picks: list[int] = []
    for _ in range(budget):
        degrees = (graph & uncovered).sum(1)
        degrees[picks] = -1
        picks.append(int(np.argmax(degrees)))
        uncovered &= ~graph[picks[-1]]
    return picks


@settings(deadline=None, max_examples=60)
@given(seeds, st.booleans())
def test_probcover_is_greedy_maximum_coverage(seed: int, lattice: bool) -> None:
    rng = np.random.default_rng(seed)
    n, m, d = int(rng.integers(1, 60)), int(rng.integers(0, 5)), int(rng.integers(1, 4))
    points = rng.integers(0, 4, size=(n + m, d)) if lattice else rng.normal(size=(n + m, d)) + 50
    points = points.astype(np.float32)
    # On the lattice delta is met exactly by many pairs, which are then outside.
    delta = float(rng.choice([1.0, 2.0, 3.0])) if lattice else float(rng.uniform(0.05, 3))
    for budget in {1, n, 1 + seed % n}:
        picks = probcover(points[:n], points[n:], budget, delta=delta)
        assert picks.tolist() == plain_cover(points[:n], points[n:], budget, delta)


def test_probcover_reports_and_refuses() -> None:
    points = np.random.default_rng(0).normal(size=(500, 2))
    seen: list[tuple[int, int]] = []
    probcover(points, None, 20, delta=0.5, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (520, 520)
    with pytest.raises(ValueError, match=r"probcover needs .* a smaller delta"):
        probcover(points, None, 5, delta=0.5, memory=1000)
    for delta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="coverage_radius"):
            probcover(points, None, 5, delta=delta)


def test_coverage_radius_is_the_largest_pure_one() -> None:
    rng = np.random.default_rng(2)
    features = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 6]).astype(np.float32)
    labels = k_means(features, 2, 0)
    gaps = np.linalg.norm(features[:, None].astype(np.float64) - features, axis=2)

    def purity(delta: float) -> float:
        return float(np.mean([(labels[row < delta] == labels[i]).all() for i, row in enumerate(gaps)]))

    for wanted in (0.5, 0.9, 1.0):
        delta = coverage_radius(features, clusters=2, seed=0, purity=wanted)
        assert purity(delta - 1e-3) >= wanted > purity(delta + 1e-3)
    with pytest.raises(ValueError, match="single cluster"):
        coverage_radius(np.ones((5, 2)), clusters=1, seed=0)
