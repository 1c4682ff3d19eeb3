"""The tables of docs/study.md, README.md and docs/pretrained.md again, by numpy, scipy and pandas alone.

    python -m benchmarks.recompute                 # prints the tables
    python -m benchmarks.recompute docs/study.md   # says which of its lines the page lacks; exit status 1 where any is

Nothing of `analysis` is imported: two programs that agree to the last digit shown.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

STUDY = Path(__file__).resolve().parent.parent / "docs" / "study"
PRETRAINED = (
    STUDY.parent / "pretrained.csv"
)  # rounds on Fashion-MNIST with benchmarks/rotation.py's network and without
PAPER = ("mal", "vaal", "coreset", "entropy", "bald", "random")
ON_F = (
    "mal",
    "mal_entropy_query",
    "mal_diversity_query",
    "mal_plus",
    "margin_f",
    "coreset_f",
    "entropy_f",
    "bald_f",
    "vaal_f",
)
ABLATIONS = ("mal_no_minimax", "mal_entropy_query", "mal_diversity_query")
SETS = {
    "study_digits": "digits",
    "study_fashion": "Fashion-MNIST",
    "study_fashion_imbalanced": "Fashion-MNIST-Imbalanced",
    "study_scenes": "scenes of digits",
    "study_fashion_scenes": "scenes of garments",
}
START = "mal_init_random"  # MAL's start, random's choice
CLAIMS = {"MAL": ("mal", "random"), "its start": (START, "random"), "its choice": ("mal", START)}  # above, below
STARTS = ((START, "random"), *((f"{name}_f", name) for name in ("coreset", "entropy", "bald", "vaal", "margin")))
PARTS = (("mal_entropy_query", "entropy_f"), ("mal", "mal_entropy_query"))  # C's entropy or M's; D besides
APART = (  # of sweeps beside the five sets
    *((START, "random"), ("mal", START), ("mal_plus", START), ("mal_plus", "random")),
    *(("mal_no_minimax", "random"), ("mal_no_minimax", "mal")),
)
SMALL = (("mal", "vaal"), ("mal", "coreset"), ("mal", "entropy"), ("mal", "random"), (START, "random"), ("mal", START))
FLOOR = "floor."
STATED = "f_39063"  # of study_steps: F as long as the paper's on CIFAR100


class Rounds:
    """The rounds of one sweep, or of several. values: percent by (method, seed) and labels; areas: by both."""

    def __init__(self, *files: Path, frame: pd.DataFrame | None = None) -> None:
        self.frame = pd.concat([pd.read_csv(file) for file in files]) if frame is None else frame
        self.values = self.frame.pivot(index=["method", "seed"], columns="labeled", values="value").dropna()
        self.labels = self.values.columns.to_numpy(float)
        area = np.trapezoid(self.values.to_numpy(), self.labels, axis=1) / (self.labels[-1] - self.labels[0])
        self.areas = pd.Series(area, index=self.values.index).unstack("seed")

    def known(self, methods: Sequence[str]) -> list[str]:
        """Those of the methods that are there."""
        return [method for method in methods if method in self.areas.index]


def compare(rows: Sequence[tuple[str, np.ndarray]]) -> list[tuple[str, float, float, float, float]]:
    """(name, mean, low, high, p) of paired differences (n,): Student's 95% interval, p after Holm over all rows."""
    means = np.array([differences.mean() for _, differences in rows])
    errors = np.array([stats.sem(differences) for _, differences in rows])
    free = np.array([len(differences) - 1 for _, differences in rows])
    p = 2 * stats.t.sf(np.abs(means / errors), free)
    half = stats.t.ppf(0.975, free) * errors
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [
        (name, mean, mean - h, mean + h, each)
        for (name, _), mean, h, each in zip(rows, means, half, adjusted, strict=True)
    ]


def gain(mean: float, low: float, high: float, p: float = 1.0) -> str:
    """`+2.4 [+0.8, +3.7]`, bold where p is below 0.05."""
    text = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
    return f"**{text}**" if p < 0.05 else text


def written(mean: float, low: float, high: float, p: float) -> str:
    """`+2.4 [+0.8, +3.7] | 0.012`, bold where p is below 0.05."""
    told = "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
    return f"{gain(mean, low, high, p)} | {told}"


def differences(rounds: Rounds, above: str, below: str) -> np.ndarray:
    """Of the areas, over the seeds that both have."""
    return (rounds.areas.loc[above] - rounds.areas.loc[below]).dropna().to_numpy()


def against(rounds: Rounds, methods: Sequence[str], baseline: str, reverse: bool = False) -> list[str]:
    """`| method | area | difference of areas [interval] | p |`; reverse: the baseline above each of them."""
    found = [method for method in rounds.known(methods) if method != baseline]
    sign = -1 if reverse else 1
    lines = compare([(method, sign * differences(rounds, method, baseline)) for method in found])
    return [f"| {name} | {rounds.areas.loc[name].mean():.1f} | {written(*line)} |" for name, *line in lines]


