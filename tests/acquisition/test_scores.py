"""Scores, their ranking, stochastic batches and the estimates, against their definitions."""

import math
import subprocess
import sys
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.acquisition import (
    Estimate,
    PassAccumulator,
    available_memory,
    entropy,
    estimate,
    least_confidence,
    margin,
    softmax,
    stochastic_scores,
    top_b,
    variation_ratio,
)

seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=60)


def random_logits(seed: int, classes: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 30), classes or rng.integers(1, 12)
    return rng.normal(size=shape) * 10 ** rng.uniform(-2, 2.5)


@quick
@given(st.lists(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf]), min_size=1, max_size=40), seeds)
def test_top_b_is_a_stable_sort(scores: list[float], seed: int) -> None:
    for budget in {1, len(scores), 1 + seed % len(scores)}:
        expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:budget]
        assert top_b(scores, budget).tolist() == expected


def test_top_b_refuses_nan_and_impossible_budgets() -> None:
    with pytest.raises(ValueError, match="1 NaN of 2"):
        top_b([0.0, math.nan], 1)
    for budget in (0, 3, 1.5, True):
        with pytest.raises(ValueError, match="from 1 to the 2 candidates"):
            top_b([0.0, 1.0], budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [None, 1, 1000])
def test_uncertainty_from_logits_and_probabilities_is_its_definition(classes: int | None) -> None:
    @settings(deadline=None, max_examples=30)
    @given(seeds)
    def check(seed: int) -> None:
        logits = random_logits(seed, classes)
        powers = [[math.exp(z) for z in row] for row in logits - logits.max(1, keepdims=True)]
        p = np.array([[x / total for x in row] for row, total in ((row, math.fsum(row)) for row in powers)])
        expected_entropy = [-math.fsum(x * math.log(x) for x in row if x > 0) for row in p]
        ordered = np.sort(np.column_stack([p, np.zeros(len(p))]))
        for given_, from_logits in ((logits, True), (p, False)):
            np.testing.assert_allclose(entropy(given_, from_logits=from_logits), expected_entropy, atol=1e-12)
            np.testing.assert_allclose(least_confidence(given_, from_logits=from_logits), 1 - p.max(1), atol=1e-12)
            second = ordered[:, -2] - ordered[:, -1]
            np.testing.assert_allclose(margin(given_, from_logits=from_logits), second, atol=1e-12)
        for function in (entropy, least_confidence, margin):
            on_torch = function(torch.from_numpy(logits), from_logits=True)
            np.testing.assert_allclose(on_torch.numpy(), function(logits, from_logits=True), rtol=1e-12, atol=1e-15)

    check()


def test_sure_predictions_still_have_an_order_from_logits() -> None:
    logits = np.array([[0.0, 50.0], [0.0, 45.0], [0.0, 400.0]], dtype=np.float32)
    for function in (entropy, least_confidence):
        scores = function(logits, from_logits=True)
        assert scores[1] > scores[0] > scores[2] >= 0
    np.testing.assert_allclose(softmax(logits).sum(1), 1)


def test_nan_is_refused_by_every_score() -> None:
    for function in (entropy, least_confidence, margin):
        with pytest.raises(ValueError, match="NaN"):
            function(np.array([[0.5, 0.5], [math.nan, 1.0]]))


def test_equal_highest_classes_have_no_margin() -> None:
    assert margin(np.array([[0.4, 0.4, 0.2], [1.0, 0.0, 0.0]])).tolist() == [0.0, -1.0]


def test_large_predictions_are_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(101, 7))
    whole = entropy(logits, from_logits=True)
    monkeypatch.setattr("mal.acquisition.uncertainty._ROWS", 70)
    np.testing.assert_array_equal(entropy(logits, from_logits=True), whole)
    np.testing.assert_array_equal(entropy(torch.from_numpy(logits), from_logits=True).numpy() - whole < 1e-12, True)


