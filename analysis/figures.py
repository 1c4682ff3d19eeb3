"""Learning curves, gains and cost: PNG to look at, PDF for papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from analysis import stats, style
from analysis.panels import Panel
from analysis.references import Reference

WIDTH = 6.9  # inches: the text width of a two-column paper
FLOOR: dict[str, Any] = {"color": "#9aa1a8", "lw": 0.9, "zorder": 2.5}
MARKED = 20  # beyond so many rounds only some carry a marker


def use_theme() -> None:
    """Type sizes and lines for print; fonts embedded as outlines that journals accept. Drawn without a display."""
    plt.switch_backend("agg")
    sns.set_theme(
        context="paper",
        style="ticks",
        rc={
            "font.family": "DejaVu Sans",
            "font.size": 8,
            "axes.titlesize": 9,
            "axes.labelsize": 8.5,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "legend.fontsize": 7.5,
            "axes.linewidth": 0.7,
            "axes.grid": True,
            "grid.color": "#e3e6e9",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "xtick.major.size": 3,
            "ytick.major.size": 3,
            "pdf.fonttype": 42,
            "savefig.bbox": "tight",
            "savefig.pad_inches": 0.04,
        },
    )


def save(figure: Figure, stem: Path, dpi: int) -> None:
    """STEM.png (at `dpi`) and STEM.pdf, without dates, so that the same runs give the same files."""
    figure.savefig(stem.with_suffix(".png"), dpi=dpi, metadata={"Software": None})
    figure.set_layout_engine("none")  # laid out above; doing it again takes a quarter of the time
    figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None})
    plt.close(figure)


def grid(count: int, entries: int, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    """Axes for `count` panels, two per row, above a legend of `entries`; a single one keeps its width."""
    columns = min(count, 2)
    rows = -(-count // columns)
    width, height = (WIDTH, height) if columns == 2 else (4.4, 2.6)
    size = (width, height * rows + 0.17 * -(-entries // legend_columns(width)))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    flat = list(axes.ravel())
    for unused in flat[count:]:
        unused.set_visible(False)
    return figure, flat[:count]


def legend_columns(width: float) -> int:
    """How many entries of a legend stand beside each other in a figure of `width` inches."""
    return 5 if width > 6 else 3


def legend(figure: Figure, handles: list[Line2D]) -> None:
    """One legend below all panels."""
    columns = min(len(handles), legend_columns(figure.get_figwidth()))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=2.2,
        columnspacing=1.4,
        handletextpad=0.5,
    )


def handle(method: str) -> Line2D:
    """A legend entry of a method."""
    look = style.look(method)
    return Line2D(
        [],
        [],
        color=look.colour,
        marker=look.marker,
        ms=4.5,
        lw=weight(method),
        ls=look.line,
        mec="white",
        mew=0.5,
        label=look.label,
    )


def weight(method: str) -> float:
    """Line width: MAL's is the heaviest."""
    return 2.0 if method == "mal" else 1.3


def methods_of(panels: list[Panel]) -> list[str]:
    """All methods of the panels in the order of every legend."""
    return style.ordered({method for panel in panels for method in panel.methods})


def label_axis(axes: Axes, panel: Panel, rounds: slice = slice(None)) -> None:
    """A horizontal axis that counts labels; few rounds are each named, with their share of the pool."""
    counts, percents = panel.budgets[rounds], panel.percents[rounds]
    if len(counts) <= 7:
        decimals = 0 if np.all(np.abs(percents - np.round(percents)) < 0.05) else 1
        axes.set_xticks(counts, [f"{c:,.0f}\n{p:.{decimals}f}%" for c, p in zip(counts, percents, strict=True)])
        axes.set_xlabel("Labelled images, share of the pool")
    else:
        axes.set_xlabel("Labelled images")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    sns.despine(ax=axes)


