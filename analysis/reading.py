"""Read committed rounds into one tidy frame, one row per round; nothing is averaged, and what is dropped is named."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.options import sweeps_of
from mal.files import sha256
from mal.run import folder as run_folder

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

COLUMNS = (
    "sweep",
    "panel",
    "dataset",
    "backbone",
    "method",
    "seed",
    "round",
    "planned",
    "labeled",
    "pool",
    "percent",
    "metric",
    "value",
    "seconds",
    "gpus",
    "device",
    "preemptions",
    "classes",
    "per_class",
    "query_classes",
    "pool_classes",
    "floor",
    "signals",
    "fingerprint",
    "code",
    "git_commit",
    "git_dirty",
    "versions",
    "labeled_hash",
    "pool_hash",
    "folder",
)
# Columns that hold several values: sections of metrics.json by name, and lists over the classes.
SECTIONS = ("floor", "signals")
LISTS = ("per_class", "query_classes", "pool_classes")


@dataclass(frozen=True)
class Finding:
    """Something a reader of the figures must know. kind: a class of findings; text: one sentence that names names."""

    kind: str
    text: str


@dataclass(frozen=True)
class Chain:
    """What is on disk of one (method, seed) of a sweep.

    config: the resolved configuration with dotted keys. planned: its number of rounds, None where it does not say.
    committed: the numbers of the committed rounds. failed: round and last line of the error, if one was recorded.
    started: the round that has a folder but is not committed and has not failed.
    """

    sweep: str
    method: str
    seed: int
    folder: Path
    config: dict[str, Any]
    planned: int | None
    committed: tuple[int, ...]
    failed: tuple[int, str] | None
    started: int | None

    @property
    def label(self) -> str:
        """`method seed S`."""
        return f"{self.method} seed {self.seed}"

    @cached_property
    def compared(self) -> dict[str, Any]:
        """The part of the configuration that must agree to be compared: what results depend on, and how many rounds."""
        return run_folder.deciding(self.config) | {"rounds": self.planned}


@dataclass(frozen=True)
class Runs:
    """Everything read. rounds: COLUMNS; panels in the order of their sweeps, then by method, seed and round.

    findings: what could not be believed or is missing, one sentence each.
    """

    rounds: pd.DataFrame
    chains: tuple[Chain, ...]
    findings: tuple[Finding, ...]

    @property
    def tidy(self) -> pd.DataFrame:
        """The rounds with a column for each signal and each simple classifier, and lists as JSON texts: rounds.csv."""
        parts = [self.rounds.drop(columns=list(SECTIONS))]
        for section in SECTIONS:
            columns = pd.DataFrame(list(self.rounds[section]), index=self.rounds.index, dtype=float)
            parts.append(columns.add_prefix(f"{section}."))
        frame = pd.concat(parts, axis=1)
        for column in LISTS:
            frame[column] = [json.dumps(value) if isinstance(value, list) else None for value in frame[column]]
        return frame


def load(runs: Path | str = "runs", names: str | Sequence[str] = ()) -> Runs:
    """All committed rounds of a sweep or of several, of every sweep below `runs` where none is named.

    metrics.json and provenance.json are checked against the hashes in COMMITTED; a round that differs is left out and
    named in the findings. The index arrays are not read here (see `labels_of`). Raises ValueError where the folder or a
    sweep is not there.

        from analysis import load
        runs = load("runs", "digits")
        runs.tidy.groupby(["method", "labeled"])["value"].agg(["mean", "std", "count"])
    """
    runs = Path(runs)
    names = sweeps_of(runs, (names,) if isinstance(names, str) else names)
    rows: list[dict[str, Any]] = []
    chains: list[Chain] = []
    findings: list[Finding] = []
    for name in names:
        for folder in run_folder.chain_folders(runs, name):
            chain, new_rows, new_findings = _read_chain(name, folder)
            chains.append(chain)
            rows += new_rows
            findings += new_findings
    frame = pd.DataFrame(rows, columns=[c for c in COLUMNS if c != "panel"])
    frame["panel"] = _panels(frame)
    first = frame.groupby("panel")["sweep"].transform("first").map({name: i for i, name in enumerate(names)})
    frame = frame.assign(place=first).sort_values(["place", "panel", "method", "seed", "round"], ignore_index=True)
    return Runs(frame[list(COLUMNS)], tuple(chains), tuple(findings))


def _read_chain(sweep: str, folder: Path) -> tuple[Chain, list[dict[str, Any]], list[Finding]]:
    method, seed = folder.parent.name, int(folder.name.removeprefix("seed-"))
    config = _flatten(yaml.load((folder / run_folder.CONFIG).read_bytes(), Loader) or {})
    planned = config["rounds"] if isinstance(config.get("rounds"), int) else None
    rows: list[dict[str, Any]] = []
    findings: list[Finding] = []
    committed: list[int] = []
    failed: tuple[int, str] | None = None
    started: int | None = None
    for round_folder in run_folder.round_folders(folder):
        number = int(round_folder.name.removeprefix("round-"))
        try:
            row = _read_round(str(round_folder))
        except run_folder.DamagedRun as error:
            findings.append(Finding("damaged round", f"{method} seed {seed}, round {number} is left out: {error}"))
            continue
        if row is not None:
            committed.append(number)
            rows.append({"sweep": sweep, "method": method, "seed": seed, "round": number, "planned": planned, **row})
        elif (round_folder / run_folder.FAILED).is_file():
            failed = number, _failure(round_folder / run_folder.FAILED)
        else:
            started = number
    chain = Chain(sweep, method, seed, folder, config, planned, tuple(committed), failed, started)
    return chain, rows, findings


def _read_round(folder: str) -> dict[str, Any] | None:
    """The columns that a round's files fill; None for a round that is not committed."""
    try:
        marker = _json(f"{folder}/{run_folder.COMMITTED}")
    except FileNotFoundError:
        return None
    hashes = marker.get("files", {}) if isinstance(marker, dict) else {}
    metrics = _json(f"{folder}/{run_folder.METRICS}", hashes.get(run_folder.METRICS, ""))
    provenance = _json(f"{folder}/{run_folder.PROVENANCE}", hashes.get(run_folder.PROVENANCE, ""))
    value = metrics.get("value")
    labeled, pool = metrics.get("labeled"), metrics.get("pool")
    if not isinstance(labeled, int) or not isinstance(pool, int) or "dataset" not in metrics:
        raise run_folder.DamagedRun(f"{folder}/{run_folder.METRICS} lacks dataset, labeled or pool.")
    return {
        "dataset": metrics["dataset"],
        "backbone": metrics.get("backbone") or "",
        "labeled": labeled,
        "pool": pool,
        "percent": metrics.get("percent", 100 * labeled / pool),
        "metric": metrics.get("metric", "accuracy"),
        "value": math.nan if value is None else float(value),
        "seconds": metrics.get("seconds", math.nan),
        "gpus": metrics.get("gpus") or 0,
        "device": metrics.get("device") or "",
        "preemptions": metrics.get("preemptions", 0),
        "classes": metrics.get("classes"),
        "per_class": metrics.get("per_class"),
        "query_classes": metrics.get("query_classes"),
        "pool_classes": metrics.get("pool_classes"),
        "floor": _floor(metrics, folder),
        "signals": {name: float(v) for name, v in (metrics.get("signals") or {}).items() if v is not None},
        "fingerprint": provenance.get("fingerprint"),
        "code": provenance.get("code"),
        "git_commit": provenance.get("git_commit"),
        "git_dirty": bool(provenance.get("git_dirty")),
        "versions": _versions(provenance),
        "labeled_hash": hashes.get(run_folder.LABELED),
        "pool_hash": provenance.get("pool"),
        "folder": folder,
    }


