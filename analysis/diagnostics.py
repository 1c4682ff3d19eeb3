"""What happened inside: each round's signals (calibration, D's certainty, ...) and the losses of its training."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import stats, style
from analysis.panels import Panel
from analysis.reading import history_of
from analysis.table import Table, number
from analysis.tables import shown_rounds

POINTS = 25  # of a curve of losses in a round
MEMBER = re.compile(r".+-\d+")  # one of several networks trained alike, such as an ensemble's
NAMES = {
    "calibration": "Calibration error of M (%)",
    "overconfidence": "Confidence − accuracy of M (%)",
    "train_value": "M on the labelled images (%)",
    "error_auc": "AUC of M's entropy for its errors",
    "c_value": "C on the test set (%)",
    "c_calibration": "Calibration error of C (%)",
    "c_overconfidence": "Confidence − accuracy of C (%)",
    "c_error_auc": "AUC of C's entropy for its errors",
    "c_entropy": "Entropy of C, unlabelled (nats)",
    "d_unlabeled_below_half": "Unlabelled that D puts below 0.5 (%)",
    "d_labeled_above_half": "Labelled that D puts above 0.5 (%)",
    "d_auc": "AUC of D",
    "entropy_d_spearman": "Rank correlation, entropy and D",
}
DECIMALS = {"error_auc": 2, "c_error_auc": 2, "d_auc": 2, "entropy_d_spearman": 2, "c_entropy": 2}  # others: 1


def name_of(signal: str) -> str:
    """A signal's name in figures and tables; a method's own is its key in words."""
    return NAMES.get(signal, signal.replace("_", " "))


def signals_of(panel: Panel, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each signal of a panel's rounds, (M, S, R), NaN where a round does not tell; the known ones first.

    A confidence is told as what it exceeds its accuracy by, in points. Of maps it is left out: the confidence is that
    of pixels, and the metric, mean IoU, is not a share of them.
    """
    cubes = panel.by_name(rows, "signals")
    for prefix, value in (("", panel.values), ("c_", cubes.get("c_value"))):
        confidence = cubes.pop(f"{prefix}confidence", None)
        if confidence is not None and value is not None and panel.metric == "accuracy":
            cubes[f"{prefix}overconfidence"] = confidence - value
    known = [signal for signal in NAMES if signal in cubes]
    return {signal: cubes[signal] for signal in [*known, *sorted(set(cubes) - set(NAMES))]}


def signals_table(panel: Panel, signals: dict[str, np.ndarray]) -> Table | None:
    """Each method's signals, mean over seeds, in its first and its last round that tells; None where none does."""
    if not signals:
        return None
    rows, data = [], []
    for m, method in enumerate(panel.methods):
        cells = []
        for signal, cube in signals.items():
            mean, std, count = stats.summary(cube[m], axis=0)
            known = np.flatnonzero(count)
            ends = (
                [number(mean[r], DECIMALS.get(signal, 1)) for r in dict.fromkeys(known[[0, -1]])] if len(known) else []
            )
            cells.append(" → ".join(ends) or "–")
            data += [(panel.key, method, r, panel.labels[m, r], signal, mean[r], std[r], count[r]) for r in known]
        rows.append([style.method_label(method), *cells])
    frame = pd.DataFrame(data, columns=["dataset", "method", "round", "labeled", "signal", "mean", "std", "n"])
    note = "Mean over seeds in the first and in the last round that has it; the CSV has all rounds."
    heads = ["Method", *map(name_of, signals)]
    return Table(f"signals_{panel.key}", f"Inside the rounds, {panel.title}", note, heads, rows, frame)


@dataclass(frozen=True)
class Losses:
    """The losses of one kind in a panel's rounds. means: (M, R, POINTS) over seeds, NaN where there is none."""

    phase: str
    loss: str
    means: np.ndarray
    rounds: tuple[int, ...]


def losses_of(panel: Panel, rows: pd.DataFrame) -> list[Losses]:
    """The losses of every phase of training over its steps, from history.json; of many rounds some that are apart."""
    rounds = tuple(shown_rounds(len(panel.rounds)))
    cubes: dict[tuple[str, str], np.ndarray] = {}
    for method, seed, round_number, folder in rows[["method", "seed", "round", "folder"]].values:
        if round_number not in rounds:
            continue
        at = panel.methods.index(method), panel.seeds.index(seed), rounds.index(round_number)
        for phase, history in history_of(folder).items():
            if not MEMBER.fullmatch(phase):
                for loss, curve in history["losses"].items():
                    shape = len(panel.methods), len(panel.seeds), len(rounds), POINTS
                    cubes.setdefault((phase, loss), np.full(shape, np.nan))[at] = _resampled(curve)
    return [Losses(*key, stats.summary(cube, axis=1)[0], rounds) for key, cube in cubes.items()]


def _resampled(curve: list[float]) -> np.ndarray:
    """A curve at POINTS equal distances from its start to its end (POINTS,)."""
    return np.interp(np.linspace(0, 1, POINTS), np.linspace(0, 1, len(curve)), curve)
