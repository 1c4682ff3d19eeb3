"""The report audits itself by published pitfalls: each line is passed, failed or unknown, with the figure it rests on.

Sources:
Lüth, Bungert, Klein, Jaeger 2023, Navigating the Pitfalls of Active Learning Evaluation: A Systematic Framework for
Meaningful Performance Assessment (NeurIPS); Munjal, Hayat, Hayat, Sourati, Khan 2022, Towards Robust and Reproducible
Active Learning Using Neural Networks (CVPR); Ash, Zhang, Krishnamurthy, Langford, Agarwal 2020, Deep Batch Active
Learning by Diverse, Uncertain Gradient Lower Bounds (ICLR).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import claims, convergence, stats, style
from analysis.floor import Floor
from analysis.options import Options
from analysis.panels import Panel
from analysis.reading import Runs
from analysis.table import number
from mal.run import folder as run_folder

PASSED, FAILED, UNKNOWN = "passed", "failed", "unknown"
CONTROL = "mal_init_random"  # MAL's start with a random query: it tells a start from a choice
IMBALANCED = 2.0  # largest class over smallest, from which on a pool counts as imbalanced
TUNING, TRIAL = "-tuning", re.compile(r"(.+)_t\d+")
INTRODUCTION = (
    "By the pitfalls that Lüth et al. (2023, Navigating the Pitfalls of Active Learning Evaluation: A Systematic "
    "Framework for Meaningful Performance Assessment), Munjal et al. (2022, Towards Robust and Reproducible Active "
    "Learning Using Neural Networks) and Ash et al. (2020, Deep Batch Active Learning by Diverse, Uncertain Gradient "
    "Lower Bounds) describe. Unknown: the rounds do not tell."
)


@dataclass(frozen=True)
class Line:
    """One line of the audit. result: PASSED, FAILED or UNKNOWN; figure: what it rests on, a sentence with numbers."""

    check: str
    result: str
    figure: str


@dataclass(frozen=True)
class Audited:
    """What the checks look at. floors: by the key of the panel, where its rounds have one."""

    runs: Runs
    panels: list[Panel]
    floors: dict[str, Floor]
    options: Options

    def rows(self, panel: Panel) -> pd.DataFrame:
        """The panel's rounds."""
        return self.runs.rounds[self.runs.rounds["panel"] == panel.key]

    def by_panel(self, check: str, of: Callable[[Panel], tuple[str, str]]) -> Line:
        """One line of a check of each panel: failed where one is, unknown where one is and none failed."""
        found = [(panel.title, *of(panel)) for panel in self.panels]
        results = {result for _, result, _ in found}
        worst = next(result for result in (FAILED, UNKNOWN, PASSED) if result in results)
        several = len(found) > 1
        return Line(check, worst, "; ".join(f"{title}: {text}" if several else text for title, _, text in found))


def audit(runs: Runs, panels: list[Panel], floors: dict[str, Floor], options: Options) -> list[Line]:
    """All lines, in the order in which a reader should ask."""
    audited = Audited(runs, panels, floors, options)
    return [
        audited.by_panel("task models above simple classifiers", lambda panel: _floor(floors.get(panel.key))),
        audited.by_panel("training converged", lambda panel: convergence.judged(panel, audited.rows(panel))),
        audited.by_panel("the same training for all methods", lambda panel: _steps(panel, audited.rows(panel))),
        audited.by_panel("the same steps of other networks", lambda panel: _own(panel, audited.rows(panel))),
        _tuning(audited),
        audited.by_panel("the same initial labels", lambda panel: _labels(audited.rows(panel))),
        audited.by_panel("the same start of the task model", lambda panel: _start(panel, runs)),
        audited.by_panel("enough seeds", lambda panel: _seeds(panel, options)),
        _datasets(panels),
        _budgets(audited),
        _imbalance(audited),
    ]


def _floor(floor: Floor | None) -> tuple[str, str]:
    if floor is None:
        return UNKNOWN, "no round says what simple classifiers reach (floor)"
    m, r = np.unravel_index(np.nanargmin(floor.difference), floor.difference.shape)
    where = f"{style.method_label(floor.panel.methods[m])} at {floor.panel.labels[m, r]:,.0f} labels"
    text = f"{floor.below.sum()} of {floor.known.sum()} means below the best of them; the least is"
    least = number(floor.difference[m, r], 1, sign=True)
    return FAILED if floor.below.any() else PASSED, f"{text} {least} points, {where}"


