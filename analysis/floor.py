"""The floor: what simple classifiers reach on the labelled images of each round, and which task models are below it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import stats, style
from analysis.panels import Panel
from analysis.reading import Finding
from analysis.table import Table, number
from analysis.tables import shown_rounds

NAMES = {"1nn": "1-NN", "logistic": "Logistic regression", "svm": "RBF SVM"}
ABOUT = "conclusions about methods are then about training"


@dataclass(frozen=True)
class Floor:
    """A panel's floor. of: each classifier's value by name, (M, S, R), percent, NaN where it was not computed.

    best: (M, R), the classifier with the highest mean over seeds, by its place in `of`; -1 where there is none.
    value, difference: (M, R), its mean, and that of the task model minus it over the same chains; low, high: Student's
    95% interval of the difference.
    """

    panel: Panel
    of: dict[str, np.ndarray]
    best: np.ndarray
    value: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def line(self) -> np.ndarray:
        """The best classifier's mean over all chains of each round (R,), of the methods together."""
        together = [stats.summary(cube.reshape(-1, cube.shape[-1]), axis=0)[0] for cube in self.of.values()]
        return _highest(np.stack(together))[1]

    def name(self, method: int, number: int) -> str:
        """The best classifier of a method's round."""
        return name_of(list(self.of)[self.best[method, number]])

    @property
    def known(self) -> np.ndarray:
        """The points (M, R) at which a task model can be compared."""
        return ~np.isnan(self.difference)

    @property
    def below(self) -> np.ndarray:
        """The points (M, R) at which the task model's mean is below the best classifier's."""
        with np.errstate(invalid="ignore"):
            return self.difference < 0


def name_of(classifier: str) -> str:
    """A classifier's name in figures and tables."""
    return NAMES.get(classifier, classifier.replace("_", " "))


def floor_of(panel: Panel, rows: pd.DataFrame) -> Floor | None:
    """The floor of a panel's rounds (rows); None where no round has one."""
    of = panel.by_name(rows, "floor")
    if not of:
        return None
    # A task model and the classifiers are compared over the same chains.
    means = np.stack([stats.summary(np.where(np.isnan(panel.values), np.nan, cube), axis=1)[0] for cube in of.values()])
    best, value = _highest(means)
    chosen = np.take_along_axis(np.stack(list(of.values())), np.maximum(best, 0)[None, :, None, :], axis=0)[0]
    differences = np.moveaxis(panel.values - chosen, 1, -1)
    low, high = stats.t_interval(differences)
    return Floor(panel, of, best, value, stats.summary(differences)[0], low, high)


def _highest(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place and value of the highest along the first axis; -1 and NaN where there is none."""
    there = ~np.isnan(means).all(axis=0)
    place = np.argmax(np.where(np.isnan(means), -np.inf, means), axis=0)
    value = np.take_along_axis(means, place[None], axis=0)[0]
    return np.where(there, place, -1), np.where(there, value, np.nan)


def finding(floor: Floor) -> Finding | None:
    """A warning that names the methods whose task model is below the floor, with the worst point of each."""
    if not floor.below.any():
        return None
    parts = []
    for m in map(int, np.flatnonzero(floor.below.any(axis=1))):
        worst = int(np.nanargmin(floor.difference[m]))
        value, labels = floor.value[m, worst], floor.panel.labels[m, worst]
        parts.append(
            f"{style.method_label(floor.panel.methods[m])} in {floor.below[m].sum()} of {floor.known[m].sum()} rounds "
            f"(worst at {labels:,.0f} labels: {value + floor.difference[m, worst]:.1f}% against {value:.1f}% of "
            f"{floor.name(m, worst)})"
        )
    text = f"{floor.panel.title}: the task model's mean is below a simple classifier on the same labelled images"
    return Finding("below the floor", f"{text}: {'; '.join(parts)}; {ABOUT}")


def floor_table(floor: Floor) -> Table:
    """What each simple classifier reaches by round, and by how much each method's task model is above the best."""
    panel = floor.panel
    shown = [r for r in shown_rounds(len(panel.rounds)) if floor.known[:, r].any()]
    rows = []
    for name, cube in floor.of.items():
        mean = stats.summary(cube.reshape(-1, cube.shape[-1]), axis=0)[0]
        rows.append([name_of(name), *(number(mean[r]) for r in shown)])
    data = []
    for m, method in enumerate(panel.methods):
        label = f"{style.method_label(method)} − best"
        rows.append([label, *(number(floor.difference[m, r], sign=True) for r in shown)])
        for r in np.flatnonzero(floor.known[m]):
            each = {name: stats.summary(cube[m, :, r])[0] for name, cube in floor.of.items()}
            task = floor.value[m, r] + floor.difference[m, r]
            interval = {"difference": floor.difference[m, r], "low": floor.low[m, r], "high": floor.high[m, r]}
            place = {"dataset": panel.key, "method": method, "round": r, "labeled": panel.labels[m, r]}
            data.append({**place, **each, "best": list(floor.of)[floor.best[m, r]], "task_model": task, **interval})
    note = (
        "By number of labels: simple classifiers on the labelled images of each round and the same test set, mean over "
        "all chains; below, the task model's mean minus the best of them on that method's own labelled images, in "
        f"points. Where it is negative, {ABOUT}. Intervals are in the CSV."
    )
    heads = ["", *(number(panel.budgets[r], 0) for r in shown)]
    title = f"Task models against simple classifiers, {panel.title}"
    return Table(f"floor_{panel.key}", title, note, heads, rows, pd.DataFrame(data))
