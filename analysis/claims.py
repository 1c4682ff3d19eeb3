"""The claims that a report can make: "A above B" by area under the curve, on every dataset of the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import sequential, stats, style
from analysis.panels import Panel
from analysis.table import Table, interval, number, p_value

FOCUS = "mal"  # the method that the paper claims to be above every other


@dataclass(frozen=True)
class Comparison:
    """One line of a claim. differences: (S,), points of area, of chains that have all rounds; NaN: no pair."""

    panel: Panel
    above: str
    below: str
    differences: np.ndarray

    @property
    def text(self) -> str:
        """`Digits: MAL above Random`."""
        return f"{self.panel.title}: {style.method_label(self.above)} above {style.method_label(self.below)}"


def comparisons(panels: list[Panel], baseline: str) -> dict[str, list[Comparison]]:
    """The claims by a short name: MAL above each other method, and each method above the baseline."""
    claims: dict[str, list[Comparison]] = {FOCUS: [], baseline: []} if baseline != FOCUS else {FOCUS: []}
    for panel in panels:
        areas = panel.finished_areas()
        for name, lines in claims.items():
            fixed = panel.index(name)
            for m in range(len(panel.methods)):
                if fixed is not None and m != fixed:
                    over, under = (fixed, m) if name == FOCUS else (m, fixed)
                    pair = panel.methods[over], panel.methods[under]
                    lines.append(Comparison(panel, *pair, areas[over] - areas[under]))
    return {name: lines for name, lines in claims.items() if _pairs(lines)}


def _pairs(lines: list[Comparison]) -> int:
    return sum(int((~np.isnan(line.differences)).sum()) for line in lines)


def differences_of(lines: list[Comparison]) -> np.ndarray:
    """The differences of comparisons with different seeds in one array (K, most seeds), filled up with NaN."""
    filled = np.full((len(lines), max(len(line.differences) for line in lines)), np.nan)
    for k, line in enumerate(lines):
        filled[k, : len(line.differences)] = line.differences
    return filled


def claims_table(name: str, lines: list[Comparison], points: float) -> Table:
    """One claim: its comparisons with interval, Holm's p over all of them, seeds needed, and the sequential test.

    points: the difference for which the seeds needed are stated.
    """
    differences = differences_of(lines)
    tests, adjusted = stats.family_tests(differences)
    low, high = stats.t_interval(differences)
    std = stats.summary(differences)[1]
    alone = stats.seeds_needed(std, points)
    first = stats.seeds_needed(std, points, stats.LEVEL / len(lines))
    evidence = sequential.evidence(differences)
    together = sequential.over_all(evidence)
    shown = together >= sequential.CLAIM
    rows = []
    for k, line in enumerate(lines):
        needed = "–" if np.isnan(alone[k]) else f"{_seeds(alone[k])} / {_seeds(first[k])}"
        pairs, difference = str(tests.n[k]), interval(tests.mean[k], low[k], high[k])
        now = "yes" if shown[k] else "not yet"
        texts = pairs, difference, p_value(adjusted[k]), needed, _evidence(evidence[k]), _evidence(together[k]), now
        rows.append([line.text, *texts])
    names = {
        "dataset": [line.panel.key for line in lines],
        "above": [line.above for line in lines],
        "below": [line.below for line in lines],
    }
    figures = {"pairs": tests.n, "difference": tests.mean, "low": low, "high": high, "std": std}
    judged = {"p": tests.p, "p_holm": adjusted, "seeds_needed": alone, "seeds_needed_holm": first}
    said = {"evidence": evidence, "evidence_over_all": together, "claimed": shown}
    heads = ["Claim", "Pairs", "Difference", "p", f"Seeds for {points:g}", "Evidence", "over all", "Shown"]
    title = "MAL above each other method" if name == FOCUS else f"Each method above {style.method_label(name)}"
    frame = pd.DataFrame({**names, **figures, **judged, **said})
    return Table(f"claims_{name}", title, _note(len(lines), points), heads, rows, frame)


def _note(count: int, points: float) -> str:
    return (
        "Area under the curve over all planned rounds, of finished chains, paired by seed: difference in points with "
        f"Student's 95% interval, p of a two-sided t-test after Holm over all {count} lines. Seeds with which such a "
        f"test finds a true difference of {points:g} points with a probability of 80%: alone / at Holm's first step. "
        "These are for a number of seeds that was fixed beforehand. Evidence is that of a sequential test, alone and "
        "over all lines at once: it may be looked at after each seed; where a line is called shown at 20, at most 5% "
        "of such tables ever show one that is false (for normal differences)."
    )


def _seeds(needed: float) -> str:
    return f">{stats.MOST_SEEDS:,}" if np.isinf(needed) else f"{needed:,.0f}"


def _evidence(value: float) -> str:
    return ">1,000" if value > 1000 else number(value, 1)
