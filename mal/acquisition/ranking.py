"""From scores to a query: the highest first, ties by lowest position; and randomised scores for whole batches."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mal.acquisition.checks import Indices, check_budget

STOCHASTIC_KINDS = ("power", "softmax", "softrank")


def _check_scores(scores: ArrayLike) -> NDArray[np.floating]:
    scores_N = np.asarray(scores)
    if scores_N.ndim != 1:
        raise ValueError(f"scores have shape {scores_N.shape}: must be one number for each candidate")
    if not np.issubdtype(scores_N.dtype, np.floating):
        scores_N = scores_N.astype(np.float64)
    if np.isnan(scores_N).any():
        raise ValueError(f"scores hold {int(np.isnan(scores_N).sum())} NaN of {scores_N.size}: must be numbers")
    return scores_N


def top_b(scores: ArrayLike, budget: int) -> Indices:
    """The positions of the `budget` highest scores, highest first, ties by lowest position.

    scores: (N,), infinities allowed. Returns int64 (budget,). O(N) and one sort of the chosen.
    Raises ValueError for NaN or a budget outside 1..N.
    """
    scores_N = _check_scores(scores)
    budget = check_budget(budget, scores_N.size)
    threshold = np.partition(scores_N, scores_N.size - budget)[scores_N.size - budget]
    above = np.flatnonzero(scores_N > threshold)
    level = np.flatnonzero(scores_N == threshold)[: budget - above.size]
    # A stable sort keeps the lower position first among equals; negation would turn -0.0 into another bit
    # pattern but not into another order.
    order = np.argsort(-scores_N[above], kind="stable")
    return np.concatenate([above[order], level]).astype(np.int64)


def stochastic_scores(
    scores: ArrayLike, rng: np.random.Generator, *, kind: str = "power", beta: float = 1.0
) -> NDArray[np.float64]:
    """Scores with Gumbel noise: their `top_b` is a sample of a batch without replacement.

    scores: (N,). kind `power` draws in proportion to score ** beta (negative scores count as 0), `softmax` to
    exp(beta * score), `softrank` to rank ** -beta (1 the best, ties by lowest position). beta = inf is
    `top_b` itself.
    Returns float64 (N,). Raises ValueError for NaN, an unknown kind or beta < 0.
    Source: Kirsch et al., Stochastic Batch Acquisition for Deep Active Learning (TMLR 2023), section 3; power
    is PowerBALD.
    """
    scores_N = _check_scores(scores).astype(np.float64)
    if kind not in STOCHASTIC_KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(STOCHASTIC_KINDS)}")
    if not beta >= 0:
        raise ValueError(f"beta={beta!r}: must be 0 (uniform) or more")
    noise_N = rng.gumbel(size=scores_N.size)
    if kind == "power":
        with np.errstate(divide="ignore"):
            utilities_N = np.log(np.maximum(scores_N, 0))
    elif kind == "softmax":
        utilities_N = scores_N
    else:
        utilities_N = np.empty(scores_N.size)
        utilities_N[np.argsort(-scores_N, kind="stable")] = -np.log(np.arange(1, scores_N.size + 1))
    if beta == 0:
        return noise_N
    return utilities_N + noise_N / beta
