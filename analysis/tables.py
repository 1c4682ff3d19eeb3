"""The tables of a report: per round, area, price in labels, start and choice, penalties, classes, cost."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis import stats, style
from analysis.panels import Panel
from analysis.table import Table, interval, mean_std, number, p_value

NOT_REACHED = "not reached"


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


def rounds_table(panels: list[Panel]) -> Table:
    """Mean ± std of each method and round, as the paper's Table 2. panels: one entry of `by_protocol`."""
    first, several = panels[0], len(panels) > 1
    percents = first.percents
    whole = bool(np.all(np.abs(percents - np.round(percents)) < 0.05) and percents[0] >= 0.95)
    heads = [f"{p:.0f}%" for p in percents] if whole else [number(x, 0) for x in first.budgets]
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    data = []
    for panel in panels:
        mean, std, count = stats.summary(panel.values, axis=1)
        best = [stats.significantly_best(panel.values[..., r]) for r in range(len(panel.rounds))]
        for m, method in enumerate(panel.methods):
            bold |= {(len(rows), r + 1) for r, b in enumerate(best) if b == m}
            rows.append([row_label(panel, method, several), *map(mean_std, mean[m], std[m])])
            for r in panel.rounds:
                data.append(
                    (
                        panel.key,
                        method,
                        r,
                        panel.labels[m, r],
                        percents[r],
                        mean[m, r],
                        std[m, r],
                        count[m, r],
                        best[r] == m,
                    )
                )
    columns = ["dataset", "method", "round", "labeled", "percent", "mean", "std", "n", "significantly_best"]
    seeds = sorted(
        {int(n) for n in np.unique(np.concatenate([(~np.isnan(p.values)).sum(1).ravel() for p in panels])) if n}
    )
    span = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0] if seeds else 0}"
    note = (
        f"Mean ± standard deviation over seeds (n = {span}), by {'share of the pool' if whole else 'number'} labelled. "
        "Bold: the best, where it differs from every other method (paired t-tests by seed, Holm, p < 0.05)."
    )
    stem = f"rounds_{first.dataset}" if several else f"rounds_{first.key}"
    title = f"{style.metric_label(first.metric)} on {style.dataset_label(first.dataset) if several else first.title}"
    return Table(stem, title, note, ["Method", *heads], rows, pd.DataFrame(data, columns=columns), bold)


def area_table(panel: Panel, baseline: str) -> Table | None:
    """Area under the budget curve, and its difference from the baseline with a paired bootstrap interval."""
    if panel.horizon < 2:
        return None
    areas = panel.areas()
    mean, std, count = stats.summary(areas)
    base = panel.index(baseline)
    differences = areas - areas[base] if base is not None else np.full_like(areas, np.nan)
    tests = stats.paired_tests(differences)
    adjusted = stats.holm(np.where(np.arange(len(mean)) == base, np.nan, tests.p))
    best = stats.significantly_best(areas)
    rows, data = [], []
    for m, method in enumerate(panel.methods):
        low, high = stats.bootstrap_interval(differences[m])
        versus = "–" if m == base or base is None else interval(tests.mean[m], low, high)
        rows.append(
            [style.method_label(method), mean_std(mean[m], std[m]), str(count[m]), versus, p_value(adjusted[m])]
        )
        data.append(
            (
                panel.key,
                method,
                mean[m],
                std[m],
                count[m],
                tests.mean[m],
                low,
                high,
                tests.n[m],
                tests.p[m],
                adjusted[m],
            )
        )
    columns = ["dataset", "method", "area", "std", "n", "difference", "low", "high", "pairs", "p", "p_holm"]
    first, last = panel.budgets[0], panel.budgets[panel.horizon - 1]
    against = style.method_label(baseline)
    note = (
        f"Mean {style.metric_noun(panel.metric)} over the budget from {first:,.0f} to {last:,.0f} labels (trapezoids; "
        f"chains that reach it), and the difference from {against}, paired by seed, with a 95% bootstrap interval and "
        "Holm's p of a paired t-test. Bold: significantly best."
    )
    heads = ["Method", "Area (%)", "n", f"Against {against}", "p"]
    bold = {(best, 1)} if best is not None else set()
    return Table(
        f"area_{panel.key}",
        f"Area under the budget curve, {panel.title}",
        note,
        heads,
        rows,
        pd.DataFrame(data, columns=columns),
        bold,
    )


