"""Statistics of learning curves, paired by seed; numpy and scipy.special only, so that a report starts quickly.

Arrays carry their axes in this order: M methods, S seeds, R rounds; NaN where there is no value. A pair exists only
where both methods have a value for the same seed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import special

Array = np.ndarray
LEVEL, POWER = 0.05, 0.8  # of tests, and with what probability they are to find the difference that is claimed
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Tests:
    """Paired two-sided t-tests. mean: of the differences; t, p: NaN with fewer than two pairs; n: number of pairs."""

    mean: Array
    t: Array
    p: Array
    n: Array


def summary(values: Array, axis: int = -1) -> tuple[Array, Array, Array]:
    """Mean, standard deviation (ddof=1) and count of the values that are there; NaN for no value, std NaN for one."""
    count = np.sum(~np.isnan(values), axis=axis)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an empty slice, or one value: NaN is the answer
        return np.nanmean(values, axis=axis), np.nanstd(values, axis=axis, ddof=1), count


def paired_tests(differences: Array) -> Tests:
    """Student's paired t-test along the last axis (seeds), NaN pairs left out.

    All differences zero (a tie): t = 0, p = 1. All equal but not zero: t infinite, p = 0, as scipy.stats.ttest_rel.
    """
    mean, std, n = summary(differences)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / (std / np.sqrt(n))
        tie = (n > 1) & (mean == 0) & (std == 0)
        t = np.where(tie, 0.0, np.where(n > 1, t, np.nan))
        p = 2 * special.stdtr(np.maximum(n - 1, 1), -np.abs(t))
    return Tests(mean, t, np.where(np.isnan(t), np.nan, p), n)


def t_half_width(differences: Array, level: float = 0.95) -> Array:
    """Half the width of Student's interval of the mean along the last axis; NaN with fewer than two values."""
    _, std, n = summary(differences)
    with np.errstate(divide="ignore", invalid="ignore"):
        width = special.stdtrit(np.maximum(n - 1, 1), (1 + level) / 2) * std / np.sqrt(n)
    return np.where(n > 1, width, np.nan)


def t_interval(differences: Array) -> tuple[Array, Array]:
    """Student's 95% interval of the mean of paired differences along the last axis; NaN below two pairs.

    Of few pairs it holds the true mean as often as it says, where a bootstrap over seeds does not: of five, 95% against
    84% (benchmarks/coverage.py).
    """
    mean, half = summary(differences)[0], t_half_width(differences)
    return mean - half, mean + half


def seeds_needed(std: Array, difference: float, level: float = LEVEL, power: float = POWER) -> Array:
    """Pairs with which a two-sided paired t-test finds a true `difference` with probability `power`; same shape as std.

    std: of the paired differences. NaN where it is NaN, infinity beyond 10,000. From the noncentral t distribution.
    """
    std = np.asarray(std, float)
    needed = np.full(std.shape, np.inf)
    n = np.arange(2, MOST_SEEDS + 1)
    critical = special.stdtrit(n - 1, 1 - level / 2)
    for at in np.ndindex(std.shape):
        if np.isnan(std[at]):
            needed[at] = np.nan
            continue
        low, high = 0, len(n)  # the power grows with the number of pairs
        while low < high:
            k = (low + high) // 2
            enough = _power(int(n[k]), float(critical[k]), difference, float(std[at])) >= power
            low, high = (low, k) if enough else (k + 1, high)
        needed[at] = n[low] if low < len(n) else np.inf
    return needed


def _power(n: int, critical: float, difference: float, std: float) -> float:
    """Of a two-sided paired t-test with n pairs whose differences have this mean and standard deviation.

    The other side, a significant difference of the wrong sign, is left out: at a power worth having it is nothing.
    """
    shift = np.sqrt(n) * abs(difference) / std if std else np.inf
    if shift > critical + 30:  # beyond what nctdtr can compute, where the power is 1
        return 1.0
    return float(1 - special.nctdtr(n - 1, shift, critical))