def _steps(panel: Panel, rows: pd.DataFrame) -> tuple[str, str]:
    """Steps of M's training in each round, which must not differ between methods with as many labels."""
    steps = convergence.steps(panel, rows)
    if np.isnan(steps).all():
        return UNKNOWN, "no round has a history of M's training"
    return _equal(panel, steps)


def _own(panel: Panel, rows: pd.DataFrame) -> tuple[str, str]:
    """Steps of Algorithm 1 and of VAAL's networks in each round; methods that train neither are not compared."""
    steps = convergence.steps(panel, rows, convergence.OWN)
    if np.isnan(convergence.steps(panel, rows)).all():
        return UNKNOWN, "no round has a history"
    if np.isnan(steps).all():
        return PASSED, "no method trains any"
    return _equal(panel, steps)


def _equal(panel: Panel, steps: np.ndarray) -> tuple[str, str]:
    """Whether steps (M, S, R) are equal between methods in each round."""
    means = stats.summary(steps, axis=1)[0]
    means = means[:, ~np.isnan(means).all(axis=0)]
    low, high = np.nanmin(means, axis=0), np.nanmax(means, axis=0)
    worst = int(np.argmax(high / low))
    ends = [style.method_label(panel.methods[int(find(means[:, worst]))]) for find in (np.nanargmin, np.nanargmax)]
    if high[worst] / low[worst] > 1.05:  # the last window of a history may be a short one
        return FAILED, f"in one round about {low[worst]:,.0f} steps ({ends[0]}) to {high[worst]:,.0f} ({ends[1]})"
    return PASSED, f"about {_span(np.stack([low, high]))} steps per round, equal between methods"


def _tuning(audited: Audited) -> Line:
    """The trials of each method in the sweeps NAME-tuning beside those of the report."""
    check, trials = "equal tuning", Counter[str]()
    names = sorted({chain.sweep for chain in audited.runs.chains})
    for name in names:
        tried = {
            match[0]: match[1]
            for folder in run_folder.chain_folders(audited.options.runs, name + TUNING)
            if (match := TRIAL.fullmatch(folder.parent.name))
        }
        trials.update(tried.values())
    if not trials:
        return Line(check, UNKNOWN, f"no tuning beside the runs ({', '.join(name + TUNING for name in names)})")
    # MAL's ablations and the choices on its start take MAL's settings, as sweeps/study.py gives them.
    methods = style.ordered(
        {
            m
            for panel in audited.panels
            for m in panel.methods
            if not m.startswith("mal_") and not m.endswith(style.ON_F)
        }
    )
    with_own = {c.method for c in audited.runs.chains if any(_is_own(key) for key in c.config)}
    counts = {method: trials[method] for method in methods if method in with_own or trials[method]}
    groups = {n: [style.method_label(m) for m in counts if counts[m] == n] for n in sorted(set(counts.values()))}
    text = "; ".join(f"{n} trial{'s' * (n != 1)}: {', '.join(labels)}" for n, labels in groups.items())
    if rest := [style.method_label(m) for m in methods if m not in counts]:
        text += f"; no keys of their own: {', '.join(rest)}"
    return Line(check, PASSED if len(groups) == 1 else FAILED, text)


def _is_own(key: str) -> bool:
    """Whether a key of a chain's configuration is one of its method's own settings."""
    return key.startswith("method.") and key not in ("method.name", "method.acquisition")


def _labels(rows: pd.DataFrame) -> tuple[str, str]:
    start = rows[rows["round"] == 0].dropna(subset=["labeled_hash"])
    if start.groupby("seed")["method"].nunique().max() < 2 or start.empty:
        return UNKNOWN, "no two methods have round 0 of one seed"
    other = int((start.groupby("seed")["labeled_hash"].nunique() > 1).sum())
    return FAILED if other else PASSED, f"{other} of {start['seed'].nunique()} seeds with different ones"


