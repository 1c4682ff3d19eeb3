"""BatchBALD: the batch whose labels together tell most about the parameters, greedily, lazily and in bounded memory.

Labels of different candidates are independent given the parameters, so a configuration of the batch's labels
matters only by the posterior it leaves on the S parameter samples. Each configuration keeps these S weights,
normalised: nothing underflows, however large the batch.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mal.acquisition.checks import Indices, Progress, check_budget, check_probabilities, report, threads_that_pay
from mal.acquisition.ranking import top_b

Array = NDArray[np.float64]

_TIE = 1e-12  # nats: gains closer than that differ by rounding
_SETTLED = 1e-6  # nats: a posterior on the parameter samples with less entropy than that has nothing left to learn
_TINY = np.finfo(np.float64).tiny  # its logarithm is finite, and 0 times that is 0
_NUMBERS = 1 << 16  # probabilities of one block of candidates under all configurations: stays in the cache


def batchbald(
    probabilities_NSK: ArrayLike,
    budget: int,
    rng: np.random.Generator,
    *,
    configurations: int = 1000,
    lazy: bool = True,
    progress: Progress | None = None,
) -> Indices:
    """Pick `budget` times the candidate that adds most to I(labels of the batch; parameters).

    probabilities_NSK: (N, S, K), the same S parameter samples (dropout masks) for every candidate. While K **
    picks is at most `configurations` the joint entropy is exact, then it is estimated over that many
    configurations drawn from the joint distribution. `lazy` evaluates only candidates whose gain of the past,
    an upper bound while the joint is exact (submodularity) and one up to sampling noise then, may still be
    the best. Ties within 1e-12 go to the lowest position. S samples can tell at most log S nats: once every
    posterior has settled to within 1e-6, the rest of the batch is taken by BALD score (more samples let
    BatchBALD choose more). Memory: the input, O(N) and configurations x (S + 1). Returns int64 (budget,) in
    order of choice; never NaN.
    Raises ValueError for logits or NaN. Source: Kirsch et al., BatchBALD (NeurIPS 2019), equations 5 to 13.
    """
    probabilities = check_probabilities(probabilities_NSK, "probabilities", 3)
    budget = check_budget(budget, len(probabilities))
    if configurations < 1:
        raise ValueError(f"configurations={configurations}: must be 1 or more")
    with threads_that_pay(configurations * probabilities.shape[2]):
        return _greedy(probabilities, budget, _Posterior(probabilities.shape[1], configurations, rng), lazy, progress)


def _greedy(
    probabilities: NDArray[np.floating], budget: int, posterior: "_Posterior", lazy: bool, progress: Progress | None
) -> Indices:
    # The pairs of samples take S / K times the memory of the input.
    pairs = _Divergences(probabilities) if lazy and probabilities.shape[1] <= 4 * probabilities.shape[2] else None
    gains_N = np.full(len(probabilities), np.inf)
    picks_B = np.empty(budget, dtype=np.int64)
    bald_N = gains_N
    for t in range(budget):
        if not lazy:
            gains_N[gains_N > -np.inf] = np.inf
        elif pairs and t > 0:
            gains_N = np.minimum(gains_N, pairs.bounds(posterior))
        best = _best(probabilities, posterior, gains_N, 32 if lazy else len(gains_N))
        if t == 0:
            bald_N = gains_N.copy()
        elif gains_N[best] <= 0:
            bald_N[picks_B[:t]] = -np.inf
            picks_B[t:] = top_b(bald_N, budget - t)
            break
        picks_B[t] = best
        gains_N[best] = -np.inf
        if t + 1 < budget:
            posterior.condition(np.asarray(probabilities[picks_B[t]], dtype=np.float64))
        report(progress, t + 1, budget)
    return picks_B


def joint_information(probabilities_BSK: ArrayLike, rng: np.random.Generator, *, configurations: int = 10_000) -> float:
    """I(labels of a batch; parameters) in nats, of (B, S, K): exact while K ** B <= configurations, then estimated.

    log S less the mean entropy of the posterior that the labels leave on the S samples: always from 0 to log
    S.
    """
    probabilities = check_probabilities(probabilities_BSK, "probabilities", 3)
    posterior = _Posterior(probabilities.shape[1], configurations, rng)
    for probabilities_SK in probabilities:
        posterior.condition(np.asarray(probabilities_SK, dtype=np.float64))
    return float(np.log(probabilities.shape[1]) - posterior.masses_M @ _entropy(posterior.weights_MS))


def _entropy(probabilities: Array) -> Array:
    """Entropy over the last axis."""
    logs = np.log(np.maximum(probabilities, _TINY))
    return -np.einsum("...k,...k->...", probabilities, logs)


class _Posterior:
    """Configurations of the picked labels: the probability of each, the weights it leaves on the samples."""

    def __init__(self, samples: int, limit: int, rng: np.random.Generator) -> None:
        self.weights_MS = np.full((1, samples), 1 / samples)
        self.masses_M = np.ones(1)
        self.limit, self.rng, self.exact = limit, rng, True

    def gains(self, probabilities_RSK: NDArray[np.floating]) -> Array:
        """I(a candidate's label; parameters) under each posterior, averaged over the configurations, (R,), >= 0.

        Its expectation is the increase of the joint entropy less the candidate's own conditional entropy.
        Taking both under the same drawn configurations removes most of the sampling noise: no gain is ever
        below 0.
        """
        count, samples, classes = probabilities_RSK.shape
        gains_R = np.empty(count)
        # A posterior's entropy bounds what a label can still add: settled configurations need no work.
        open_M = _entropy(self.weights_MS) > _SETTLED
        if not open_M.any():
            return np.zeros(count)
        weights_MS, masses_M = self.weights_MS[open_M], self.masses_M[open_M]
        spread_S = masses_M @ weights_MS
        rows = min(count, max(1, _NUMBERS // (max(samples, len(masses_M)) * classes)))
        # Buffers: fresh arrays of this size would cost more in page faults than the arithmetic.
        given, logs = (np.empty((len(masses_M), rows * classes)) for _ in range(2))
        for start in range(0, count, rows):
            block = probabilities_RSK[start : start + rows].astype(np.float64)
            used = given[:, : len(block) * classes], logs[:, : len(block) * classes]
            np.matmul(weights_MS, block.transpose(1, 0, 2).reshape(samples, -1), out=used[0])
            np.log(np.maximum(used[0], _TINY, out=used[1]), out=used[1])
            expected = masses_M @ np.multiply(*used, out=used[1])
            gains_R[start : start + rows] = -expected.reshape(-1, classes).sum(axis=1) - _entropy(block) @ spread_S
        return np.maximum(gains_R, 0)

    def condition(self, probabilities_SK: Array) -> None:
        """Add a candidate to the batch: every configuration gets all its labels, or one drawn label each."""
        classes = probabilities_SK.shape[1]
        if self.exact and len(self.masses_M) * classes <= self.limit:
            joint_MSK = self.weights_MS[:, :, None] * probabilities_SK
            given_MK = joint_MSK.sum(axis=1)
            self.masses_M = (self.masses_M[:, None] * given_MK).ravel()
            weights_LS = joint_MSK.transpose(0, 2, 1).reshape(-1, self.weights_MS.shape[1])
            # Impossible configurations have no posterior, and no weight.
            possible = self.masses_M > 0
            self.masses_M = self.masses_M[possible]
            self.weights_MS = weights_LS[possible] / given_MK.ravel()[possible, None]
            return
        if self.exact:
            self._sample()
        cumulative_MK = np.cumsum(self.weights_MS @ probabilities_SK, axis=1)
        draws_M = self.rng.random(len(cumulative_MK)) * cumulative_MK[:, -1]
        labels_M = np.minimum((cumulative_MK <= draws_M[:, None]).sum(axis=1), classes - 1)
        weights_MS = self.weights_MS * probabilities_SK.T[labels_M]
        self.weights_MS = weights_MS / weights_MS.sum(axis=1, keepdims=True)

    def _sample(self) -> None:
        """Replace the exact configurations by `limit` drawn ones, at even steps through their cumulative masses."""
        self.exact = False
        places_M = (self.rng.random() + np.arange(self.limit)) / self.limit * self.masses_M.sum()
        drawn_M = np.minimum(np.searchsorted(np.cumsum(self.masses_M), places_M, side="right"), len(self.masses_M) - 1)
        self.weights_MS = self.weights_MS[drawn_M]
        self.masses_M = np.full(self.limit, 1 / self.limit)


class _Divergences:
    """Kullback-Leibler divergences between a candidate's predictions under all pairs of samples: bounds of its gain.

    I(label; parameters) under weights w is the mean divergence of the samples' predictions from their mixture, at most
    the sum over pairs of w_s w_t KL(p_s | p_t) by convexity: S x S products instead of configurations x S x K.
    """

    def __init__(self, probabilities_NSK: NDArray[np.floating]) -> None:
        count, samples, classes = probabilities_NSK.shape
        # Raising probabilities to this floor lowers a bound by at most S K times it, and keeps divergences finite.
        floor = 1e-12
        self.slack = samples * classes * floor + 1e-9
        self.pairs_NP = np.empty((count, samples * samples), dtype=np.float32)
        rows = max(1, 2**20 // (samples * max(samples, classes)))
        for start in range(0, count, rows):
            block = probabilities_NSK[start : start + rows].astype(np.float64)
            logs = np.log(np.maximum(block, floor))
            cross = np.matmul(block, logs.transpose(0, 2, 1))
            own = np.einsum("nsk,nsk->ns", block, logs)
            self.pairs_NP[start : start + rows] = (own[:, :, None] - cross).reshape(len(block), -1)

    def bounds(self, posterior: _Posterior) -> Array:
        """An upper bound of every candidate's gain, (N,); float32 is off by much less than the margin added."""
        weights_MS = posterior.weights_MS
        together = (weights_MS.T * posterior.masses_M) @ weights_MS
        return (self.pairs_NP @ together.ravel().astype(np.float32)) * (1 + 1e-4) + self.slack


def _best(probabilities_NSK: NDArray[np.floating], posterior: _Posterior, gains_N: Array, step: int) -> int:
    """The candidate with the highest gain; gains_N holds bounds, and the gains where evaluated."""
    stale_N = gains_N > -np.inf
    best = -np.inf
    while True:
        open_R = np.flatnonzero(stale_N & (gains_N >= best - _TIE))
        if open_R.size == 0:
            break
        if open_R.size > step:
            open_R = np.sort(open_R[np.argpartition(gains_N[open_R], open_R.size - step)[open_R.size - step :]])
        for start in range(0, open_R.size, 4096):
            rows = open_R[start : start + 4096]
            gains_N[rows] = posterior.gains(probabilities_NSK[rows])
        stale_N[open_R] = False
        best = max(best, float(gains_N[open_R].max()))
        step *= 2
    return int(np.flatnonzero((gains_N >= best - _TIE) & (gains_N > -np.inf))[0])