def line(axes: Axes, method: str, x: np.ndarray, y: np.ndarray, hollow: np.ndarray | None = None) -> None:
    """A method's line through all points; markers on all, or on every so many of a long curve, hollow where told."""
    look = style.look(method)
    axes.plot(x, y, color=look.colour, lw=weight(method), ls=look.line, zorder=3 + (method == "mal"))
    at = np.arange(len(x)) % -(-len(x) // MARKED) == 0 if len(x) else np.zeros(0, bool)
    empty = np.zeros(len(x), bool) if hollow is None else hollow
    marks: dict[str, Any] = {"ls": "", "marker": look.marker, "zorder": 5}
    axes.plot(x[at & ~empty], y[at & ~empty], ms=4.8, color=look.colour, mec="white", mew=0.5, **marks)
    axes.plot(x[at & empty], y[at & empty], ms=4.5, mfc="white", mec=look.colour, mew=1.0, **marks)


def draw_curves(
    panels: list[Panel], references: dict[str, list[Reference]], floors: dict[str, np.ndarray] | None = None
) -> Figure:
    """Mean ± std of each method against labels, each seed's points faint behind, published curves dashed.

    floors: by panel, what the best simple classifier reaches in each round (R,), a thin grey line.
    """
    floors = floors or {}
    figure, all_axes = grid(len(panels), len(methods_of(panels)))
    hollow = False
    for axes, panel in zip(all_axes, panels, strict=True):
        hollow |= _curves(axes, panel)
        for reference in references.get(panel.key, []):
            _reference(axes, reference)
        if panel.key in floors:
            _floor(axes, panel, floors[panel.key])
    handles = [handle(method) for method in methods_of(panels)]
    if any(references.values()):
        handles.append(
            Line2D([], [], color="#444444", ls=(0, (4, 2)), lw=1.1, marker="o", mfc="none", ms=7, label="published")
        )
    if hollow:
        handles.append(
            Line2D([], [], color="#444444", marker="o", mfc="white", ls="", ms=4.5, label="not all seeds yet")
        )
    if floors:
        handles.append(Line2D([], [], **FLOOR, label="best simple classifier"))
    legend(figure, handles)
    return figure


def _floor(axes: Axes, panel: Panel, floor: np.ndarray) -> None:
    """What the best simple classifier reaches; far below the curves it leaves the axes rather than to flatten them."""
    low, high = axes.get_ylim()
    axes.plot(panel.budgets, floor, **FLOOR)
    axes.set_ylim(max(axes.get_ylim()[0], low - (high - low) / 2), max(high, axes.get_ylim()[1]))


def _curves(axes: Axes, panel: Panel) -> bool:
    """Draw one panel; whether some point lacks seeds that its method has elsewhere in the panel."""
    mean, std, count = stats.summary(panel.values, axis=1)
    labels = panel.labels
    partial = False
    for m in reversed(range(len(panel.methods))):  # MAL, the first, is drawn last and lies on top
        method = panel.methods[m]
        look = style.look(method)
        known = ~np.isnan(mean[m])
        x, y = labels[m][known], mean[m][known]
        size = 7 if len(panel.rounds) <= MARKED else 2
        axes.scatter(panel.labeled[m], panel.values[m], s=size, color=look.colour, alpha=0.28, lw=0, zorder=2)
        band = known & (count[m] > 1)
        axes.fill_between(
            labels[m][band], (mean - std)[m][band], (mean + std)[m][band], color=look.colour, alpha=0.13, lw=0
        )
        few = count[m][known] < len(panel.seeds)
        line(axes, method, x, y, few)
        partial |= bool(few.any())
    axes.set_title(panel.title)
    axes.set_ylabel(style.metric_label(panel.metric))
    label_axis(axes, panel)
    return partial


def _reference(axes: Axes, reference: Reference) -> None:
    """A published curve, dashed; fewer than three points are not joined. Open markers, over those of the runs."""
    look = style.look(reference.method)
    axes.errorbar(
        reference.labeled,
        reference.mean,
        yerr=None if np.isnan(reference.std).all() else reference.std,
        color=look.colour,
        ls=(0, (4, 2)) if len(reference.mean) >= 3 else "none",
        lw=1.1,
        marker=look.marker,
        ms=7,
        mfc="none",
        mew=0.8,
        elinewidth=0.7,
        capsize=2.2,
        zorder=6,
    )


def curves_caption(
    panels: list[Panel], beside: dict[str, tuple[list[Reference], str]], floors: dict[str, np.ndarray] | None = None
) -> str:
    """What the curves show, and what they do not."""
    seeds = sorted({len(panel.seeds) for panel in panels})
    span = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    text = f"Mean over {span} seed{'s' * (seeds[-1] > 1)} against the number of labels"
    text += (
        ", band: ± one standard deviation; faint points: single seeds."
        if seeds[-1] > 1
        else " (one seed: no deviation)."
    )
    if any((np.isnan(p.values).any(axis=1) & ~np.isnan(p.values).all(axis=1)).any() for p in panels):
        text += " Hollow markers: not every seed has that round."
    if floors:
        text += " Thin grey line: the best simple classifier on the same labelled images, mean over all chains."
    sources = sorted({r.source for found, _ in beside.values() for r in found})
    if sources:
        text += f" Open markers, dashed: published figures ({'; '.join(sources)}) of the same dataset and backbone."
    return text


def draw_gain(panels: list[Panel], baseline: str) -> Figure:
    """Difference from the baseline, paired by seed: mean with Student's 95% interval, single seeds faint behind."""
    figure, all_axes = grid(len(panels), len(methods_of(panels)))
    for axes, panel in zip(all_axes, panels, strict=True):
        _gain(axes, panel, baseline)
    legend(figure, [handle(method) for method in methods_of(panels) if method != baseline])
    return figure


def _gain(axes: Axes, panel: Panel, baseline: str) -> None:
    base = panel.index(baseline)
    assert base is not None, "panels without the baseline are left out before"
    axes.axhline(0, color=style.look(baseline).colour, lw=1.1, zorder=1.5)
    for m in reversed(range(len(panel.methods))):
        if m == base:
            continue
        look = style.look(panel.methods[m])
        differences = panel.values[m] - panel.values[base]
        mean = stats.summary(differences, axis=0)[0]
        half = stats.t_half_width(differences.T)
        x = panel.labels[m]
        band = ~np.isnan(half)
        axes.scatter(panel.labeled[m], differences, s=6, color=look.colour, alpha=0.25, lw=0, zorder=2)
        axes.fill_between(x[band], (mean - half)[band], (mean + half)[band], color=look.colour, alpha=0.13, lw=0)
        known = ~np.isnan(mean)
        line(axes, panel.methods[m], x[known], mean[known])
    axes.set_title(panel.title)
    axes.set_ylabel(f"Gain over {style.method_label(baseline)} (points)")
    label_axis(axes, panel)


def draw_hours(panels: list[Panel]) -> Figure:
    """Mean metric against mean hours spent up to each round; bars: ± std of the metric."""
    figure, all_axes = grid(len(panels), len(methods_of(panels)))
    for axes, panel in zip(all_axes, panels, strict=True):
        mean, std, _ = stats.summary(panel.values, axis=1)
        hours = stats.summary(panel.hours, axis=1)[0]
        unit, scale = ("hours", 1) if np.nanmax(hours, initial=0) >= 1 else ("minutes", 60)
        for m in reversed(range(len(panel.methods))):
            known = ~np.isnan(mean[m]) & ~np.isnan(hours[m])
            x, colour = scale * hours[m][known], style.look(panel.methods[m]).colour
            line(axes, panel.methods[m], x, mean[m][known])
            axes.errorbar(x, mean[m][known], std[m][known], color=colour, ls="", elinewidth=0.7, capsize=1.5, alpha=0.6)
        axes.set_title(panel.title)
        axes.set_ylabel(style.metric_label(panel.metric))
        axes.set_xlabel(f"GPU-{unit}" if panel.on_gpu else f"{unit.capitalize()} of computing (no GPU)")
        axes.set_xlim(left=0)
        sns.despine(ax=axes)
    legend(figure, [handle(method) for method in methods_of(panels)])
    return figure
