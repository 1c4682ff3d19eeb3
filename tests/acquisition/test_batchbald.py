"""BatchBALD against joint entropies over all configurations, and what it must never do."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.acquisition import batchbald, joint_information, softmax

seeds = st.integers(0, 2**32 - 1)


def information(batch: np.ndarray) -> float:
    """I(labels; parameters) of a batch (B, S, K), by its definition: H(y_1..B) - mean over samples of sum of H(y_i)."""
    joint = 0.0
    for labels in product(range(batch.shape[2]), repeat=len(batch)):
        chance = np.prod([batch[i, :, y] for i, y in enumerate(labels)], axis=0).mean()
        joint -= chance * np.log(chance) if chance > 0 else 0
    logs = np.log(np.where(batch > 0, batch, 1))
    return float(joint + (batch * logs).sum(2).mean(1).sum())


def plain(probabilities: np.ndarray, budget: int) -> list[int]:
    picks: list[int] = []
    for _ in range(budget):
        scores = np.array([
            -np.inf if i in picks else information(probabilities[[*picks, i]]) for i in range(len(probabilities))
        ])  # fmt: skip
        picks.append(int(np.flatnonzero(scores >= scores.max() - 1e-10)[0]))
    return picks


def problem(seed: int, n: int, s: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(n, s, k)) * 10 ** rng.uniform(-0.5, 1))
    p[rng.integers(0, n, size=n // 3)] = p[rng.integers(0, n, size=n // 3)]
    return np.asarray(p)


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_picks_maximise_the_joint_information(seed: int, samples: int, classes: int, lazy: bool) -> None:
    p = problem(seed, 8, samples, classes)
    budget = 3
    picks = batchbald(p, budget, np.random.default_rng(0), configurations=classes**budget, lazy=lazy).tolist()
    assert len(set(picks)) == budget
    expected = plain(p, budget)
    # A tie of the definition may be broken by its rounding: then the information is the same.
    if picks != expected:
        assert information(p[picks]) == pytest.approx(information(p[expected]), abs=1e-6)
    assert joint_information(p[picks], np.random.default_rng(0)) == pytest.approx(information(p[picks]), abs=1e-9)


def test_sampled_configurations_agree_with_the_exact_joint() -> None:
    p = problem(5, 9, 8, 3)
    exact = joint_information(p, np.random.default_rng(0), configurations=3**9)
    assert exact == pytest.approx(information(p), abs=1e-9)
    sampled = [joint_information(p, np.random.default_rng(s), configurations=500) for s in range(20)]
    assert np.mean(sampled) == pytest.approx(exact, abs=4 * np.std(sampled) / np.sqrt(20) + 1e-6)


def test_batches_from_samples_inform_as_well_as_those_from_the_exact_joint() -> None:
    p = problem(7, 60, 10, 3)
    rng = np.random.default_rng
    exact = batchbald(p, 7, rng(0), configurations=3**7)
    for lazy in (True, False):
        sampled = batchbald(p, 7, rng(1), configurations=400, lazy=lazy)
        ratio = joint_information(p[sampled], rng(2)) / joint_information(p[exact], rng(2))
        assert ratio > 0.98


def test_b_is_one_b_is_n_and_a_thousand_classes() -> None:
    p = problem(3, 5, 4, 1000).astype(np.float32)
    bald = [information(p[i : i + 1].astype(np.float64)) for i in range(5)]
    assert batchbald(p, 1, np.random.default_rng(0)).tolist() == [int(np.argmax(bald))]
    for budget in (2, 5):
        assert len(set(batchbald(p, budget, np.random.default_rng(0)).tolist())) == budget


def test_one_class_and_equal_candidates_go_by_lowest_position() -> None:
    assert batchbald(np.ones((4, 3, 1)), 4, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]
    same = np.repeat(problem(0, 1, 5, 4), 6, axis=0)
    assert batchbald(same, 6, np.random.default_rng(0), configurations=4**6).tolist() == [0, 1, 2, 3, 4, 5]


def test_sure_predictions_and_long_batches_never_give_nan() -> None:
    rng = np.random.default_rng(0)
    # Joint probabilities of 300 labels of 10 classes are far below the smallest float64.
    p = softmax(rng.normal(size=(300, 6, 10)) * np.where(rng.random((300, 1, 1)) < 0.3, 60, 1)).astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        picks = batchbald(p, 300, np.random.default_rng(0), configurations=200)
        total = joint_information(p, np.random.default_rng(0), configurations=200)
    assert sorted(picks.tolist()) == list(range(300))
    assert 0 <= total <= np.log(6) + 1e-12


def test_a_settled_batch_goes_on_by_bald() -> None:
    # Two samples that the first candidate tells apart: what is left is ordered by BALD.
    p = np.array([[[0.6, 0.4], [0.4, 0.6]], [[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]], [[0.8, 0.2], [0.2, 0.8]]])
    assert batchbald(p, 4, np.random.default_rng(0)).tolist() == [1, 3, 0, 2]


def test_bad_inputs_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="must have 3 axes"):
        batchbald(np.ones((2, 1)), 1, rng)
    with pytest.raises(ValueError, match="logits given"):
        batchbald(np.full((2, 2, 2), np.nan), 1, rng)
    with pytest.raises(ValueError, match="configurations=0"):
        batchbald(np.ones((2, 1, 1)), 1, rng, configurations=0)
