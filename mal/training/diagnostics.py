"""Numbers that explain a result: how calibrated a classifier is, and how well D tells the two pools apart."""

from __future__ import annotations

import numpy as np

BINS = 15


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error in percent: the mean distance of confidence from accuracy, by bins of confidence.

    confidence: probability of the predicted class, (N,); correct: bool (N,). Bins of equal width, open below and
    closed above (Guo et al. 2017, Eq. 3).
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    distance = np.bincount(place, confidence.astype(np.float64) - correct, minlength=bins)
    return float(100 * np.abs(distance).sum() / len(confidence))


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value in ascending order, from 1, the mean of them where values are equal: float64 (N,)."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[group])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two scores of the same images, (N,) each; NaN where one of them is constant."""
    ranks = [mean_ranks(values) for values in (a, b)]
    deviations = [rank - rank.mean() for rank in ranks]
    size = np.sqrt(np.prod([np.sum(d**2) for d in deviations]))
    return float(deviations[0] @ deviations[1] / size) if size else float("nan")


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive's score is above a negative's, ties counted half (the area under the ROC curve).

    NaN where there are none of one kind.
    """
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = mean_ranks(np.concatenate([positive, negative]))[: len(positive)]
    wins = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))


def discriminator_signals(labelled: np.ndarray, unlabelled: np.ndarray, boundary: float) -> dict[str, float]:
    """How sure D is of each pool, and how well it tells them apart. labelled, unlabelled: its scores, (M,) and (N,).

    boundary: the score from which D says labelled. Shares in percent, AUC from 0 to 1 (0.5: it cannot tell).
    """
    return {
        "d_unlabeled_below_half": float(100 * np.mean(unlabelled < boundary)),
        "d_labeled_above_half": float(100 * np.mean(labelled >= boundary)),
        "d_auc": auc(labelled, unlabelled),
    }
