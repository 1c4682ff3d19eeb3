"""BADGE against k-means++ over gradient embeddings that are really built."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.acquisition import badge, softmax

seeds = st.integers(0, 2**32 - 1)


def embeddings(probabilities: np.ndarray, features: np.ndarray) -> np.ndarray:
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(errors)), errors.argmax(1)] -= 1
    return np.einsum("nk,nd->nkd", errors, features.astype(np.float64)).reshape(len(errors), -1)


def plain(probabilities: np.ndarray, features: np.ndarray, budget: int, rng: np.random.Generator) -> list[int]:
    points = embeddings(probabilities, features)
    picks = [int(np.argmax((points**2).sum(1)))]
    weights = np.full(len(points), np.inf)
    while len(picks) < budget:
        weights = np.minimum(weights, ((points - points[picks[-1]]) ** 2).sum(1))
        weights[picks] = 0
        if not weights.any():
            weights = np.ones(len(points))
            weights[picks] = 0
            cumulative = np.cumsum(weights)
            weights = np.zeros(len(points))
        else:
            cumulative = np.cumsum(weights)
        picks.append(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")))
    return picks


def problem(seed: int, classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, k, d = int(rng.integers(1, 40)), classes or int(rng.integers(1, 8)), int(rng.integers(1, 10))
    probabilities = softmax(rng.normal(size=(n, k)) * 10 ** rng.uniform(-1, 1.2)).astype(np.float32)
    features = np.maximum(rng.normal(size=(n, d)), -0.5).astype(np.float32)
    copies = rng.integers(0, n, size=n // 3)
    targets = rng.integers(0, n, size=n // 3)
    probabilities[targets], features[targets] = probabilities[copies], features[copies]
    return probabilities, features


@pytest.mark.parametrize("classes", [None, 1, 1000])
def test_exact_mode_picks_as_kmeans_plus_plus_from_the_same_generator(classes: int | None) -> None:
    @settings(deadline=None, max_examples=80 if classes is None else 12)
    @given(seeds)
    def check(seed: int) -> None:
        probabilities, features = problem(seed, classes)
        for budget in {1, len(features), 1 + seed % len(features)}:
            picks = badge(probabilities, features, budget, np.random.default_rng(seed), mode="exact")
            assert picks.tolist() == plain(probabilities, features, budget, np.random.default_rng(seed))

    check()


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_rejection_mode_picks_distinct_positions_of_positive_weight(seed: int) -> None:
    probabilities, features = problem(seed)
    points = embeddings(probabilities, features)
    budget = 1 + seed % len(features)
    picks = badge(probabilities, features, budget, np.random.default_rng(seed)).tolist()
    assert picks == badge(probabilities, features, budget, np.random.default_rng(seed)).tolist()
    assert len(set(picks)) == budget
    assert picks[0] == int(np.argmax((points**2).sum(1)))
    # No duplicate of a pick as long as there is anything else.
    distinct = len(np.unique(points, axis=0))
    assert len(np.unique(points[picks], axis=0)) == min(budget, distinct)


@pytest.mark.parametrize("mode", ["exact", "rejection"])
def test_law_of_the_picks(mode: str) -> None:
    rng = np.random.default_rng(4)
    probabilities = softmax(rng.normal(size=(6, 3))).astype(np.float32)
    features = rng.normal(size=(6, 2)).astype(np.float32)
    points, runs = embeddings(probabilities, features), 3000
    counts = Counter(tuple(badge(probabilities, features, 4, rng, mode=mode).tolist()) for _ in range(runs))
    first = int(np.argmax((points**2).sum(1)))
    statistic, cells = 0.0, 0
    for rest in permutations([i for i in range(6) if i != first], 3):
        chance, picks = 1.0, [first]
        for pick in rest:
            weights = np.min([((points - points[c]) ** 2).sum(1) for c in picks], axis=0)
            chance *= weights[pick] / weights.sum()
            picks.append(pick)
        statistic += (counts[first, *rest] - runs * chance) ** 2 / (runs * chance)
        cells += 1
    assert sum(counts.values()) == runs
    # Chi-square of 59 degrees of freedom: 5 standard deviations above its mean, for a fixed seed.
    assert statistic < cells - 1 + 5 * math.sqrt(2 * (cells - 1))


def test_rejection_refreshes_when_few_proposals_are_left_to_accept() -> None:
    # Two far groups of near copies: after one pick in each, nearly all weight of the past is gone.
    rng = np.random.default_rng(0)
    features = np.repeat(np.array([[1000.0, 0.0], [0.0, 1000.0]], dtype=np.float32), 2000, axis=0)
    features += rng.normal(size=features.shape).astype(np.float32) * 1e-2
    probabilities = np.full((4000, 2), 0.5, dtype=np.float32)
    picks = badge(probabilities, features, 50, rng)
    assert len(set(picks.tolist())) == 50
    assert (picks[0] < 2000) != (picks[1] < 2000)


def test_sure_predictions_carry_no_gradient_and_are_drawn_uniformly_at_last() -> None:
    probabilities = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    features = np.ones((5, 2), dtype=np.float32)
    for mode in ("exact", "rejection"):
        seconds = Counter(
            int(badge(probabilities, features, 5, np.random.default_rng(s), mode=mode)[1]) for s in range(400)
        )
        assert set(seconds) == {1, 2, 3, 4}
        assert min(seconds.values()) > 60


def test_bad_inputs_are_refused() -> None:
    rng = np.random.default_rng(0)
    half, ones = np.full((2, 2), 0.5), np.ones((2, 3))
    with pytest.raises(ValueError, match="rejection, exact"):
        badge(half, ones, 1, rng, mode="fast")
    with pytest.raises(ValueError, match="logits given"):
        badge(half * 4, ones, 1, rng)
    with pytest.raises(ValueError, match="logits given"):
        badge(half * math.nan, ones, 1, rng)
    with pytest.raises(ValueError, match="3 rows and probabilities 2"):
        badge(half, np.ones((3, 3)), 1, rng)