def default_targets(panel: Panel) -> list[float]:
    """Three accuracies that split the range between the worst start and the best end in equal steps, rounded."""
    mean = stats.summary(panel.values, axis=1)[0]
    if np.isnan(mean).all():
        return []
    low, high = float(np.nanmin(mean)), float(np.nanmax(mean))
    decimals = 0 if high - low >= 8 else 1
    return sorted({round(low + (high - low) * part, decimals) for part in (0.4, 0.65, 0.9)})


def labels_table(panel: Panel, targets: Iterable[float]) -> Table | None:
    """Labels that each method needs to reach given accuracies, interpolated per seed."""
    targets = list(targets) or default_targets(panel)
    if not targets:
        return None
    rows, data = [], []
    for m, method in enumerate(panel.methods):
        cells = []
        for target in targets:
            needed = reach(panel, m, np.full(len(panel.seeds), target))
            cells.append(needed_text(needed, panel.labeled[m, :, 0]))
            data += [
                (panel.key, method, s, target, n) for s, n in zip(panel.seeds, needed, strict=True) if not np.isnan(n)
            ]
        rows.append([style.method_label(method), *cells])
    frame = pd.DataFrame(data, columns=["dataset", "method", "seed", "target", "labels"])
    frame["reached"] = np.isfinite(frame["labels"])
    note = (
        "Mean ± standard deviation over seeds of the labels at which a seed's curve first reaches the value, linear "
        "between rounds. A mean is given only where every seed reaches it; ≤: there from the first round on."
    )
    heads = ["Method", *[f"{target:g}%" for target in targets]]
    return Table(f"labels_{panel.key}", f"Labels needed, {panel.title}", note, heads, rows, frame)


def reach(panel: Panel, method: int, targets: np.ndarray) -> np.ndarray:
    """Labels (S,) at which each seed of a method reaches its target (S,)."""
    curves = zip(panel.labeled[method], panel.values[method], targets, strict=True)
    return np.array([stats.labels_to_reach(x, y, float(target)) for x, y, target in curves])


def needed_text(needed: np.ndarray, start: np.ndarray | None = None) -> str:
    """`412 ± 31`, `≤ 100` or `not reached (2 of 3 seeds)`."""
    known = needed[~np.isnan(needed)]
    if not len(known):
        return "–"
    lost = int(np.isinf(known).sum())
    if lost:
        return NOT_REACHED if lost == len(known) else f"{NOT_REACHED} ({lost} of {len(known)} seeds)"
    if start is not None and np.all(needed[~np.isnan(needed)] <= start[~np.isnan(needed)]):
        return f"≤ {known.mean():,.0f}"
    return mean_std(known.mean(), known.std(ddof=1) if len(known) > 1 else np.nan, 0)


def saved_table(panel: Panel) -> Table | None:
    """Labels that MAL (or else the method with the largest area) saves on its way to each baseline's final accuracy."""
    focus = focal(panel)
    if focus is None or len(panel.methods) < 2:
        return None
    name = style.method_label(panel.methods[focus])
    rows, data = [], []
    for b, method in enumerate(panel.methods):
        if b == focus:
            continue
        target = last_value(panel.values[b])
        theirs = reach(panel, b, target)
        ours = np.where(np.isnan(theirs), np.nan, reach(panel, focus, target))
        both = ~np.isnan(ours)
        lost, pairs = int(np.isinf(ours).sum()), int(both.sum())
        saved = (theirs - ours)[both & np.isfinite(ours)]
        if not pairs:
            continue
        mean, std, _ = stats.summary(target[both])
        complete = not lost
        low, high = stats.bootstrap_interval(saved) if complete else (np.nan, np.nan)
        share = number(100 * saved.mean() / theirs[both].mean(), 0, sign=True) + "%" if complete else "–"
        reached = NOT_REACHED if lost == pairs else f"{NOT_REACHED} ({lost} of {pairs} seeds)"
        rows.append(
            [
                style.method_label(method),
                mean_std(float(mean), float(std)),
                needed_text(theirs[both]),
                needed_text(ours[both], panel.labeled[focus, both, 0]),
                interval(saved.mean(), low, high, 0) if complete else reached,
                share,
            ]
        )
        data += [
            (
                panel.key,
                method,
                panel.methods[focus],
                panel.seeds[s],
                target[s],
                theirs[s],
                ours[s],
                theirs[s] - ours[s],
            )
            for s in np.flatnonzero(both)
        ]
    columns = ["dataset", "baseline", "method", "seed", "target", "labels_baseline", "labels_method", "saved"]
    note = (
        f"For each seed, the labels with which {name} first reaches the baseline's last value, against those the "
        "baseline needed; the mean of the differences with a 95% bootstrap interval paired by seed. Positive: labels saved."
    )
    heads = ["Baseline", "its last value (%)", "its labels", f"{name}'s labels", "saved", "share"]
    return (
        Table(
            f"saved_{panel.key}",
            f"Labels saved by {name}, {panel.title}",
            note,
            heads,
            rows,
            pd.DataFrame(data, columns=columns),
        )
        if rows
        else None
    )


