"""Uncertainty of one prediction or of several stochastic passes; the largest score is always queried first.

Arrays are numpy or torch; the arithmetic is float64 on the array's own device, so a batch of logits need not
leave the GPU.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    Array = NDArray[np.floating] | torch.Tensor
else:
    Array = Any

_ROWS = 16_384 * 1_000  # numbers per block: 128 MB in float64, a few of them at once


def _module(array: Any) -> Any:
    """The module whose functions take this array: torch for a tensor, numpy for all else."""
    if type(array).__module__.partition(".")[0] == "torch":
        import torch

        return torch
    return np


def _double(array: Any) -> tuple[Any, Any]:
    """The module and the array in float64, with its classes on the last axis."""
    xp = _module(array)
    array = array.detach().to(xp.float64) if xp is not np else np.asarray(array, dtype=np.float64)
    if array.ndim < 1 or array.shape[-1] == 0:
        raise ValueError(f"predictions have shape {tuple(array.shape)}: the last axis must be the classes, 1 or more")
    return xp, array


def softmax(logits: Array) -> Any:
    """Probabilities (..., K) of logits (..., K), in float64 and safe for logits of any size."""
    xp, logits = _double(logits)
    powers = xp.exp(logits - xp.amax(logits, -1)[..., None])
    return powers / powers.sum(-1)[..., None]


def _besides(xp: Any, logits: Any) -> tuple[Any, Any]:
    """Logits less the highest, and the powers of all other classes: their sum stays exact near certainty."""
    shifted = logits - xp.amax(logits, -1)[..., None]
    highest = xp.argmax(logits, -1)[..., None] == _arange_like(xp, logits)
    return shifted, xp.where(highest, xp.zeros_like(shifted), xp.exp(shifted))


def _entropy_of_logits(xp: Any, logits: Any) -> Any:
    # log(1 + r) + sum of -p z over the other classes, z <= 0: no term is negative, none is lost beside 1.
    shifted, powers = _besides(xp, logits)
    rest = powers.sum(-1)
    terms = powers * xp.where(powers > 0, shifted, xp.zeros_like(shifted))
    return xp.log1p(rest) - terms.sum(-1) / (1 + rest)


def _plogp(xp: Any, probabilities: Any) -> Any:
    """p log p, 0 at 0."""
    positive = probabilities > 0
    return probabilities * xp.log(xp.where(positive, probabilities, xp.ones_like(probabilities)))


def _blocks(predictions: Any) -> list[Any]:
    """The predictions in blocks of rows, so that float64 copies stay small however many candidates there are."""
    if predictions.ndim != 2 or predictions.shape[0] * predictions.shape[1] <= _ROWS:
        return [predictions]
    rows = max(1, _ROWS // predictions.shape[1])
    return [predictions[start : start + rows] for start in range(0, predictions.shape[0], rows)]


def _each_block(function: Any, predictions: Any, from_logits: bool) -> Any:
    xp = _module(predictions)
    if xp is np:
        predictions = np.asarray(predictions)
    scores = [function(*_double(block), from_logits) for block in _blocks(predictions)]
    if any(bool(xp.isnan(part).any()) for part in scores):
        raise ValueError("predictions hold NaN: must be finite logits, or probabilities")
    if len(scores) == 1:
        return scores[0]
    return np.concatenate(scores) if xp is np else xp.cat(scores)


def entropy(predictions: Array, *, from_logits: bool = False) -> Any:
    """Shannon entropy in nats, (...) float64, of predictions (..., K); raises ValueError for NaN."""
    return _each_block(_entropy, predictions, from_logits)


def _entropy(xp: Any, predictions: Any, from_logits: bool) -> Any:
    return _entropy_of_logits(xp, predictions) if from_logits else -_plogp(xp, predictions).sum(-1)


def least_confidence(predictions: Array, *, from_logits: bool = False) -> Any:
    """1 - max p, (...) float64, of predictions (..., K); exact near 0 from logits. Raises ValueError for NaN."""
    return _each_block(_least_confidence, predictions, from_logits)


def _least_confidence(xp: Any, predictions: Any, from_logits: bool) -> Any:
    if not from_logits:
        return 1 - xp.amax(predictions, -1)
    rest = _besides(xp, predictions)[1].sum(-1)
    return rest / (1 + rest)


def margin(predictions: Array, *, from_logits: bool = False) -> Any:
    """-(p1 - p2), (...) float64, p1 and p2 the two highest of (..., K): the smallest margin scores highest.

    With one class p2 is 0. Raises ValueError for NaN.
    """
    return _each_block(_margin, predictions, from_logits)


def _margin(xp: Any, predictions: Any, from_logits: bool) -> Any:
    probabilities = softmax(predictions) if from_logits else predictions
    highest = xp.amax(probabilities, -1)
    if probabilities.shape[-1] == 1:
        return -highest
    where = xp.argmax(probabilities, -1)[..., None] == _arange_like(xp, probabilities)
    second = xp.amax(xp.where(where, xp.full_like(probabilities, -1.0), probabilities), -1)
    # A NaN is its row's argmax and would be masked out of `second` alone.
    return second - highest


def _arange_like(xp: Any, array: Any) -> Any:
    return xp.arange(array.shape[-1]) if xp is np else xp.arange(array.shape[-1], device=array.device)


def variation_ratio(votes_SN: Any) -> NDArray[np.float64]:
    """1 - (votes of the most frequent class) / S, (N,) float64, of S members' or passes' predicted classes (S, N).

    Memory: the votes alone, whatever the number of classes. Raises ValueError for votes that are no whole
    numbers.
    Source: Freeman 1965; Beluch et al., The Power of Ensembles for Active Learning (CVPR 2018), section 3.2.
    """
    votes_SN = np.asarray(votes_SN.detach().cpu() if _module(votes_SN) is not np else votes_SN)
    if votes_SN.ndim != 2 or votes_SN.shape[0] == 0 or not np.issubdtype(votes_SN.dtype, np.integer):
        raise ValueError(f"votes are {votes_SN.dtype} {votes_SN.shape}: must be whole numbers (members, candidates)")
    ordered_SN = np.sort(votes_SN, axis=0)
    run_N = np.ones(votes_SN.shape[1], dtype=np.int64)
    longest_N = run_N.copy()
    for before_N, now_N in itertools.pairwise(ordered_SN):
        run_N = np.where(now_N == before_N, run_N + 1, 1)
        longest_N = np.maximum(longest_N, run_N)
    return 1 - longest_N / votes_SN.shape[0]


class PassAccumulator:
    """Streams S stochastic passes (or members of an ensemble): keeps sum p and sum H, not S x N x K.

    One accumulator serves a batch of candidates or the whole pool: (n, K) + (n,) float64 on the first
    update's device.
    Source: Gal et al., Deep Bayesian Active Learning with Image Data (ICML 2017), equation 4; Houlsby et al.
    2011.

    >>> passes = PassAccumulator()
    >>> for logits in ([[0.0, 9.0]], [[9.0, 0.0]]):
    ...     passes.update(np.array(logits), from_logits=True)
    >>> bool(passes.bald()[0] > 0.68)
    True
    """

    def __init__(self) -> None:
        self.passes = 0
        self._sum_p: Any = None
        self._sum_h: Any = None

    def update(self, predictions: Array, *, from_logits: bool = False) -> None:
        """Add one pass (n, K); raises ValueError where its shape is not that of the passes before."""
        xp, predictions_NK = _double(predictions)
        if from_logits:
            probabilities_NK, entropy_N = softmax(predictions_NK), _entropy_of_logits(xp, predictions_NK)
        else:
            probabilities_NK, entropy_N = predictions_NK, -_plogp(xp, predictions_NK).sum(-1)
        if self.passes == 0:
            # A copy: probabilities given in float64 are the caller's own array.
            self._sum_p, self._sum_h = probabilities_NK + 0.0, entropy_N
        elif tuple(probabilities_NK.shape) != tuple(self._sum_p.shape):
            raise ValueError(
                f"pass {self.passes + 1} has shape {tuple(probabilities_NK.shape)}: "
                f"must be {tuple(self._sum_p.shape)}, as the passes before"
            )
        else:
            self._sum_p += probabilities_NK
            self._sum_h += entropy_N
        self.passes += 1

    def mean(self) -> Any:
        """Mean probabilities (n, K) over the passes."""
        if self.passes == 0:
            raise ValueError("no pass was added: call update() with each pass first")
        return self._sum_p / self.passes

    def entropy(self) -> Any:
        """Entropy of the mean prediction, (n,) in nats."""
        return entropy(self.mean())

    def bald(self) -> Any:
        """I(prediction; parameters), (n,) in nats: entropy of the mean less mean entropy, >= 0."""
        return (self.entropy() - self._sum_h / self.passes).clip(min=0)
