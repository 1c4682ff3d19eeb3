"""BADGE: k-means++ over gradient embeddings, which are never built.

The gradient of the last layer at the predicted class is g = a outer h, a = p - e_y, h the features: K x D
numbers per candidate. Its inner products factor, <g, g'> = <a, a'><h, h'>, and that is all k-means++ needs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mal.acquisition.checks import (
    Indices,
    Progress,
    check_budget,
    check_features,
    check_probabilities,
    report,
    squared_norms,
    threads_that_pay,
)

MODES = ("rejection", "exact")
_PROPOSALS = 256
_ROUNDING = 1e-12  # relative: squared distances below it are those of equal embeddings


def badge(
    probabilities_NK: ArrayLike,
    features_ND: ArrayLike,
    budget: int,
    rng: np.random.Generator,
    *,
    mode: str = "rejection",
    progress: Progress | None = None,
) -> Indices:
    """k-means++ seeding: first the longest gradient embedding, then draws in proportion to the squared distance.

    probabilities_NK: (N, K) of the last layer, features_ND: (N, D) that it saw. mode `exact` updates all
    weights at each pick: pick t is the first position whose cumulative float64 weight exceeds rng.random()
    times their sum, so the same generator gives the picks of the plain algorithm. mode `rejection` has the
    same distribution, not the same picks: it draws from weights of the past and accepts with (weight now) /
    (weight then), for a small part of the work. Chosen candidates weigh 0; once all others do too, they are
    drawn uniformly. Memory: the inputs and O(N).
    Returns int64 (budget,) in order of choice. Raises ValueError for logits, NaN, an unknown mode.
    Source: Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds (ICLR 2020),
    algorithm 1.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    given = np.asarray(probabilities_NK)
    if not np.issubdtype(given.dtype, np.floating):
        raise ValueError(f"probabilities have dtype {given.dtype}: must be floating point")
    # One dtype for both modes and every block: float32 as given by a network is not copied.
    probabilities = check_probabilities(np.ascontiguousarray(given, dtype=np.float32), "probabilities", 2)
    features = check_features(features_ND, "features")
    if len(features) != len(probabilities):
        raise ValueError(f"features have {len(features)} rows and probabilities {len(probabilities)}: must be the same")
    budget = check_budget(budget, len(features))
    embeddings = _Embeddings.of(probabilities, features)
    picks_B = np.empty(budget, dtype=np.int64)
    picks_B[0] = np.argmax(embeddings.norms)
    if budget > 1:
        with threads_that_pay(probabilities.size + features.size):
            (_exact if mode == "exact" else _rejection)(embeddings, picks_B, rng, progress)
    return picks_B


