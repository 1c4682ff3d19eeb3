"""Whether the training of the task model had converged, from the losses and training accuracies of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import stats, style
from analysis.panels import Panel
from analysis.reading import history_of

PHASE = "task"
OWN = ("minimax", "vaal")  # phases that train what a method asks besides M
FIFTHS = 5
STILL = 0.05  # of the whole fall of the loss, in the last fifth of the steps: more is still falling
TRAINED = 99.0  # percent of the training images, where Ash et al. (2020) stop
ACCURACY = "train_value"  # the signal that holds it, as c_value is C's on the test set


def judged(panel: Panel, rows: pd.DataFrame) -> tuple[str, str]:
    """`passed`, `failed` or `unknown`, and the figure: the largest share of the loss's fall in the last fifth of steps.

    The mean loss over seeds is cut into fifths; the last may fall by at most 5% of the fall from the first to the last.
    A learning rate that ends at zero flattens a loss too, so the figure has its height there. A training accuracy,
    where it is recorded, must be 99% or more.
    """
    fifths = stats.summary(_curves(panel, rows), axis=1)[0]
    share = _late(fifths)
    recorded = panel.by_name(rows, "signals").get(ACCURACY, np.full(panel.values.shape, np.nan))
    trained = stats.summary(recorded, axis=1)[0]
    parts, failed = [], False
    if not np.isnan(share).all():
        m, r = np.unravel_index(np.nanargmax(share), share.shape)
        count = int((share > STILL).sum())
        failed |= count > 0
        parts.append(
            f"loss still falling in {count} of {(~np.isnan(share)).sum()} mean curves: the last fifth of the steps has "
            f"up to {100 * share[m, r]:.0f}% of the fall ({style.method_label(panel.methods[m])}, round {r}), at a "
            f"loss of up to {np.nanmax(fifths[..., -1]):.2f}"
        )
    if panel.metric == "accuracy" and not np.isnan(trained).all():
        m, r = np.unravel_index(np.nanargmin(trained), trained.shape)
        failed |= bool(trained[m, r] < TRAINED)
        parts.append(f"training accuracy from {trained[m, r]:.1f}% ({style.method_label(panel.methods[m])}, round {r})")
    if not parts:
        return "unknown", "no round has a history of five windows of M's losses"
    return "failed" if failed else "passed", "; ".join(parts)


def steps(panel: Panel, rows: pd.DataFrame, phases: Sequence[str] = (PHASE,)) -> np.ndarray:
    """Steps of M's training (M, S, R), or of other networks' by their phases, to a window; NaN without a history."""
    found = np.full(panel.values.shape, np.nan)
    for at, history in _histories(panel, rows, phases):
        found[at] = history["window"] * max(map(len, history["losses"].values()))
    return found


def _curves(panel: Panel, rows: pd.DataFrame) -> np.ndarray:
    """Mean loss of each fifth of M's training (M, S, R, 5), the losses of a step added; NaN for fewer windows."""
    fifths = np.full((*panel.values.shape, FIFTHS), np.nan)
    for at, history in _histories(panel, rows, (PHASE,)):
        total = np.sum(list(history["losses"].values()), axis=0)
        if len(total) >= FIFTHS:
            fifths[at] = [part.mean() for part in np.array_split(total, FIFTHS)]
    return fifths


def _late(mean: np.ndarray) -> np.ndarray:
    """The share (M, R) of a loss's fall, of its fifths (M, R, 5), that is in the last; 1 where it does not fall."""
    fall, late = mean[..., 0] - mean[..., -1], mean[..., -2] - mean[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isnan(fall), np.nan, np.where(fall > 0, np.maximum(late / fall, 0), 1.0))


def _histories(
    panel: Panel, rows: pd.DataFrame, phases: Sequence[str]
) -> list[tuple[tuple[int, int, int], dict[str, Any]]]:
    found = []
    for method, seed, number, folder in rows[["method", "seed", "round", "folder"]].values:
        phased = history_of(folder)
        for history in (phased[phase] for phase in phases if phase in phased):
            if history["losses"]:
                found.append(((panel.methods.index(method), panel.seeds.index(seed), number), history))
    return found
