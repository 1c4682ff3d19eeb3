"""Head, middle and tail classes of imbalanced pools, and the cost of each method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import stats, style
from analysis.panels import Panel
from analysis.table import Table, mean_std, number

GROUPS = ("Head", "Middle", "Tail")


def groups_of(counts: np.ndarray) -> np.ndarray:
    """0 (head), 1 (middle) or 2 (tail) for each class (K,): thirds of the classes by size in the pool, largest first.

    Equal sizes go by class number; where K is not a multiple of three the head is the larger.
    """
    order = np.argsort(-counts, kind="stable")
    group = np.empty(len(counts), int)
    for g, members in enumerate(np.array_split(order, 3)):
        group[members] = g
    return group


def classes_table(panel: Panel, rows: pd.DataFrame) -> tuple[Table | None, str]:
    """Accuracy of the last common round over head, middle and tail classes, and the share of queries that went there.

    rows: the panel's rounds. The second value says why there is no table, for a pool that is imbalanced.
    """
    imbalanced = [c for c in rows["pool_classes"] if isinstance(c, list) and min(c, default=0) * 2 <= max(c, default=0)]
    if not imbalanced:
        missing = "imbalanced" in panel.dataset and rows["pool_classes"].isna().all()
        return None, "the rounds did not record how many images of each class the pool holds" if missing else ""
    last = panel.horizon - 1
    if last < 0:
        return None, "no round is common to all methods"
    scores = np.full((len(panel.methods), len(panel.seeds), 3), np.nan)
    shares = scores.copy()
    for (method, seed), chain in rows[rows["round"] <= last].groupby(["method", "seed"]):
        at = panel.methods.index(str(method)), panel.seeds.index(int(str(seed)))
        final = chain[chain["round"] == last]
        if len(final) and isinstance(final["pool_classes"].iloc[0], list):
            group = groups_of(np.array(final["pool_classes"].iloc[0]))
            scores[at] = _means(final["per_class"].iloc[0], group)
            asked = [counts for counts in chain["query_classes"] if isinstance(counts, list)]
            if asked:
                bought = np.bincount(group, np.sum(asked, axis=0), minlength=3)
                shares[at] = 100 * bought / bought.sum()
    return _table(panel, scores, shares, last), ""


def _means(values: Any, group: np.ndarray) -> np.ndarray:
    """Mean over the classes of each group (3,); classes without a value (null) are left out."""
    if not isinstance(values, list) or len(values) != len(group):
        return np.full(3, np.nan)
    known = np.array([np.nan if value is None else value for value in values], float)
    return np.array([stats.summary(known[group == g])[0] for g in range(3)])


def _table(panel: Panel, scores: np.ndarray, shares: np.ndarray, last: int) -> Table:
    best = [stats.significantly_best(scores[..., g]) for g in range(3)]
    rows, data = [], []
    mean, std, count = stats.summary(scores, axis=1)
    part, part_std, _ = stats.summary(shares, axis=1)
    for m, method in enumerate(panel.methods):
        queried = [mean_std(part[m, g], part_std[m, g], 1) for g in range(3)]
        rows.append([style.method_label(method), *map(mean_std, mean[m], std[m]), *queried])
        data += [
            (panel.key, method, GROUPS[g].lower(), mean[m, g], std[m, g], count[m, g], part[m, g]) for g in range(3)
        ]
    frame = pd.DataFrame(data, columns=["dataset", "method", "classes", "mean", "std", "n", "query_percent"])
    note = (
        f"Mean of the classes' {style.metric_noun(panel.metric)} after round {last}, and their share of the "
        "queries. Head, middle and tail: thirds of the classes by size in each seed's pool. Bold: significantly best."
    )
    heads = ["Method", *[f"{g} (%)" for g in GROUPS], *[f"{g} queried (%)" for g in GROUPS]]
    bold = {(b, g + 1) for g, b in enumerate(best) if b is not None}
    return Table(
        f"classes_{panel.key}", f"Head, middle and tail classes, {panel.title}", note, heads, rows, frame, bold
    )


def cost_table(panel: Panel, rows: pd.DataFrame) -> Table:
    """Time, GPU-hours and interruptions of each method."""
    out, data = [], []
    for method in panel.methods:
        mine = rows[rows["method"] == method]
        seconds, count = mine["seconds"].sum(), len(mine)
        gpu_hours = float((mine["seconds"] * mine["gpus"]).sum() / 3600)
        per_round = stats.summary(mine["seconds"].to_numpy(float))
        device = ", ".join(sorted(set(mine["device"]) - {""})) or "–"
        preempted = int(mine["preemptions"].sum())
        out.append(
            [
                style.method_label(method),
                str(mine["seed"].nunique()),
                str(count),
                mean_std(float(per_round[0]), float(per_round[1]), 1),
                number(seconds / 3600),
                number(gpu_hours),
                str(preempted),
                device,
            ]
        )
        hours = (per_round[0], per_round[1], seconds / 3600, gpu_hours)
        data.append((panel.key, method, mine["seed"].nunique(), count, *hours, preempted, device))
    measured = ["seconds_per_round", "std", "hours", "gpu_hours"]
    columns = ["dataset", "method", "seeds", "rounds", *measured, "preemptions", "device"]
    heads = ["Method", "Seeds", "Rounds", "Seconds per round", "Hours", "GPU-hours", "Preemptions", "Device"]
    note = "Committed rounds only; time lost to interruptions counts as far as the rounds recorded it."
    return Table(f"cost_{panel.key}", f"Cost, {panel.title}", note, heads, out, pd.DataFrame(data, columns=columns))
