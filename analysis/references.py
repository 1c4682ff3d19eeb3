"""The figures that the paper reports, next to runs that follow its protocol (analysis/reference.csv)."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.panels import Panel

FILE = Path(__file__).with_name("reference.csv")


@dataclass(frozen=True)
class Reference:
    """A published curve or point. labeled, percent, mean, std: (n,), percent except labeled; NaN where not given."""

    dataset: str
    method: str
    backbone: str
    metric: str
    labeled: np.ndarray
    percent: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    source: str


def read(path: Path = FILE) -> list[Reference]:
    """All published curves, rows of one dataset, method, backbone and metric together, by number of labels."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            groups.setdefault((row["dataset"], row["method"], row["backbone"], row["metric"]), []).append(row)
    return [_reference(key, sorted(rows, key=lambda row: int(row["labeled"]))) for key, rows in groups.items()]


def _reference(key: tuple[str, ...], rows: list[dict[str, str]]) -> Reference:
    def column(name: str) -> np.ndarray:
        return np.array([float(row[name]) if row[name] else math.nan for row in rows])

    dataset, method, backbone, metric = key
    source = "; ".join(dict.fromkeys(row["source"] for row in rows))
    return Reference(
        dataset, method, backbone, metric, column("labeled"), column("percent"), column("mean"), column("std"), source
    )


def matching(panel: Panel, references: list[Reference]) -> tuple[list[Reference], str]:
    """The published curves that may stand beside a panel's runs, and, where some may not, one sentence that says why.

    Dataset, backbone and metric must be the same. The protocol is the same where the published label counts fall on
    rounds of the runs (within 0.5%), make up the same percentage of the pool, and a published curve (three points or
    more) starts with the runs' initial labels. A sweep that stopped early still matches.
    """
    same_dataset = [r for r in references if r.dataset == panel.dataset]
    if not same_dataset:
        return [], ""
    same_model = [r for r in same_dataset if r.backbone == panel.backbone and r.metric == panel.metric]
    if not same_model:
        published = ", ".join(sorted({r.backbone for r in same_dataset}))
        return (
            [],
            f"the paper's figures on {panel.dataset} are not drawn: they are for {published}, not {panel.backbone}",
        )
    found = [r for r in same_model if _same_protocol(panel, r)]
    if len(found) < len(same_model):
        counts = ", ".join(f"{x:,.0f}" for x in sorted({x for r in same_model if r not in found for x in r.labeled}))
        return found, f"published figures on {panel.dataset} at {counts} labels are not drawn: the runs' rounds differ"
    return found, ""


def _same_protocol(panel: Panel, reference: Reference) -> bool:
    budgets, percents = panel.budgets, panel.percents
    inside = reference.labeled <= budgets[-1] * 1.005
    if not inside.any() or reference.labeled[0] < budgets[0] * 0.995:
        return False
    if len(reference.labeled) >= 3 and abs(reference.labeled[0] / budgets[0] - 1) > 0.005:
        return False
    for count, percent in zip(reference.labeled[inside], reference.percent[inside], strict=True):
        k = int(np.argmin(np.abs(budgets - count)))
        if abs(budgets[k] / count - 1) > 0.005:
            return False
        if not math.isnan(percent) and abs(percents[k] - percent) > 0.1:
            return False
    return True
