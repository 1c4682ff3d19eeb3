"""Figures of what happened inside the rounds: signals against labels, losses over the steps of each round."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import stats, style
from analysis.diagnostics import Losses, name_of
from analysis.figures import grid, handle, label_axis, legend, line, weight
from analysis.panels import Panel

WORDS = {"minimax": "Algorithm 1", "task": "Training of M", "vaal": "VAAL"}
DECADES = 2.0  # losses that span more are drawn on a logarithmic axis


def draw_signals(panel: Panel, signals: dict[str, np.ndarray]) -> Figure:
    """Each signal's mean over seeds against the number of labels."""
    present = [m for m in range(len(panel.methods)) if any(_any(cube[m]) for cube in signals.values())]
    figure, all_axes = grid(len(signals), len(present), height=2.1)
    for axes, (signal, cube) in zip(all_axes, signals.items(), strict=True):
        for m in reversed(present):
            mean = stats.summary(cube[m], axis=0)[0]
            known = ~np.isnan(mean)
            line(axes, panel.methods[m], panel.labels[m][known], mean[known])
        axes.set_title(name_of(signal))
        label_axis(axes, panel)
    legend(figure, [handle(panel.methods[m]) for m in present])
    return figure


def draw_losses(panel: Panel, losses: list[Losses]) -> Figure:
    """Each loss over the steps of the rounds, side by side, mean over seeds."""
    present = [m for m in range(len(panel.methods)) if any(_any(each.means[m]) for each in losses)]
    figure, all_axes = grid(len(losses), len(present), height=2.1)
    for axes, each in zip(all_axes, losses, strict=True):
        _losses(axes, panel, each)
    legend(figure, [handle(panel.methods[m]) for m in present])
    return figure


def _losses(axes: Axes, panel: Panel, each: Losses) -> None:
    points = each.means.shape[-1]
    for r in range(len(each.rounds)):
        steps = r + np.linspace(0.04, 0.96, points)  # a gap between two rounds
        for m in reversed(range(len(panel.methods))):
            method = panel.methods[m]
            look = style.look(method)
            axes.plot(steps, each.means[m, r], color=look.colour, ls=look.line, lw=0.8 * weight(method))
    drawn = each.means[~np.isnan(each.means)]
    if drawn.min() > 0 and np.log10(drawn.max() / drawn.min()) > DECADES:
        axes.set_yscale("log")
    for r in range(1, len(each.rounds)):
        axes.axvline(r, color="#c9ced3", lw=0.6, zorder=1)
    axes.set_xlim(0, len(each.rounds))
    axes.set_xticks(np.arange(len(each.rounds)) + 0.5, [str(number) for number in each.rounds])
    axes.set_xlabel("Steps within each round")
    axes.set_title(f"{WORDS.get(each.phase, each.phase)}: {each.loss.replace('_', ' ')}")
    axes.grid(axis="x", visible=False)
    sns.despine(ax=axes)


def _any(values: np.ndarray) -> bool:
    return not bool(np.isnan(values).all())
