"""Tables of the labels that an accuracy needs, and of the accuracy before any label was chosen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis import stats, style
from analysis.panels import Panel
from analysis.table import Table, interval, mean_std, number

NOT_REACHED, NOT_YET = "not reached", "not yet"


def default_targets(panel: Panel) -> list[float]:
    """Three accuracies at 40, 65 and 90% of the range between the worst mean and the best, rounded."""
    mean = stats.summary(panel.values, axis=1)[0]
    if np.isnan(mean).all():
        return []
    low, high = float(np.nanmin(mean)), float(np.nanmax(mean))
    decimals = 0 if high - low >= 8 else 1
    return sorted({round(low + (high - low) * part, decimals) for part in (0.4, 0.65, 0.9)})


def reach(panel: Panel, method: int, targets: np.ndarray) -> np.ndarray:
    """Labels (S,) at which each seed of a method reaches its target (S,); infinity and NaN as in `labels_to_reach`."""
    curves = zip(panel.labeled[method], panel.values[method], targets, strict=True)
    return np.array([stats.labels_to_reach(x, y, float(target)) for x, y, target in curves])


def finished(panel: Panel, method: int) -> np.ndarray:
    """Whether each seed (S,) of a method has the panel's last round, so that "not reached" is final."""
    return ~np.isnan(panel.values[method, :, -1])


def lost_text(needed: np.ndarray, done: np.ndarray) -> str:
    """`not reached (2 of 3 seeds)`, `not yet` where only unfinished chains lack it, nothing where all have it."""
    lost, known = np.isinf(needed), int((~np.isnan(needed)).sum())
    if not lost.any():
        return ""
    word = NOT_REACHED if done[lost].any() else NOT_YET
    return word if lost.sum() == known else f"{word} ({lost.sum()} of {known} seeds)"


def needed_text(needed: np.ndarray, start: np.ndarray, done: np.ndarray) -> str:
    """`412 ± 31`, `≤ 100` where every seed (S,) is there in round 0, `not reached (2 of 3 seeds)`, or a dash."""
    known = ~np.isnan(needed)
    if not known.any():
        return "–"
    if lost := lost_text(needed, done):
        return lost
    mean, std, _ = stats.summary(needed)
    if np.all(needed[known] <= start[known]):
        return f"≤ {mean:,.0f}"
    return mean_std(float(mean), float(std), 0)


def labels_table(panel: Panel, targets: Iterable[float]) -> Table | None:
    """Labels that each method needs to reach given accuracies, interpolated per seed."""
    targets = list(targets) or default_targets(panel)
    if not targets:
        return None
    rows, frames = [], []
    for m, method in enumerate(panel.methods):
        texts = []
        for target in targets:
            needed = reach(panel, m, np.full(len(panel.seeds), target))
            texts.append(needed_text(needed, panel.labeled[m, :, 0], finished(panel, m)))
            columns = {"method": method, "seed": panel.seeds, "target": target, "labels": needed}
            frames.append(pd.DataFrame({"dataset": panel.key, **columns, "reached": np.isfinite(needed)}))
        rows.append([style.method_label(method), *texts])
    note = (
        "Mean ± standard deviation over seeds of the labels at which a seed's curve first reaches the value, linear "
        "between rounds. A mean is given only where every seed reaches it; ≤: there from the first round on."
    )
    heads = ["Method", *[f"{target:g}%" for target in targets]]
    frame = pd.concat(frames, ignore_index=True).dropna(subset="labels")
    return Table(f"labels_{panel.key}", f"Labels needed, {panel.title}", note, heads, rows, frame)


