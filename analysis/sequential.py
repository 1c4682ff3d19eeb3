"""A test of "is A above B?" that may be looked at after every seed, with at most 5% false claims over all looks."""

from __future__ import annotations

import numpy as np
from scipy import special

from analysis.stats import Array

# Of the prior on the standardised difference: the best of 0.5, 1, 2, 3 and 5 at five seeds, where seeds are few
# (benchmarks/sequential.py prints the power of each).
SCALE = 2.0
CLAIM = 20.0  # evidence that allows the claim at 5%


def evidence(differences: Array, scale: float = SCALE) -> Array:
    """Evidence (an e-value) that the mean of paired differences is above zero, along the last axis; NaN are no pairs.

    The mixture sequential t-test, one-sided: the likelihood ratio of the scale-free data (the right Haar prior on the
    standard deviation) between a standardised difference delta ~ |N(0, scale^2)| and delta = 0. For n normal
    differences with the sum S and the sum of squares A, and c = S / sqrt(A (n + scale^-2)), the integrals give

        2 (1 + n scale^2)^(-1/2) (1 - c^2)^(-n/2) T_n(c sqrt(n / (1 - c^2))),    T_n: Student's distribution function.

    Where delta = 0 it is a martingale in n that starts at 1, so that by Ville's inequality it ever reaches 20 with a
    probability of at most 5%, however often one looks and whenever one stops. Where delta < 0 it is smaller for every
    outcome, since it grows with t and t grows with the mean. It does not depend on the order of the seeds; when a look
    is taken must not depend on differences that are not yet counted. 1 without a pair, or with differences all zero.
    Heavy tails and bounds keep it below 5%; strong skew, with rare large losses, does not (benchmarks/sequential.py).

    Source: Lai 1976, On confidence sequences; Hendriksen, de Heide and Grünwald 2021, Optional stopping with Bayes
    factors (the martingale under the right Haar prior); Grünwald, de Heide and Koolen 2024, Safe testing.
    """
    n = np.sum(~np.isnan(differences), axis=-1)
    total, squares = np.nansum(differences, axis=-1), np.nansum(differences**2, axis=-1)
    known = squares > 0
    c = total / np.sqrt(np.where(known, squares, 1.0) * (n + scale**-2))
    spread = 1 - c**2
    quantile = c * np.sqrt(np.maximum(n, 1) / spread)
    found = 2 / np.sqrt(1 + n * scale**2) * spread ** (-n / 2) * special.stdtr(np.maximum(n, 1), quantile)
    return np.where(known, found, 1.0)


def over_all(evidences: Array) -> Array:
    """Evidence (K,) of each of K claims that stands when all are made at once: any false claim has at most 5%.

    The smallest mean of any set of the claims that holds the one (the closure of the arithmetic mean, which needs no
    independence and is never below a K-th). Source: Vovk and Wang 2021, E-values: calibration, combination and
    applications, section 5.
    """
    order = np.sort(evidences)
    adjusted = evidences.astype(float)
    sums = np.concatenate([[0.0], np.cumsum(order)])
    for k in range(1, len(order)):  # the k smallest others join; where the claim is among them, k + 1 are no smaller
        with_others = (evidences + sums[k]) / (k + 1)
        among = evidences <= order[k - 1]
        adjusted = np.minimum(adjusted, np.where(among, sums[k] / k, with_others))
    return adjusted
