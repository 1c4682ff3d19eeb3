"""The sequential test against its definition, and its false claims and power over simulated sweeps."""

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from analysis import sequential

NAN = math.nan
SWEEPS, METHODS, SEEDS = 1000, 6, 30


def looks(differences: np.ndarray) -> np.ndarray:
    """Evidence after each seed: (..., S) -> (..., S)."""
    return np.stack([sequential.evidence(differences[..., :n]) for n in range(1, differences.shape[-1] + 1)], axis=-1)


def sweeps(better: dict[int, float]) -> np.ndarray:
    """Differences (SWEEPS, METHODS - 1, SEEDS) from the last method; better: methods and by how many of their sd."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(SWEEPS, METHODS, SEEDS)) + 3 * rng.normal(size=(SWEEPS, 1, SEEDS))
    for method, by in better.items():
        values[:, method] += by * math.sqrt(2)
    return values[:, :-1] - values[:, -1:]


@pytest.mark.parametrize("differences", [[1.0, -0.5, 2.0, 0.3], [0.4], [-1.0, -2.0, -1.5], [3.0, 3.0]])
def test_evidence_is_the_ratio_of_mixed_noncentral_t_densities(differences: list[float]) -> None:
    """For two differences or more, the densities of t integrated over delta; one alone tells its sign."""
    d, scale = np.array(differences), sequential.SCALE
    n = len(d)
    if n == 1:
        expected = (
            2
            * scipy.integrate.quad(lambda x: 2 * scipy.stats.norm.pdf(x, scale=scale) * scipy.stats.norm.cdf(x), 0, 50)[
                0
            ]
        )
    else:
        # equal differences have an infinite t; a little noise leaves the evidence as it is
        d = d + (1e-3 * np.array([-1, 1]) if np.ptp(d) == 0 else 0)
        t = math.sqrt(n) * d.mean() / d.std(ddof=1)
        mixed = scipy.integrate.quad(
            lambda x: 2 * scipy.stats.norm.pdf(x, scale=scale) * scipy.stats.nct.pdf(t, n - 1, x * math.sqrt(n)),
            0,
            12,
            limit=200,
        )[0]
        expected = mixed / scipy.stats.t.pdf(t, n - 1)
    assert float(sequential.evidence(np.array(differences))) == pytest.approx(expected, rel=2e-3)


def test_evidence_does_not_depend_on_units_order_or_missing_pairs() -> None:
    d = np.array([1.0, -0.5, 2.0, 0.3])
    one = sequential.evidence(d)
    assert sequential.evidence(1000 * d[::-1]) == pytest.approx(one)
    assert sequential.evidence(np.insert(d, 2, NAN)) == pytest.approx(one)
    assert sequential.evidence(d + 0.1) > one, "a larger mean is more evidence"
    assert sequential.evidence(np.array([NAN, NAN])) == 1
    assert sequential.evidence(np.zeros(5)) == 1, "a tie tells nothing"
    assert np.isfinite(sequential.evidence(np.full(30, 2.0)))


def test_evidence_is_fair_where_there_is_no_difference() -> None:
    found = sequential.evidence(np.random.default_rng(0).normal(size=(200_000, 3)))
    assert found.mean() == pytest.approx(1, abs=0.02)


def test_at_most_one_sweep_in_twenty_ever_makes_a_false_claim() -> None:
    """A thousand sweeps without any difference, five comparisons each, looked at after every one of 30 seeds."""
    found = looks(sweeps({}))
    together = np.array([[sequential.over_all(look) for look in sweep.T] for sweep in found])
    assert (together >= sequential.CLAIM).any(axis=(1, 2)).mean() <= 0.05
    for k in range(METHODS - 1):
        assert (found[:, k] >= sequential.CLAIM).any(axis=-1).mean() <= 0.05
    t = scipy.stats.ttest_1samp
    peeking = np.stack([t(sweeps({})[:, 0, :n], 0, axis=-1).pvalue < 0.05 for n in range(2, SEEDS + 1)])
    assert peeking.any(axis=0).mean() > 0.15, "what it guards against: a t-test looked at after every seed"


def test_what_is_below_is_not_called_above() -> None:
    assert (looks(sweeps({0: -1.0}))[:, 0] >= sequential.CLAIM).any(axis=-1).mean() <= 0.01


def test_true_differences_are_found_and_false_ones_beside_them_are_not() -> None:
    found = looks(sweeps({0: 1.0, 1: 2.0}))
    together = np.array([[sequential.over_all(look) for look in sweep.T] for sweep in found]).swapaxes(1, 2)
    claimed = together >= sequential.CLAIM
    assert claimed[:, 2:].any(axis=(1, 2)).mean() <= 0.05
    assert claimed[:, 0, :20].any(axis=-1).mean() > 0.7
    assert claimed[:, 1, :10].any(axis=-1).mean() > 0.9


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_over_all_is_the_smallest_mean_of_the_sets_that_hold_a_claim(values: list[float]) -> None:
    found = sequential.over_all(np.array(values))
    for k, value in enumerate(values):
        rest = [v for i, v in enumerate(values) if i != k]
        means = [np.mean([value, *s]) for size in range(len(values)) for s in combinations(rest, size)]
        assert found[k] == pytest.approx(min(means))
