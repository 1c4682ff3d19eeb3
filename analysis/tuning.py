"""The result of a tuning: each method's trials by the area under their curves, and the best of each as a preset.

    python sweeps/launch.py experiment=study_digits tune=8 seeds=[100,101]     # the sweep study_digits-tuning
    python analysis/tuning.py name=study_digits-tuning [runs=DIR] [out=figures]

Writes OUT/NAME/tuning.csv (every trial), tuning.md (the same as a table) and chosen.yaml, whose `variants` go into the
preset. Trials with unfinished chains are listed and not chosen.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from mal.packages import REPORTS, require

    require(REPORTS)
except ImportError as error:
    sys.exit(
        f"tuning.py: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

import numpy as np
import pandas as pd
import yaml

from analysis.curves import reports_of
from analysis.options import parse
from analysis.reading import Chain, Runs, load
from analysis.stats import area_under_budget
from analysis.table import Table, mean_std
from mal.files import run_command
from mal.run import folder as run_folder

TRIAL = re.compile(r"(.+)_t(\d+)")
# These differ between chains without being settings.
NOT_SETTINGS = {"seed", "method.name", *run_folder.PLACE_KEYS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when the tables are written, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments) or not arguments:
        print((__doc__ or "").strip())
        return 0
    try:
        options = parse(arguments)
        if len(options.names) != 1:
            raise ValueError("name= must be one sweep of a tuning, e.g. name=study_digits-tuning.")
        ((name, sweeps),) = reports_of(options)
        write(read_trials(load(options.runs, sweeps)), options.out / name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Trial:
    """One setting of one method. settings: the keys it changes; areas: of each seed, percent; finished: all rounds."""

    method: str
    number: int
    settings: dict[str, Any]
    areas: list[float]
    finished: bool

    @property
    def mean(self) -> float:
        """Of the areas."""
        return float(np.mean(self.areas))

    @property
    def std(self) -> float:
        """Of the areas (ddof=1); NaN for one seed."""
        return float(np.std(self.areas, ddof=1)) if len(self.areas) > 1 else float("nan")


def read_trials(runs: Runs) -> list[Trial]:
    """The trials of a sweep by method and number; ValueError where it holds none."""
    found: dict[tuple[str, int], list[Chain]] = {}
    for chain in runs.chains:
        if match := TRIAL.fullmatch(chain.method):
            found.setdefault((match[1], int(match[2])), []).append(chain)
    if not found:
        raise ValueError("no trials there: METHOD_tNN, as sweeps/launch.py makes them with tune=N.")
    trials = []
    for (method, number), chains in sorted(found.items()):
        preset = found.get((method, 0), chains)[0].config
        finished = all(len(chain.committed) == chain.planned for chain in chains)
        areas = [_area(runs.rounds, chain) for chain in chains]
        trials.append(Trial(method, number, _settings(chains[0].config, preset), areas, finished))
    return trials


def choose(trials: Sequence[Trial]) -> dict[str, Trial]:
    """Each method's finished trial with the largest mean area, ties by the lowest number."""
    chosen: dict[str, Trial] = {}
    for trial in trials:
        best = chosen.get(trial.method)
        if trial.finished and (best is None or trial.mean > best.mean):
            chosen[trial.method] = trial
    return chosen


def write(trials: Sequence[Trial], folder: Path) -> None:
    """The files, and the table on the screen."""
    chosen = choose(trials)
    rows: list[list[str]] = []
    data, bold = [], set()
    for trial in trials:
        settings = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
        picked = chosen.get(trial.method) is trial
        bold |= {(len(rows), 3)} if picked else set()
        area = mean_std(trial.mean, trial.std) if trial.finished else "not finished"
        rows.append([trial.method, str(trial.number), settings or "the preset", area])
        data.append(
            (trial.method, trial.number, settings, trial.mean, trial.std, len(trial.areas), trial.finished, picked)
        )
    frame = pd.DataFrame(data, columns=["method", "trial", "settings", "mean", "std", "n", "finished", "chosen"])
    note = "Mean ± standard deviation over the tuning's seeds of the area under the curve, percent. Bold: chosen."
    table = Table("tuning", "Trials", note, ["method", "trial", "settings", "area"], rows, frame, bold)
    table.write(folder)
    variants = {method: {"method": method, **trial.settings} for method, trial in chosen.items()}
    (folder / "chosen.yaml").write_text(yaml.safe_dump({"variants": variants}, sort_keys=False), encoding="utf-8")
    print(table.markdown())
    for trial in trials:
        if not trial.finished:
            print(f"warning: {trial.method}, trial {trial.number} is not finished, so it is not chosen.")
    print(f"{folder}/: tuning.csv, tuning.md, tuning.tex, chosen.yaml")


def _area(rounds: pd.DataFrame, chain: Chain) -> float:
    own = rounds[(rounds["method"] == chain.method) & (rounds["seed"] == chain.seed)]
    return float(area_under_budget(own["labeled"].to_numpy(float), own["value"].to_numpy(float)))


def _settings(config: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """The keys that a trial changes."""
    return {k: v for k, v in config.items() if k not in NOT_SETTINGS and preset.get(k) != v}


if __name__ == "__main__":
    run_command(main)