def focal(panel: Panel) -> int | None:
    """The method whose savings are reported: `mal`, or else the largest area; None without any curve."""
    if (mal := panel.index("mal")) is not None:
        return mal
    mean = stats.summary(panel.areas())[0]
    return None if np.isnan(mean).all() else int(np.nanargmax(mean))


def last_value(values: np.ndarray) -> np.ndarray:
    """The last value that is there of each seed's curve: (S, R) -> (S,)."""
    known = ~np.isnan(values)
    last = values.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.where(known.any(axis=1), np.take_along_axis(values, last[:, None], axis=1)[:, 0], np.nan)


def start_table(panel: Panel, baseline: str) -> Table | None:
    """How much of an advantage was there in round 0, before any query, and how much came with the queries."""
    base = panel.index(baseline)
    if base is None or panel.horizon < 2:
        return None
    h = panel.horizon
    start = panel.values[..., 0] - panel.values[base, :, 0]
    total = panel.areas() - panel.areas()[base]
    gained = panel.values[..., h - 1] - panel.values[..., 0]
    rows, data = [], []
    for m, method in enumerate(panel.methods):
        pairs = ~np.isnan(start[m]) & ~np.isnan(total[m])
        parts = [np.where(pairs, part, np.nan) for part in (start[m], total[m] - start[m], total[m])]
        first, gain = stats.summary(panel.values[m, :, 0]), stats.summary(gained[m])
        shown = ["–"] * 3 if m == base else [_difference(part) for part in parts]
        rows.append(
            [
                style.method_label(method),
                mean_std(float(first[0]), float(first[1])),
                mean_std(float(gain[0]), float(gain[1])),
                *shown,
            ]
        )
        data += [
            (panel.key, method, panel.seeds[s], panel.values[m, s, 0], gained[m, s], *(part[s] for part in parts))
            for s in np.flatnonzero(~np.isnan(panel.values[m, :, 0]))
        ]
    columns = ["dataset", "method", "seed", "start", "gain", "start_difference", "choice_difference", "area_difference"]
    against = style.method_label(baseline)
    note = (
        f"Round 0 is trained on the same labels by every method, so its difference from {against} is the start. The "
        "difference in area beyond it is what the later rounds added. Means over seeds, 95% bootstrap intervals."
    )
    heads = ["Method", "Round 0 (%)", "Gain since", "Start", "Beyond the start", "Area in all"]
    note += _same_start(panel)
    return Table(
        f"start_{panel.key}", f"Start and choice, {panel.title}", note, heads, rows, pd.DataFrame(data, columns=columns)
    )


def _difference(values: np.ndarray) -> str:
    return interval(float(stats.summary(values)[0]), *stats.bootstrap_interval(values))


def _same_start(panel: Panel) -> str:
    """MAL against its own F with a random query: the cleanest measure of the choice, where it ran."""
    mal, control = panel.index("mal"), panel.index("mal_init_random")
    if mal is None or control is None:
        return ""
    areas = panel.areas()
    return (
        f" With the same start, MAL's query against a random one: {_difference(areas[mal] - areas[control])} in area."
    )


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