def saved_table(panel: Panel) -> Table | None:
    """Labels that MAL (or else the method with the largest area) saves on its way to each baseline's last accuracy."""
    focus = focal(panel)
    if focus is None:
        return None
    rows, frames = [], []
    for b, method in enumerate(panel.methods):
        target = last_value(panel.values[b])
        theirs, ours = reach(panel, b, target), reach(panel, focus, target)
        pair = ~np.isnan(theirs) & ~np.isnan(ours)
        if b == focus or not pair.any():
            continue
        theirs, ours, target = (np.where(pair, values, np.nan) for values in (theirs, ours, target))
        rows.append([style.method_label(method), *_saved(panel, focus, theirs, ours, target)])
        columns = {"target": target, "labels_baseline": theirs, "labels_method": ours, "saved": theirs - ours}
        names = {"dataset": panel.key, "baseline": method, "method": panel.methods[focus], "seed": panel.seeds}
        frames.append(pd.DataFrame({**names, **columns})[pair])
    if not rows:
        return None
    name = style.method_label(panel.methods[focus])
    note = (
        f"For each seed, the labels with which {name} first reaches the baseline's last value, against those the "
        "baseline needed; the mean of the differences with Student's 95% interval, paired. Positive: labels saved."
    )
    heads = ["Baseline", "its last value (%)", "its labels", f"{name}'s labels", "saved", "share"]
    frame = pd.concat(frames, ignore_index=True)
    return Table(f"saved_{panel.key}", f"Labels saved by {name}, {panel.title}", note, heads, rows, frame)


def _saved(panel: Panel, focus: int, theirs: np.ndarray, ours: np.ndarray, target: np.ndarray) -> list[str]:
    """The texts of one baseline: its last value, its labels, the other's, the difference and its share."""
    mean, std, _ = stats.summary(target)
    done = finished(panel, focus)
    texts = [mean_std(float(mean), float(std)), needed_text(theirs, np.zeros_like(theirs), np.ones_like(done))]
    texts.append(needed_text(ours, panel.labeled[focus, :, 0], done))
    if lost := lost_text(ours, done):
        return [*texts, lost, "–"]
    saved = theirs - ours
    share = 100 * np.nansum(saved) / np.nansum(theirs)
    return [
        *texts,
        _difference(saved, 0),
        number(share, 0, sign=True) + "%",
    ]


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
    first = panel.values[..., 0]
    gain = panel.values[..., panel.horizon - 1] - first
    areas = panel.areas()
    total = areas - areas[base]
    start = np.where(np.isnan(total), np.nan, first - first[base])
    rows, frames = [], []
    for m, method in enumerate(panel.methods):
        parts = (start[m], total[m] - start[m], total[m])
        differences = ["–"] * 3 if m == base else [_difference(part) for part in parts]
        rows.append([style.method_label(method), _mean_std(first[m]), _mean_std(gain[m]), *differences])
        names = {"dataset": panel.key, "method": method, "seed": panel.seeds, "start": first[m], "gain": gain[m]}
        versus = dict(zip(("start_difference", "choice_difference", "area_difference"), parts, strict=True))
        frames.append(pd.DataFrame({**names, **versus}).dropna(subset="start"))
    against = style.method_label(baseline)
    note = (
        f"Round 0 is trained on the same labels by every method, so its difference from {against} is the start. The "
        "difference in area beyond it is what the later rounds added. Means over seeds, Student's 95% intervals."
    )
    heads = ["Method", "Round 0 (%)", "Gain since", "Start", "Beyond the start", "Area in all"]
    frame = pd.concat(frames, ignore_index=True)
    return Table(
        f"start_{panel.key}", f"Start and choice, {panel.title}", note + _same_start(panel), heads, rows, frame
    )


def _mean_std(values: np.ndarray) -> str:
    mean, std, _ = stats.summary(values)
    return mean_std(float(mean), float(std))


def _difference(values: np.ndarray, decimals: int = 2) -> str:
    low, high = stats.t_interval(values)
    return interval(float(stats.summary(values)[0]), float(low), float(high), decimals)


def _same_start(panel: Panel) -> str:
    """MAL against its own F with a random query: the cleanest measure of the choice, where it ran."""
    mal, control = panel.index("mal"), panel.index("mal_init_random")
    if mal is None or control is None:
        return ""
    areas = panel.areas()
    difference = _difference(areas[mal] - areas[control])
    return f" With the same start, MAL's query against a random one: {difference} in area."
