"""Figures of queries and of pairs of methods: heat maps, evenness over classes, maps of features."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import stats, style
from analysis.figures import WIDTH, grid, handle, label_axis, legend, line, methods_of
from analysis.panels import Panel
from analysis.queries import LABELLED, QUERIED, UNLABELLED, Balance, FeatureMap, Overlap

BESIDE = 10  # up to this many methods two matrices stand side by side
NAMED_CLASSES = 12  # up to this many classes are labelled one by one


def draw_balance(panels: list[Panel], balances: list[Balance]) -> Figure:
    """Left: how even each query is over the classes. Right: which classes are asked for more often than their share."""
    height = max(2.3, 0.28 * max(len(panel.methods) for panel in panels) + 1.1)
    figure, axes = plt.subplots(
        len(panels), 2, figsize=(WIDTH, height * len(panels)), squeeze=False, layout="constrained"
    )
    for (left, right), panel, balance in zip(axes, panels, balances, strict=True):
        _evenness(left, panel, balance)
        _lift(right, panel, balance)
    legend(figure, [handle(method) for method in methods_of(panels)])
    return figure


def _evenness(axes: Axes, panel: Panel, balance: Balance) -> None:
    asked = ~np.isnan(balance.evenness).all(axis=(0, 1))
    for m in reversed(range(len(panel.methods))):
        mean = stats.summary(balance.evenness[m], axis=0)[0]
        known = ~np.isnan(mean)
        line(axes, panel.methods[m], panel.labels[m][known], mean[known])
    axes.set_title(panel.title)
    axes.set_ylabel("Evenness of classes")
    axes.set_ylim(min(0.9, float(np.nanmin(balance.evenness)) - 0.02), 1.003)
    label_axis(axes, panel, slice(int(np.flatnonzero(asked)[-1]) + 1))


def _lift(axes: Axes, panel: Panel, balance: Balance) -> None:
    lift = balance.lift[:, balance.order]
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log2(lift), -2, 2)
    names: Any = balance.order if lift.shape[1] <= NAMED_CLASSES else False
    sns.heatmap(
        logs,
        ax=axes,
        cmap="PuOr_r",
        vmin=-2,
        vmax=2,
        xticklabels=names,
        yticklabels=False,
        rasterized=True,
        cbar_kws={"ticks": [-2, -1, 0, 1, 2], "pad": 0.02},
    )
    bar = axes.collections[0].colorbar
    assert bar is not None
    bar.ax.set_yticklabels(["≤ 1/4", "1/2", "1", "2", "≥ 4"])
    bar.outline.set_visible(False)
    axes.set_yticks(np.arange(len(panel.methods)) + 0.5, [style.method_label(m) for m in panel.methods], rotation=0)
    sorted_by = ", largest first" if balance.against_pool and np.any(np.diff(balance.order) != 1) else ""
    axes.set_xlabel(f"Class{sorted_by}")
    axes.set_title(f"Queried / share {'in the pool' if balance.against_pool else 'of an even query'}")
    axes.tick_params(length=0)


def draw_overlap(panels: list[Panel], overlaps: list[Overlap]) -> Figure:
    """Labels that two methods both bought, of the first query and of all."""
    figure, axes = _sides(max(len(panel.methods) for panel in panels), len(panels))
    for row, panel, overlap in zip(axes, panels, overlaps, strict=True):
        labels = [style.method_label(method) for method in panel.methods]
        sides = (
            (overlap.first, f"{panel.title}: first query (chance {overlap.first_chance:.0f}%)"),
            (overlap.all, f"all queries of {overlap.rounds - 1} rounds (chance {overlap.all_chance:.0f}%)"),
        )
        for k, (matrix, title) in enumerate(sides):
            others = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
            _pairs(row[k], others, labels, labels, ".0f", 100)
            row[k].set_title(title)
    return figure


def draw_penalties(matrices: list[np.ndarray], titles: list[str], methods: list[str], settings: int) -> Figure:
    """Pairwise penalty matrices, with the mean of each column below it (lower is better)."""
    figure, axes = _sides(len(methods), 1)
    labels = [style.method_label(method) for method in methods]
    for k, (matrix, title) in enumerate(zip(matrices, titles, strict=True)):
        beaten = matrix.sum(axis=0, keepdims=True) / (len(methods) - 1)
        whole = np.vstack([np.where(np.eye(len(methods), dtype=bool), np.nan, matrix), beaten])
        _pairs(axes[0, k], whole, [*labels, "beaten, mean"], labels, ".2f", settings)
        axes[0, k].axhline(len(methods), color="white", lw=4)
        axes[0, k].set_title(title)
    return figure


def _sides(methods: int, rows: int) -> tuple[Figure, Any]:
    """Axes (rows, 2) for two matrices per row, which stand below each other where there are many methods."""
    beside = methods <= BESIDE
    height = 0.27 * methods + (1.2 if beside else 1.7)
    shape, size = ((rows, 2), (WIDTH, height * rows)) if beside else ((2 * rows, 1), (WIDTH, 2 * height * rows))
    figure, axes = plt.subplots(
        *shape, figsize=size, squeeze=False, sharey="row" if beside else False, layout="constrained"
    )
    return figure, axes.reshape(rows, 2)


def _pairs(axes: Axes, matrix: np.ndarray, left: list[str], below: list[str], form: str, top: float) -> None:
    small = 8 < matrix.shape[1] <= BESIDE
    texts = np.array([[f"{value:{form}}" if value else "0" for value in row] for row in matrix])
    sns.heatmap(
        matrix,
        ax=axes,
        cmap="Blues",
        vmin=0,
        vmax=top,
        annot=texts,
        fmt="",
        cbar=False,
        linewidths=0.6,
        annot_kws={"size": 5.2 if small else 6.6},
        xticklabels=below,
        yticklabels=left,
    )
    axes.grid(False)
    axes.set_facecolor("#eceff1")
    axes.tick_params(axis="y", rotation=0)
    axes.set_xticklabels(below, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)


def draw_maps(panel: Panel, maps: list[FeatureMap]) -> Figure:
    """A round's features on two axes: unlabelled, labelled and queried images, as the paper's Figure 1."""
    looks: list[tuple[int, str, dict[str, Any]]] = [
        (UNLABELLED, "unlabelled", {"s": 5, "color": "#B8BEC4", "marker": "o", "alpha": 0.5, "lw": 0}),
        (LABELLED, "labelled", {"s": 14, "color": "#0072B2", "marker": "s", "lw": 0.3, "edgecolor": "white"}),
        (QUERIED, "queried", {"s": 18, "color": "#D55E00", "marker": "^", "lw": 0.4, "edgecolor": "white"}),
    ]
    figure, all_axes = grid(len(maps), len(looks), height=2.9)
    for axes, drawn in zip(all_axes, maps, strict=True):
        for state, _, look in looks:
            chosen = drawn.points[drawn.state == state]
            axes.scatter(chosen[:, 0], chosen[:, 1], rasterized=len(chosen) > 2000, **look)
        axes.set_title(f"{style.method_label(drawn.method)}, seed {drawn.seed}, round {drawn.number}")
        axes.set_xlabel(f"principal axes ({drawn.explained:.0f}% of the variance)")
        axes.set_xticks([])
        axes.set_yticks([])
        sns.despine(ax=axes, left=True, bottom=True)
    handles = [
        Line2D([], [], ls="", marker=look["marker"], color=look["color"], ms=5, label=name) for _, name, look in looks
    ]
    legend(figure, handles)
    return figure
