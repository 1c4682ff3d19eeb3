"""Tables of results: per round, area under the budget curve, pairwise penalties."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import stats, style
from analysis.panels import Panel
from analysis.table import Table, interval, mean_std, number, p_value


def row_label(panel: Panel, method: str, backbones: bool) -> str:
    """A method's name, with its backbone where a table holds several (`MAL-ResNet18`, as the paper's Table 2)."""
    label = style.method_label(method)
    return f"{label}-{style.backbone_label(panel.backbone)}" if backbones else label


def by_protocol(panels: list[Panel]) -> list[list[Panel]]:
    """Panels whose rounds may share a table: one dataset and metric, the same label counts."""
    groups: dict[tuple[object, ...], list[Panel]] = {}
    for panel in panels:
        budgets = tuple(round(float(x)) for x in panel.budgets)
        groups.setdefault((panel.dataset, panel.metric, budgets), []).append(panel)
    return list(groups.values())


def shown_rounds(count: int, most: int = 10) -> list[int]:
    """The rounds that have a column: all, or `most` of them at equal distances, the first and the last among them."""
    return sorted({round(float(r)) for r in np.linspace(0, count - 1, min(count, most))})


def rounds_table(panels: list[Panel]) -> Table:
    """Mean ± std of each method and round, as the paper's Table 2. panels: one entry of `by_protocol`."""
    first, several = panels[0], len(panels) > 1
    percents = first.percents
    whole = bool(np.all(np.abs(percents - np.round(percents)) < 0.05) and percents[0] >= 0.95)
    shown = shown_rounds(len(percents))
    heads = [f"{percents[r]:.0f}%" if whole else number(first.budgets[r], 0) for r in shown]
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    data = []
    for panel in panels:
        mean, std, count = stats.summary(panel.values, axis=1)
        labels = panel.labels
        best = [stats.significantly_best(panel.values[..., r]) for r in range(len(panel.rounds))]
        for m, method in enumerate(panel.methods):
            bold |= {(len(rows), c + 1) for c, r in enumerate(shown) if best[r] == m}
            rows.append([row_label(panel, method, several), *(mean_std(mean[m, r], std[m, r]) for r in shown)])
            for r in panel.rounds:
                value = mean[m, r], std[m, r], count[m, r]
                data.append((panel.key, method, r, labels[m, r], percents[r], *value, best[r] == m))
    columns = ["dataset", "method", "round", "labeled", "percent", "mean", "std", "n", "significantly_best"]
    frame = pd.DataFrame(data, columns=columns)
    seeds = frame.loc[frame["n"] > 0, "n"]
    span = f"{seeds.min()} to {seeds.max()}" if seeds.nunique() > 1 else f"{seeds.max()}"
    note = (
        f"Mean ± standard deviation over seeds (n = {span}), by {'share of the pool' if whole else 'number'} labelled. "
        "Bold: the best, where it differs from every other method (paired t-tests by seed, Holm, p < 0.05)."
    )
    stem = f"rounds_{first.dataset}" if several else f"rounds_{first.key}"
    title = f"{style.metric_label(first.metric)} on {style.dataset_label(first.dataset) if several else first.title}"
    return Table(stem, title, note, ["Method", *heads], rows, frame, bold)


def area_table(panel: Panel, baseline: str) -> Table | None:
    """Area under the budget curve, and its paired difference from the baseline with Student's interval."""
    if panel.horizon < 2:
        return None
    areas, base = panel.areas(), panel.index(baseline)
    mean, std, count = stats.summary(areas)
    differences = areas - areas[base] if base is not None else np.full_like(areas, np.nan)
    if base is not None:
        differences[base] = np.nan
    tests, adjusted = stats.family_tests(differences)
    low, high = stats.t_interval(differences)
    rows = []
    for m, method in enumerate(panel.methods):
        versus = interval(tests.mean[m], low[m], high[m])
        rows.append(
            [style.method_label(method), mean_std(mean[m], std[m]), str(count[m]), versus, p_value(adjusted[m])]
        )
    values = {
        "area": mean,
        "std": std,
        "n": count,
        "difference": tests.mean,
        "low": low,
        "high": high,
    }
    frame = pd.DataFrame(
        {"dataset": panel.key, "method": panel.methods, **values, "pairs": tests.n, "p": tests.p, "p_holm": adjusted}
    )
    against = style.method_label(baseline)
    note = (
        f"Mean {style.metric_noun(panel.metric)} over the budget from {panel.budgets[0]:,.0f} to "
        f"{panel.budgets[panel.horizon - 1]:,.0f} labels (trapezoids; chains that reach it), and the difference from "
        f"{against}, paired by seed, with Student's 95% interval and Holm's p of a paired t-test. Bold: significant."
    )
    best = stats.significantly_best(areas)
    bold = {(best, 1)} if best is not None else set()
    heads = ["Method", "Area (%)", "n", f"Against {against}", "p"]
    return Table(f"area_{panel.key}", f"Area under the budget curve, {panel.title}", note, heads, rows, frame, bold)


def penalty_tables(panels: list[Panel]) -> list[Table]:
    """BADGE's pairwise penalty matrix summed over the panels, as defined and with Holm's correction."""
    methods = style.ordered({method for panel in panels for method in panel.methods})
    if len(methods) < 2:
        return []
    tables = []
    for correct in (False, True):
        matrix, used = penalties(panels, methods, correct)
        if not used:
            return []
        beaten = matrix.sum(axis=0) / (len(methods) - 1)
        labels = [style.method_label(method) for method in methods]
        rows = [
            [label, *["–" if i == j else number(matrix[i, j]) for j in range(len(methods))]]
            for i, label in enumerate(labels)
        ]
        rows.append(["Beaten, mean", *map(number, beaten)])
        data = pd.DataFrame(matrix, columns=methods)
        data.insert(0, "method", methods)
        note = (
            f"Entry (i, j): the share of rounds in which i beats j (paired two-sided t-test by seed, p < 0.05), summed "
            f"over {len(used)} setting{'s' * (len(used) > 1)}: {'; '.join(used)}. Last row: lower is better. "
            + (
                "Holm's correction over all pairs and rounds of a setting."
                if correct
                else "No correction, as BADGE defines it."
            )
        )
        stem, title = ("penalty_holm", "Pairwise penalties, Holm") if correct else ("penalty", "Pairwise penalties")
        tables.append(Table(stem, title, note, ["i beats j", *labels], rows, data))
    return tables


def penalties(panels: list[Panel], methods: list[str], correct: bool) -> tuple[np.ndarray, list[str]]:
    """The summed matrix (M, M), and for each setting that counts its title and rounds."""
    total = np.zeros((len(methods), len(methods)))
    used = []
    for panel in panels:
        rounds = stats.badge_rounds(panel.values, panel.index("random"))
        pairs = (~np.isnan(panel.values[..., rounds])).sum(axis=1).max(initial=0)
        if not rounds or pairs < 2 or len(panel.methods) < 2:
            continue
        at = [methods.index(method) for method in panel.methods]
        total[np.ix_(at, at)] += stats.penalty_matrix(panel.values[..., rounds], correct)
        used.append(f"{panel.title}, rounds {', '.join(map(str, rounds))}")
    return total, used