@quick
@given(seeds, st.sampled_from([1, 3, 1000]))
def test_streamed_bald_is_mutual_information(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    passes, count = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    logits = rng.normal(size=(passes, count, classes)) * 4
    p = softmax(logits)
    logs = np.log(np.where(p > 0, p, 1))
    mean = p.mean(0)
    bald = -(mean * np.log(np.where(mean > 0, mean, 1))).sum(-1) + (p * logs).sum(-1).mean(0)
    for values, from_logits in ((logits, True), (p, False), (torch.from_numpy(logits), True)):
        streamed = PassAccumulator()
        for s in range(passes):
            streamed.update(values[s], from_logits=from_logits)
        np.testing.assert_allclose(np.asarray(streamed.bald()), np.maximum(bald, 0), atol=1e-12)
        np.testing.assert_allclose(np.asarray(streamed.mean()), mean, atol=1e-12)
        assert (np.asarray(streamed.bald()) >= 0).all()


def test_accumulator_leaves_its_inputs_alone_and_checks_shapes() -> None:
    p = np.full((2, 2), 0.5)
    passes = PassAccumulator()
    with pytest.raises(ValueError, match="no pass"):
        passes.mean()
    passes.update(p)
    passes.update(p)
    assert (p == 0.5).all()
    with pytest.raises(ValueError, match=r"pass 3 has shape \(1, 2\): must be \(2, 2\)"):
        passes.update(p[:1])


@quick
@given(seeds)
def test_variation_ratio_counts_the_votes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    votes = rng.integers(0, int(rng.choice([1, 2, 3, 1000])), size=(rng.integers(1, 8), rng.integers(1, 10)))
    expected = [1 - Counter(column.tolist()).most_common(1)[0][1] / len(votes) for column in votes.T]
    np.testing.assert_allclose(variation_ratio(votes), expected)
    np.testing.assert_allclose(variation_ratio(torch.from_numpy(votes)), expected)


@pytest.mark.parametrize(("kind", "weights"), [
    ("power", lambda s, beta: s**beta),
    ("softmax", lambda s, beta: np.exp(beta * s)),
    ("softrank", lambda s, beta: np.array([3.0, 1.0, 2.0]) ** -beta),
])  # fmt: skip
def test_stochastic_batches_are_draws_without_replacement(kind: str, weights: object) -> None:
    scores, beta, runs = np.array([0.2, 1.5, 0.7]), 1.7, 6000
    rng = np.random.default_rng(1)
    counts = Counter(
        tuple(top_b(stochastic_scores(scores, rng, kind=kind, beta=beta), 2).tolist()) for _ in range(runs)
    )
    w = weights(scores, beta)  # type: ignore[operator]
    for first, second in permutations(range(3), 2):
        chance = w[first] / w.sum() * w[second] / (w.sum() - w[first])
        assert abs(counts[first, second] - runs * chance) < 4.5 * math.sqrt(runs * chance * (1 - chance))


def test_stochastic_scores_at_the_ends_of_beta() -> None:
    scores = np.array([0.0, 3.0, 1.0, -1.0])
    rng = np.random.default_rng(0)
    assert top_b(stochastic_scores(scores, rng, kind="softmax", beta=math.inf), 4).tolist() == [1, 2, 0, 3]
    assert set(top_b(stochastic_scores(scores, rng), 2).tolist()) == {1, 2}  # scores of 0 or less never before others
    assert np.isfinite(stochastic_scores(scores, rng, beta=0)).all()
    with pytest.raises(ValueError, match="power, softmax, softrank"):
        stochastic_scores(scores, rng, kind="cold")


def test_estimates_refuse_naming_the_alternative() -> None:
    image_net = {"candidates": 1_281_167, "budget": 64_058, "dimensions": 512, "classes": 1000}
    with pytest.raises(ValueError, match=r"batchbald needs .* GiB .* use power_bald"):
        estimate("batchbald", passes=25, **image_net).require(64 * 2**30, inputs_loaded=False)
    coreset = estimate("coreset", labelled=64_058, **image_net)
    coreset.require(8 * 2**30, inputs_loaded=False)
    assert coreset.memory < coreset.inputs
    assert "coreset" in str(coreset)
    # Nothing of size N x K x D, whatever the acquisition: that is 2.6 TB.
    for name in ("badge", "badge_exact", "bald", "entropy", "typiclust"):
        needs = estimate(name, **image_net)
        assert needs.memory + needs.inputs < 16 * 2**30
        assert needs.seconds() > 0
    with pytest.raises(ValueError, match="must be one of badge, badge_exact, bald"):
        estimate("bagde", candidates=1, budget=1)


def test_available_memory_is_that_of_this_machine() -> None:
    import psutil

    assert 0 < available_memory() <= psutil.virtual_memory().total
    Estimate("small", 1, 1.0, "nothing").require(available_memory())


def test_importing_the_package_costs_no_torch_no_numba_no_sklearn() -> None:
    code = "import sys, mal.acquisition; print([m for m in ('torch', 'numba', 'sklearn', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