def _start(panel: Panel, runs: Runs) -> tuple[str, str]:
    sweeps = set(runs.rounds[runs.rounds["panel"] == panel.key]["sweep"])
    inits = {
        c.method: c.config.get("task.init") for c in runs.chains if c.sweep in sweeps and c.method in panel.methods
    }
    if None in inits.values():
        return UNKNOWN, "the configurations do not say where M starts from (task.init)"
    groups = {init: [style.method_label(m) for m in panel.methods if inits.get(m) == init] for init in inits.values()}
    text = "; ".join(f"{init}: {', '.join(labels)}" for init, labels in groups.items())
    if len(groups) == 1:
        return PASSED, text
    if CONTROL in panel.methods:
        return PASSED, f"{text}; {style.method_label(CONTROL)} tells the start from the choice"
    return FAILED, f"{text}; {CONTROL} would tell the start from the choice"


def _seeds(panel: Panel, options: Options) -> tuple[str, str]:
    """Pairs against the baseline, and those needed to find a difference of so many points with 80% power."""
    lines = claims.comparisons([panel], options.baseline).get(options.baseline, [])
    pairs = [int((~np.isnan(line.differences)).sum()) for line in lines]
    lines = [line for line, n in zip(lines, pairs, strict=True) if n > 1]
    if not lines:
        return UNKNOWN, f"no method has two finished seeds in common with {style.method_label(options.baseline)}"
    std = stats.summary(claims.differences_of(lines))[1]
    needed = stats.seeds_needed(std, options.difference)
    have = np.array([n for n in pairs if n > 1])
    worst = int(np.argmax(needed))
    text = (
        f"80% power for {options.difference:g} points of area needs {_span(needed)} seeds (most: "
        f"{style.method_label(lines[worst].above)}); {_span(have)} are there"
    )
    return PASSED if np.all(have >= needed) else FAILED, text


def _span(values: np.ndarray) -> str:
    """`3 to 8`, or `3` where all are equal."""
    low, high = f"{values.min():,.0f}", f"{values.max():,.0f}"
    return low if low == high else f"{low} to {high}"


def _datasets(panels: list[Panel]) -> Line:
    names = list(dict.fromkeys(style.dataset_label(panel.dataset) for panel in panels))
    return Line("several datasets", PASSED if len(names) > 1 else FAILED, f"{len(names)}: {', '.join(names)}")


def _budgets(audited: Audited) -> Line:
    """Regimes, as labels of round 0 and of a query, of one dataset."""
    regimes: dict[str, set[tuple[int, int]]] = {}
    for panel in audited.panels:
        for _, chain in audited.rows(panel).groupby(["sweep", "method", "seed"]):
            labels = chain.sort_values("round")["labeled"].to_list()
            if len(labels) > 1:
                regimes.setdefault(style.dataset_label(panel.dataset), set()).add((labels[0], labels[1] - labels[0]))
    if not regimes:
        return Line("several budget regimes", UNKNOWN, "no chain has two rounds")
    text = "; ".join(f"{name}: {', '.join(_regimes(found))}" for name, found in regimes.items())
    return Line("several budget regimes", PASSED if max(map(len, regimes.values())) > 1 else FAILED, text)


def _regimes(found: Iterable[tuple[int, int]]) -> list[str]:
    return [f"{start:,} labels + {query:,} per round" for start, query in sorted(found)]


def _imbalance(audited: Audited) -> Line:
    """Whether an imbalanced pool is among those of the report; its classes are told apart in a table of their own."""
    ratios: dict[str, float] = {}
    for panel in audited.panels:
        counts = [np.array(c) for c in audited.rows(panel)["pool_classes"] if isinstance(c, list) and max(c, default=0)]
        if counts:
            ratios[panel.title] = max(float(c.max() / max(c.min(), 1)) for c in counts)
    if not ratios:
        return Line("class imbalance", UNKNOWN, "no round says how many images of each class its pool holds")
    text = "; ".join(f"{title}: largest class {ratio:,.1f} times the smallest" for title, ratio in ratios.items())
    return Line("class imbalance", PASSED if max(ratios.values()) >= IMBALANCED else FAILED, text)


def write(lines: list[Line], path: Path) -> None:
    """The audit as CSV."""
    pd.DataFrame([vars(line) for line in lines]).to_csv(path, index=False)