def _json(path: str, expected: str | None = None) -> Any:
    """A JSON file, compared with its committed hash when one is given (`""`: COMMITTED does not list the file)."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - four times as fast as Path over 30,000 files
            data = file.read()
    except FileNotFoundError:
        if expected is None:
            raise
        raise run_folder.DamagedRun(f"{path} is missing.") from None
    if expected is not None and sha256(data) != expected:
        raise run_folder.DamagedRun(f"{path} is not the file that was committed.")
    try:
        return json.loads(data)
    except ValueError as error:
        raise run_folder.DamagedRun(f"{path} is not valid JSON ({error}).") from None


def _floor(metrics: dict[str, Any], folder: str) -> dict[str, float]:
    """What simple classifiers reach on the round's labels, percent by name; what was not computed is left out."""
    floor = metrics.get("floor") or {}
    known = {name: value for name, value in floor.items() if value is not None} if isinstance(floor, dict) else None
    if known is None or not all(isinstance(v, int | float) and 0 <= v <= 100 for v in known.values()):
        raise run_folder.DamagedRun(
            f"{folder}/{run_folder.METRICS} has floor {floor}: percentages by name are allowed."
        )
    return {name: float(value) for name, value in known.items()}


def _versions(provenance: dict[str, Any]) -> str:
    versions = provenance.get("versions") or {}
    return ", ".join(f"{name} {versions[name]}" for name in ("python", "torch") if name in versions)


