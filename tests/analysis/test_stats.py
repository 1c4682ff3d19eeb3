"""Statistics of learning curves against scipy, against hand-made answers, and where there is no answer."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from analysis import stats

NAN = math.nan


def test_summary_counts_only_what_is_there() -> None:
    mean, std, count = stats.summary(np.array([[1.0, 2.0, NAN, 6.0], [5.0, NAN, NAN, NAN], [NAN] * 4]))
    assert mean.tolist()[:2] == [3.0, 5.0]
    assert std[0] == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / 2
    assert np.isnan(std[1:]).all()
    assert math.isnan(mean[2])
    assert count.tolist() == [3, 1, 0]


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_paired_tests_agree_with_scipy(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(70, 2, (3, n)), rng.normal(71, 2, (3, n))
    expected = scipy.stats.ttest_rel(a, b, axis=1)
    found = stats.paired_tests(a - b)
    np.testing.assert_allclose(found.t, expected.statistic)
    np.testing.assert_allclose(found.p, expected.pvalue)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(stats.t_half_width(a - b), (interval.high - interval.low) / 2)


def test_paired_tests_leave_out_pairs_with_a_missing_side() -> None:
    differences = np.array([1.0, NAN, 2.0, 4.0])
    expected = scipy.stats.ttest_1samp([1.0, 2.0, 4.0], 0)
    found = stats.paired_tests(differences)
    assert found.n == 3
    assert found.p == pytest.approx(expected.pvalue)


def test_paired_tests_at_the_edges() -> None:
    found = stats.paired_tests(np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [1.0, NAN, NAN], [NAN, NAN, NAN]]))
    assert found.p[0] == 1.0, "a tie is no difference"
    assert found.p[1] == 0.0, "the same difference in each pair, as scipy has it"
    assert np.isnan(found.p[2:]).all(), "one pair tests nothing"
    assert found.n.tolist() == [3, 3, 1, 0]
    assert np.isnan(stats.t_half_width(np.array([1.0, NAN])))


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; never falling: 0.04, 0.06, 0.06, 0.06
    adjusted = stats.holm(np.array([[0.04, 0.01], [NAN, 0.03], [0.02, NAN]]))
    np.testing.assert_allclose(adjusted, [[0.06, 0.04], [NAN, 0.06], [0.06, NAN]])
    assert stats.holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_step_by_step(p: list[float]) -> None:
    """The adjusted values reject what the step-down procedure rejects."""
    rejected = set()
    for step, k in enumerate(np.argsort(p, kind="stable")):
        if p[k] * (len(p) - step) > 0.05:
            break
        rejected.add(int(k))
    assert set(np.flatnonzero(stats.holm(np.array(p)) <= 0.05)) == rejected


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(n: int) -> None:
    """20,000 sweeps: 95% within four standard errors; a bootstrap over five seeds has 84%."""
    low, high = stats.t_interval(np.random.default_rng(n).normal(1.5, 2.0, (20_000, n)))
    assert np.mean((low <= 1.5) & (high >= 1.5)) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 20_000))


def test_the_interval_is_that_of_scipy_and_leaves_out_missing_pairs() -> None:
    differences = np.array([1.0, 2.5, NAN, 4.0, 3.0])
    expected = scipy.stats.ttest_1samp(differences[~np.isnan(differences)], 0).confidence_interval(0.95)
    assert stats.t_interval(differences) == pytest.approx(tuple(expected))
    assert np.isnan(stats.t_interval(np.array([3.0, NAN]))).all()


def test_seeds_needed_are_the_textbooks() -> None:
    """Cohen's small, medium and large effects of a paired t-test, two-sided, 5%, power 80%: 199, 34 and 15 pairs."""
    needed = stats.seeds_needed(np.array([5.0, 2.0, 1.25, 1.0, NAN, 0.0, 1e6]), 1.0)
    np.testing.assert_array_equal(needed, [199, 34, 15, 10, NAN, 2, np.inf])
    assert stats.seeds_needed(np.array(2.0), 2.0) == 10
    assert stats.seeds_needed(np.array(1.0), 1.0, level=0.05 / 5) > 10


def test_seeds_needed_give_that_power() -> None:
    n = int(stats.seeds_needed(np.array(1.7), 2.0))
    draws = np.random.default_rng(0).normal(2.0, 1.7, (20_000, n))
    assert 0.79 < np.mean(stats.paired_tests(draws).p < 0.05) < 0.9
    assert np.mean(stats.paired_tests(draws[:, :-1]).p < 0.05) < 0.8


def test_a_comparison_that_is_there_twice_counts_once() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, (2, 5))
    a[4] = NAN
    tests, adjusted = stats.family_tests(np.stack([a, b, a, np.full(5, NAN)]))
    np.testing.assert_allclose(adjusted[:2], stats.holm(tests.p[:2]))
    assert adjusted[2] == adjusted[0]
    assert np.isnan(adjusted[3])