def holm(p: Array) -> Array:
    """Holm's (1979) step-down adjusted p-values over all entries that are not NaN; same shape."""
    flat = p.ravel()
    known = np.flatnonzero(~np.isnan(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    adjusted = np.full(flat.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted.reshape(p.shape)


def family_tests(differences: Array) -> tuple[Tests, Array]:
    """Paired t-tests of all comparisons (K, S) of a claim, and Holm's adjusted p over them (K,).

    Comparisons with the same differences for every seed, such as those of two methods that are the same, count once.
    """
    tests = paired_tests(differences)
    rows = np.where(np.isnan(differences), np.inf, differences)  # NaN equals nothing, not even another one
    _, first, same = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    once = np.full(len(differences), np.nan)
    once[first] = tests.p[first]
    return tests, holm(once)[first][same.ravel()]


def area_under_budget(labeled: Array, values: Array) -> Array:
    """Area under the budget curve along the last axis, over the range of labels: a mean accuracy, in percent.

    Trapezoids; NaN for a curve with a gap or with fewer than two rounds.
    """
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):
        return np.trapezoid(values, labeled, axis=-1) / (labeled[..., -1] - labeled[..., 0])


def labels_to_reach(labeled: Array, values: Array, target: float) -> float:
    """Labels at which one seed's curve first reaches `target`, linearly interpolated between rounds.

    labeled, values: (R,); rounds without a value are skipped. The first round's labels where it is there from the start
    (an upper bound), infinity where it is not reached, NaN for no curve.
    """
    known = ~np.isnan(values) & ~np.isnan(labeled)
    x, y = labeled[known], values[known]
    if not len(y) or np.isnan(target):
        return float("nan")
    above = np.flatnonzero(y >= target)
    if not len(above):
        return float("inf")
    k = int(above[0])
    if k == 0:
        return float(x[0])
    return float(x[k - 1] + (target - y[k - 1]) / (y[k] - y[k - 1]) * (x[k] - x[k - 1]))


def badge_rounds(values: Array, random: int | None) -> list[int]:
    """The rounds that BADGE (Ash et al. 2020) compares: budgets M + 2^(m-1) B, that is rounds 1, 2, 4, 8, ...

    values: (M, S, R). random: the index of random sampling; its first round at 99% of its final mean is the last one
    that may count, because all methods meet later. Without random sampling no round is cut.
    """
    count = values.shape[-1]
    last = count - 1
    if random is not None:
        mean = summary(values[random], axis=0)[0]
        known = np.flatnonzero(~np.isnan(mean))
        if len(known):
            last = int(np.flatnonzero(mean >= 0.99 * mean[known[-1]])[0])
    powers = [2**m for m in range(count.bit_length()) if 2**m < count]
    return [r for r in powers if r <= max(last, 1)]


def penalty_matrix(values: Array, correct: bool = False, alpha: float = 0.05) -> Array:
    """BADGE's pairwise penalty matrix of one setting: P[i, j] grows by 1/R for each round in which i beats j.

    values: (M, S, R), only the rounds that count. "Beats": a higher mean and a paired two-sided t-test below alpha.
    correct: Holm's correction over all pairs and rounds. A column's mean over the other methods is how often the
    method is beaten (lower is better); matrices of several settings add up. Zero where fewer than two pairs exist.
    """
    methods, _, rounds = values.shape
    matrix = np.zeros((methods, methods))
    pairs = list(combinations(range(methods), 2))
    if not pairs or not rounds:
        return matrix
    i, j = np.array(pairs).T
    tests = paired_tests(np.moveaxis(values[i] - values[j], 1, -1))  # (pairs, R)
    p = holm(tests.p) if correct else tests.p
    with np.errstate(invalid="ignore"):
        matrix[i, j] = np.sum((p < alpha) & (tests.mean > 0), axis=1) / rounds
        matrix[j, i] = np.sum((p < alpha) & (tests.mean < 0), axis=1) / rounds
    return matrix


def significantly_best(values: Array, alpha: float = 0.05) -> int | None:
    """The method whose mean is highest and differs from every other's, or None.

    values: (M, S). Paired t-tests of the best against each other method with Holm's correction; a method that cannot be
    tested (fewer than two common seeds) leaves nobody significantly best, and so does having no rival.
    """
    mean, _, count = summary(values)
    rivals = [m for m in range(len(values)) if count[m]]
    if len(rivals) < 2:
        return None
    best = max(rivals, key=lambda m: mean[m])
    others = [m for m in rivals if m != best]
    tests = paired_tests(values[best] - values[others])
    adjusted = holm(tests.p)
    return best if np.all(adjusted < alpha) and np.all(tests.mean > 0) else None