def _failure(path: Path) -> str:
    """The last line of a recorded error, whichever way it was written."""
    text = path.read_text(errors="replace").strip()
    try:
        recorded = json.loads(text)
    except ValueError:
        recorded = text
    if isinstance(recorded, dict):
        for key in ("error", "message", "traceback"):
            if recorded.get(key):
                recorded = recorded[key]
                break
    lines = str(recorded).strip().splitlines()
    return lines[-1].strip() if lines else "no message"


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _panels(frame: pd.DataFrame) -> pd.Series:
    """A panel for each set of rounds that may share axes: the dataset, told apart further only where it must be.

    The backbone is added where a dataset has several, the metric likewise, and the sweep where two sweeps hold the same
    chain or start a dataset from different budgets.
    """
    if frame.empty:
        return pd.Series(dtype=str)
    panel = frame["dataset"].astype(str)
    for column in ("backbone", "metric"):
        several = frame.groupby("dataset")[column].transform("nunique") > 1
        panel = panel.where(~several, panel + "-" + frame[column].astype(str))
    chain = frame.assign(panel=panel).groupby(["panel", "method", "seed"])["sweep"].transform("nunique")
    budgets: dict[str, dict[str, set[int]]] = {}
    for key, sweep, labeled in zip(panel, frame["sweep"], frame["labeled"], strict=True):
        budgets.setdefault(key, {}).setdefault(sweep, set()).add(labeled)
    clash = {p for p, sweeps in budgets.items() if (chain[panel == p] > 1).any() or not _nested(list(sweeps.values()))}
    return panel.where(~panel.isin(clash), panel + "-" + frame["sweep"].astype(str))


def _nested(budgets: list[set[int]]) -> bool:
    """Whether the label counts are of one protocol, stopped at different rounds: the smaller set in the larger."""
    return all(short <= long for short, long in pairwise(sorted(budgets, key=len)))


def labels_of(folder: str | os.PathLike[str], name: str) -> Any:
    """The pool indices of a round's file, int64 (n,); None where the round has no such file (a last round's query)."""
    path = Path(folder) / name
    return run_folder.read_indices(path) if path.is_file() else None


def history_of(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The losses of each phase of a round, checked against COMMITTED; empty where the round has no history.json.

    Raises DamagedRun, naming the file, where it is not what was committed.
    """
    hashes = _json(f"{folder}/{run_folder.COMMITTED}").get("files", {})
    if run_folder.HISTORY not in hashes:
        return {}
    history: dict[str, Any] = _json(f"{folder}/{run_folder.HISTORY}", hashes[run_folder.HISTORY])
    return history