def test_area_under_budget_by_hand() -> None:
    labeled = np.array([100.0, 200.0, 400.0])
    # ((50 + 60) / 2 * 100 + (60 + 80) / 2 * 200) / 300
    assert stats.area_under_budget(labeled, np.array([50.0, 60.0, 80.0])) == pytest.approx(65.0)
    gap = stats.area_under_budget(np.tile(labeled, (2, 1)), np.array([[70.0, 70.0, 70.0], [50.0, NAN, 80.0]]))
    np.testing.assert_allclose(gap, [70.0, NAN])
    assert np.isnan(stats.area_under_budget(labeled[:1], np.array([50.0])))


@pytest.mark.parametrize(
    ("values", "target", "labels"),
    [
        ([50, 60, 80], 70.0, 300.0),  # half way between 200 and 400
        ([50, 60, 80], 60.0, 200.0),
        ([50, 60, 80], 45.0, 100.0),  # there from the start
        ([50, 60, 80], 81.0, math.inf),
        ([50, 70, 60], 65.0, 175.0),  # the first crossing counts, though it falls again
        ([50, NAN, 80], 65.0, 250.0),  # a round without a value is bridged
        ([NAN, NAN, NAN], 65.0, NAN),
        ([50, 60, 80], NAN, NAN),
    ],
)
def test_labels_to_reach(values: list[float], target: float, labels: float) -> None:
    found = stats.labels_to_reach(np.array([100.0, 200.0, 400.0]), np.array(values, float), target)
    assert found == pytest.approx(labels, nan_ok=True)


def test_badge_compares_powers_of_two_while_random_still_learns() -> None:
    random = 50 + 40 * (1 - np.exp(-np.arange(12) / 2.0))
    values = np.stack([np.tile(random + 2, (5, 1)), np.tile(random, (5, 1))])
    assert stats.badge_rounds(values, None) == [1, 2, 4, 8]
    late = int(np.argmax(random >= 0.99 * random[-1]))
    assert late == 8
    assert stats.badge_rounds(values, 1) == [1, 2, 4, 8]
    assert stats.badge_rounds(values[..., :7], 1) == [1, 2, 4]
    flat = np.full_like(values, 70.0)
    assert stats.badge_rounds(flat, 1) == [1], "saturated at once: the first query is all that is left"
    assert stats.badge_rounds(values[..., :1], 1) == []


def test_penalty_matrix_by_hand() -> None:
    """Three methods, five seeds, two rounds: 0 beats 1 in one of two rounds, 2 ties with 1 and beats nobody."""
    wobble = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    base = np.tile([60.0, 70.0], (5, 1)) + np.random.default_rng(0).normal(0, 3, (5, 1))
    first = base + np.stack([1 + wobble, wobble], axis=1)  # clearly better in round 0 alone
    values = np.stack([first, base, base])
    np.testing.assert_allclose(stats.penalty_matrix(values), [[0, 0.5, 0.5], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(stats.penalty_matrix(values, correct=True), [[0, 0.5, 0.5], [0, 0, 0], [0, 0, 0]])
    t = math.sqrt(5) * 1.0 / wobble.std(ddof=1)
    assert t > 2.776, "BADGE's critical value for five seeds"


def test_penalty_agrees_with_badge_critical_value_and_holm_is_stricter() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(70, 1, (4, 5, 6)) + np.array([0.9, 0.5, 0.2, 0.0])[:, None, None]
    expected = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            d = values[i] - values[j]
            with np.errstate(invalid="ignore"):
                t = math.sqrt(5) * d.mean(axis=0) / d.std(axis=0, ddof=1)
            expected[i, j] = np.mean(t > 2.776)
    np.testing.assert_allclose(stats.penalty_matrix(values), expected)
    assert expected.any()
    assert np.all(stats.penalty_matrix(values, correct=True) <= expected)


def test_penalty_needs_two_common_seeds() -> None:
    values = np.full((2, 3, 1), NAN)
    values[0, :, 0], values[1, 0, 0] = [80, 81, 82], 60
    assert not stats.penalty_matrix(values).any()


def test_significantly_best() -> None:
    seeds = np.array([-1.0, 0.0, 1.0, 2.0, -2.0])
    noise = np.array([0.1, -0.1, 0.05, 0.0, -0.05])
    clear = np.stack([70 + seeds, 75 + seeds + noise, 72 + seeds - noise])
    assert stats.significantly_best(clear) == 1, "seeds vary by more than methods do, pairs tell them apart"
    assert stats.significantly_best(clear[[0, 0]]) is None, "a tie has no best"
    assert stats.significantly_best(clear[:, :1]) is None, "one seed tests nothing"
    assert stats.significantly_best(clear[:1]) is None, "no rival"
    lonely = clear.copy()
    lonely[2, 1:] = NAN
    assert stats.significantly_best(lonely) is None, "a rival that cannot be tested"


def test_pairs_matter() -> None:
    """The same numbers in another row order give another test: pairing is by seed."""
    seeds = np.arange(5.0)
    better = seeds + 0.5 + np.array([0.01, -0.01, 0.0, 0.02, -0.02])
    assert stats.significantly_best(np.stack([seeds, better])) == 1
    assert stats.significantly_best(np.stack([seeds, better[::-1]])) is None