def pairs(rounds: Rounds, wanted: Sequence[tuple[str, str]]) -> list[str]:
    """`| A above B | difference of areas [interval] | p |`, of those that are there."""
    found = [(a, b) for a, b in wanted if len(rounds.known([a, b])) == 2]
    lines = compare([(f"{a} above {b}", differences(rounds, a, b)) for a, b in found])
    return [f"| {name} | {written(*line)} |" for name, *line in lines]


def start(rounds: Rounds, above: str = START, below: str = "random") -> list[str]:
    """`| labels | from F | from scratch | difference | p |`, at each budget, on the same labels (random queries)."""
    f, scratch = (rounds.values.loc[method] for method in (above, below))
    lines = compare([(f"{labels:.0f}", (f[labels] - scratch[labels]).dropna().to_numpy()) for labels in rounds.labels])
    means = {f"{labels:.0f}": (f[labels].mean(), scratch[labels].mean()) for labels in rounds.labels}
    return [f"| {name} | {means[name][0]:.1f} | {means[name][1]:.1f} | {written(*line)} |" for name, *line in lines]


def floor(rounds: Rounds) -> list[str]:
    """`| method | value (above the best simple classifier on its own labels) | ...`, means over seeds.

    The value alone on segmentation, where there are no simple classifiers.
    """
    frame, lines = rounds.frame, []
    classifiers = [name for name in frame.columns if name.startswith(FLOOR) and frame[name].notna().any()]
    for method in dict.fromkeys(frame["method"]):
        means = frame[frame["method"] == method].groupby("labeled")[["value", *classifiers]].mean()
        cells = [f"{value:.1f}" for value in means["value"]]
        if classifiers:
            above = means["value"] - means[classifiers].max(axis=1)
            cells = [f"{cell} ({d:+.1f})".replace("-", "−") for cell, d in zip(cells, above, strict=True)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def why(rounds: Rounds) -> list[str]:
    """`| labels | M | C | AUC of M's entropy for its errors | of C's | AUC of D |`, means over MAL's seeds.

    –: nothing is there, as of AUCs for errors on segmentation.
    """
    names = ["value", *(f"signals.{name}" for name in ("c_value", "error_auc", "c_error_auc", "d_auc"))]
    of_mal = rounds.frame[rounds.frame["method"] == "mal"].set_index("labeled")
    frame = of_mal.reindex(columns=names).groupby("labeled").mean()
    lines = []
    for labels, *values in frame.itertuples():
        cells = [f"{v:.{1 if k < 2 else 2}f}" if v == v else "–" for k, v in enumerate(values)]
        lines.append(f"| {labels} | {' | '.join(cells)} |")
    return lines


def tables(folder: Path) -> dict[str, list[str]]:
    """The lines of each table of one sweep, by its name; beside the five sets: order, floor, start and choice."""
    rounds = Rounds(folder / "rounds.csv")
    found = {
        "each of the paper's methods above random": against(rounds, PAPER, "random"),
        "MAL above each of the paper's": against(rounds, PAPER, "mal", reverse=True),
        "floor": floor(rounds),
    }
    if folder.name not in SETS:
        return found | {"start and choice": pairs(rounds, APART)}
    if len(rounds.known(ON_F)) > 1:  # MAL's alone is in the table of all sets
        found["choice, on MAL's start"] = against(rounds, ON_F, START)
        found["start under each choice"] = pairs(rounds, STARTS)
        found["parts of the choice"] = pairs(rounds, PARTS)
    found |= {"start": start(rounds), "ablations, above MAL": against(rounds, ABLATIONS, "mal"), "inside": why(rounds)}
    if rounds.known(["mal_plus"]):
        found["mal_plus above each"] = against(rounds, list(rounds.areas.index), "mal_plus", reverse=True)
    return found


def longer(folder: Path) -> list[str]:
    """`| method | area | MAL of longer.csv above it | p |`; the last line: random, before any query.

    longer.csv: rounds of MAL whose F was trained for longer, as method mal_longer.
    """
    rounds = Rounds(folder / "rounds.csv", folder / "longer.csv")
    first, labels = rounds.values[rounds.labels[0]], f"{rounds.labels[0]:.0f}"
    others = ("mal", "vaal", "entropy", "random")
    rows = [(other, differences(rounds, "mal_longer", other)) for other in others]
    rows.append((f"random, {labels} labels", (first["mal_longer"] - first["random"]).dropna().to_numpy()))
    values = [*(rounds.areas.loc[other].mean() for other in others), first["random"].mean()]
    return [
        f"| {name} | {value:.1f} | {written(*line)} |"
        for (name, *line), value in zip(compare(rows), values, strict=True)
    ]


def by_recipe(file: Path) -> dict[str, list[str]]:
    """Of a file with two sweeps, the short and the long recipe of M: `| A above B | ... | p |` and the floor of each.

    difference: `| A above B | by the long recipe minus by the short one | p |`, paired by seed.
    """
    of = {name: Rounds(frame=frame) for name, frame in pd.read_csv(file).groupby("sweep")}
    found = {f"{name}, pairs": pairs(rounds, SMALL) for name, rounds in of.items()}
    found |= {f"{name}, floor": floor(rounds) for name, rounds in of.items()}
    both = [pair for pair in SMALL if all(len(rounds.known(pair)) == 2 for rounds in of.values())]
    changes = [(pair, differences(of["long"], *pair) - differences(of["short"], *pair)) for pair in both]
    lines = compare([(f"{a} above {b}", change) for (a, b), change in changes])
    return found | {"difference": [f"| {name} | {written(*line)} |" for name, *line in lines]}


def across() -> dict[str, list[str]]:
    """By claim `| set | area | difference of areas [interval] | p |`, Holm over the sets; and all of it in short.

    summary: `| set | difference of each claim | the best other method of the paper, found afterwards, above random |`.
    """
    of_set = {name: Rounds(STUDY / folder / "rounds.csv") for folder, name in SETS.items()}
    found: dict[str, list[str]] = {}
    cells: dict[str, list[str]] = {name: [] for name in of_set}
    for claim, (higher, lower) in CLAIMS.items():
        lines = compare([(name, differences(rounds, higher, lower)) for name, rounds in of_set.items()])
        found[claim] = []
        for name, *line in lines:
            found[claim].append(f"| {name} | {of_set[name].areas.loc[higher].mean():.1f} | {written(*line)} |")
            cells[name].append(gain(*line))
    for name, rounds in of_set.items():
        others = rounds.areas.loc[rounds.known([method for method in PAPER if method not in ("mal", "random")])]
        best = others.mean(axis=1).idxmax()
        ((_, mean, low, high, _),) = compare([(best, differences(rounds, best, "random"))])
        cells[name].append(f"{best} {gain(mean, low, high)}")  # picked afterwards: no test, never bold
    return found | {"summary": [f"| {name} | {' | '.join(of_name)} |" for name, of_name in cells.items()]}


def first_budget() -> list[str]:
    """`| set | from F by CE alone | difference to it of M from MAL's F | p |`, before any query, on the same labels."""
    rows, values = [], {}
    for folder, name in SETS.items():
        rounds = Rounds(STUDY / folder / "rounds.csv")
        if rounds.known(["mal_no_minimax"]):
            first = rounds.values[rounds.labels[0]]
            rows.append((name, (first[START] - first["mal_no_minimax"]).dropna().to_numpy()))
            values[name] = first["mal_no_minimax"].mean()
    return [f"| {name} | {values[name]:.1f} | {written(*line)} |" for name, *line in compare(rows)]


def steps(file: Path) -> list[str]:
    """`| steps of F | with minimax | M above that from random weights | p |`, round 0, over seeds of both.

    The comparison that was stated before the runs has its own p, and comes last; Holm over the others.
    """
    frame = pd.read_csv(file)
    values = frame.pivot(index="seed", columns="method", values="value")
    arms = [arm for arm in frame["method"].unique() if arm != "random"]
    arms.sort(key=lambda arm: (arm.startswith("ce_"), int(arm.partition("_")[2])))
    gains = [(arm, (values[arm] - values["random"]).dropna().to_numpy()) for arm in arms]
    gains = [(arm, gain) for arm, gain in gains if len(gain) > 2]
    lines = compare([(arm, gain) for arm, gain in gains if arm != STATED])
    lines += compare([(arm, gain) for arm, gain in gains if arm == STATED])
    told = []
    for arm, *line in lines:
        kind, _, count = arm.partition("_")
        told.append(f"| {int(count):,} | {'yes' if kind == 'f' else 'no'} | {written(*line)} |")
    return told


def weights(rounds: Rounds) -> dict[str, list[str]]:
    """Of docs/pretrained.md: M that starts from a checkpoint, trained whole or its head alone, above M from scratch."""
    found = {f"{arm} weights, above without": start(rounds, arm, "without") for arm in ("with", "frozen")}
    return found | {"areas": against(rounds, ("with", "frozen"), "without")}


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    page = Path(arguments[0]) if arguments else None
    sets = {"pretrained": weights(Rounds(PRETRAINED))} if page is None or page.stem == "pretrained" else {}
    if page is None or page.stem != "pretrained":
        claims = across()
        sets["the study"] = {"summary": claims["summary"]} if page and page.stem == "README" else claims
    if page is None or page.stem not in ("pretrained", "README"):
        sets["before any query"] = {"above F by cross-entropy alone": first_budget()}
        sets |= {path.parent.name: tables(path.parent) for path in sorted(STUDY.glob("*/rounds.csv"))}
        sets |= {path.stem: by_recipe(path) for path in sorted(STUDY.glob("*/pool_600.csv"))}
        sets["longer"] = {path.parent.name: longer(path.parent) for path in sorted(STUDY.glob("*/longer.csv"))}
        sets["steps of F"] = {path.stem: steps(path) for path in sorted((STUDY / "study_steps").glob("*.csv"))}
    text, missing = page.read_text(encoding="utf-8") if page else "", 0
    for place, found in sets.items():
        for name, lines in found.items():
            if page is None:
                print(f"\n{place}, {name}", *lines, sep="\n")
                continue
            for line in lines:
                if line not in text:
                    missing += 1
                    print(f"{place}, {name}: not on the page: {line}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