class _Embeddings(NamedTuple):
    """N gradient embeddings in factors, (N, K) and (N, D), with their squared lengths (N,)."""

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: Indices
    feature_norms: NDArray[np.float64]
    norms: NDArray[np.float64]

    @classmethod
    def of(cls, probabilities_NK: NDArray[np.float32], features_ND: NDArray[np.float32]) -> "_Embeddings":
        labels_N = probabilities_NK.argmax(axis=1)
        feature_norms_N = squared_norms(features_ND, "features")
        norms_N = np.empty(len(labels_N))
        step = max(1, 2**17 // probabilities_NK.shape[1])
        for start in range(0, len(labels_N), step):
            rows = slice(start, start + step)
            errors_RK = _errors(probabilities_NK[rows], labels_N[rows])
            norms_N[rows] = np.einsum("rk,rk->r", errors_RK, errors_RK) * feature_norms_N[rows]
        return cls(probabilities_NK, features_ND, labels_N, feature_norms_N, norms_N)

    def errors(self, rows: Indices) -> NDArray[np.float64]:
        """a = p - e_y of some rows, (R, K)."""
        return _errors(self.probabilities[rows], self.labels[rows])

    def squared_distances(self, rows: Indices, centres: Indices) -> NDArray[np.float64]:
        """(R, C) squared distances in float64, exactly 0 between equal embeddings."""
        errors_RC = self.errors(rows) @ self.errors(centres).T
        features_RC = self.features[rows].astype(np.float64) @ self.features[centres].astype(np.float64).T
        together_RC = self.norms[rows][:, None] + self.norms[centres]
        distances_RC = together_RC - 2 * errors_RC * features_RC
        distances_RC[distances_RC < _ROUNDING * together_RC] = 0
        return distances_RC


def _errors(probabilities_RK: NDArray[np.float32], labels_R: Indices) -> NDArray[np.float64]:
    # Subtracted before anything is summed: p_y - 1 is exact in float64, and exactly 0 for a one-hot
    # prediction.
    errors_RK = probabilities_RK.astype(np.float64)
    errors_RK[np.arange(len(labels_R)), labels_R] -= 1
    return errors_RK


def _draw(weights_N: NDArray[np.float64], chosen: Indices, rng: np.random.Generator, size: int) -> Indices:
    """Positions by inverse transform of the cumulative weights; uniform among the unchosen where all weights are 0."""
    cumulative_N = np.cumsum(weights_N)
    if cumulative_N[-1] <= 0:
        free_N = np.ones(weights_N.size)
        free_N[chosen] = 0
        cumulative_N = np.cumsum(free_N)
    # side=right: the position found has a weight above 0 for any draw in [0, 1).
    drawn = np.searchsorted(cumulative_N, rng.random(size) * cumulative_N[-1], side="right")
    # The product may round up to the sum: then the last position with a weight.
    return np.minimum(drawn, np.searchsorted(cumulative_N, cumulative_N[-1])).astype(np.int64)


def _exact(embeddings: _Embeddings, picks_B: Indices, rng: np.random.Generator, progress: Progress | None) -> None:
    from mal.acquisition import _kernels

    probabilities_NK = embeddings.probabilities
    lengths_N = np.sqrt(embeddings.feature_norms)
    # |fl(p.a) - p.a| <= K u sum |p||a| <= K u, for |a| <= 1 and a sum of 1, with room for p's own rounding.
    slack = (probabilities_NK.shape[1] + 4) * 2.0**-23
    weights_N = np.full(len(probabilities_NK), np.inf)
    for t in range(1, len(picks_B)):
        centre = picks_B[t - 1]
        errors_K = embeddings.errors(picks_B[t - 1 : t])[0]
        label_parts_N = errors_K.astype(np.float32)[embeddings.labels]
        products_N = probabilities_NK @ errors_K.astype(np.float32) - label_parts_N
        _kernels.nearer_embeddings(
            probabilities_NK, embeddings.features, errors_K, embeddings.labels, embeddings.norms, lengths_N,
            products_N, slack, centre, weights_N,
        )  # fmt: skip
        weights_N[centre] = 0
        picks_B[t] = _draw(weights_N, picks_B[:t], rng, 1)[0]
        report(progress, t + 1, len(picks_B))


def _refreshed(
    embeddings: _Embeddings, weights_N: NDArray[np.float64], centres: Indices, block: int = 1024
) -> NDArray[np.float64]:
    """The weights lowered to the distances to some more centres, in blocks of both."""
    for r in range(0, weights_N.size, block):
        rows = np.arange(r, min(r + block, weights_N.size))
        for c in range(0, len(centres), block):
            near_R = embeddings.squared_distances(rows, centres[c : c + block]).min(axis=1)
            weights_N[rows] = np.minimum(weights_N[rows], near_R)
    weights_N[centres] = 0
    return weights_N


def _rejection(embeddings: _Embeddings, picks_B: Indices, rng: np.random.Generator, progress: Progress | None) -> None:
    """Weights only fall, so those of the past dominate: propose from them, accept with now / then.

    Each trial accepts position i with probability proportional to its weight now, whatever the weights of the
    past, so an accepted position has exactly the law of k-means++. A proposal brings its own weight up to
    date. All are refreshed when the work spent on rejected proposals has reached the price of that.
    """
    picked, since, wasted = 1, 1, 0
    weights_N = _refreshed(embeddings, np.full(embeddings.norms.size, np.inf), picks_B[:1])
    while picked < len(picks_B):
        if not weights_N.any():
            picked = _uniform_rest(picks_B, picked, weights_N.size, rng)
            break
        wanted = min(_PROPOSALS, 2 * (len(picks_B) - picked) + 8)
        proposed_R = _draw(weights_N, picks_B[:picked], rng, wanted)
        coins_R = rng.random(wanted) * weights_N[proposed_R]
        now_R = weights_N[proposed_R]
        for c in range(since, picked, 4096):
            some = picks_B[c : min(picked, c + 4096)]
            now_R = np.minimum(now_R, embeddings.squared_distances(proposed_R, some).min(axis=1))
        before = picked
        picked = _accept(embeddings, proposed_R, coins_R, now_R, picks_B, picked)
        weights_N[proposed_R] = now_R
        weights_N[picks_B[before:picked]] = 0
        wasted += (wanted - (picked - before)) * (before - since + 1)
        if wasted > weights_N.size * (picked - since) > 0:
            _refreshed(embeddings, weights_N, picks_B[since:picked])
            since, wasted = picked, 0
        report(progress, picked, len(picks_B))


def _accept(
    embeddings: _Embeddings,
    proposed_R: Indices,
    coins_R: NDArray[np.float64],
    now_R: NDArray[np.float64],
    picks_B: Indices,
    picked: int,
) -> int:
    """Go through the proposals in turn, updating now_R in place at each acceptance; returns the number picked."""
    among_RR = embeddings.squared_distances(proposed_R, proposed_R)
    for r, position in enumerate(proposed_R):
        if picked == len(picks_B):
            break
        if coins_R[r] < now_R[r]:
            picks_B[picked] = position
            picked += 1
            np.minimum(now_R, among_RR[:, r], out=now_R)
            # Its own distance to itself may carry rounding where its features are long.
            now_R[proposed_R == position] = 0
    return picked


def _uniform_rest(picks_B: Indices, picked: int, count: int, rng: np.random.Generator) -> int:
    """Fill the query with a uniform draw without replacement of the unchosen."""
    free = np.setdiff1d(np.arange(count), picks_B[:picked])
    picks_B[picked:] = rng.choice(free, size=len(picks_B) - picked, replace=False)
    return len(picks_B)
