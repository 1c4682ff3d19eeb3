"""Warnings that a reader of a curve must know; each names the chains that it is about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.floor import Floor, finding
from analysis.panels import Panel
from analysis.reading import Chain, Finding, Runs

# Keys on which methods must agree to be compared; the others are a method's own.
PROTOCOL = ("dataset", "rounds", "initial", "budget", "backbone", "task", "precision", "loader")
OWN = ("task.init",)
FEW_SEEDS = 5


def check(runs: Runs, panels: list[Panel], floors: Mapping[str, Floor] | None = None) -> list[Finding]:
    """All findings: task models below simple classifiers first, then missing results. floors: by the panel's key."""
    found = [below for each in (floors or {}).values() if (below := finding(each))]
    found += runs.findings
    found += _chains(runs.chains, runs.rounds)
    for panel in panels:
        rows = runs.rounds[runs.rounds["panel"] == panel.key]
        found += _values(panel)
        found += _seeds(panel)
        found += _pools(panel, rows)
    found += _configurations(runs.chains)
    found += _code(runs.rounds)
    return found


def _chains(chains: tuple[Chain, ...], rounds: pd.DataFrame) -> Iterable[Finding]:
    longest: dict[str, int] = defaultdict(int)
    for chain in chains:
        longest[chain.sweep] = max([longest[chain.sweep], *(r + 1 for r in chain.committed)])
    incomplete = []
    for chain in chains:
        if chain.failed:
            number, message = chain.failed
            yield Finding("failed chain", f"{chain.label} failed in round {number}: {message}")
        gap = sorted(set(range(max(chain.committed, default=-1) + 1)) - set(chain.committed))
        if gap:
            missing = ", ".join(map(str, gap))
            yield Finding("missing round", f"{chain.label} has no round {missing}, but round {max(chain.committed)}")
        planned = chain.planned or longest[chain.sweep]
        if not chain.failed and len(chain.committed) < planned:
            running = f", round {chain.started} begun" if chain.started is not None else ""
            incomplete.append(f"{chain.label} ({len(chain.committed)} of {planned}{running})")
    if incomplete:
        yield Finding("incomplete chain", f"not all rounds are committed: {'; '.join(incomplete)}")


def _values(panel: Panel) -> Iterable[Finding]:
    for m, s, r in np.argwhere(~np.isnan(panel.labeled) & np.isnan(panel.values)):
        where = f"{panel.methods[m]} seed {panel.seeds[s]}, round {panel.rounds[r]}"
        yield Finding("no metric", f"{where} has no value ({panel.metric} is NaN); it is left out of means and pairs")


def _seeds(panel: Panel) -> Iterable[Finding]:
    has = {
        m: tuple(s for s, row in zip(panel.seeds, panel.labeled[i], strict=True) if not np.isnan(row).all())
        for i, m in enumerate(panel.methods)
    }
    if len(set(has.values())) > 1:
        each = _groups({method: f"seeds {spans(seeds)}" for method, seeds in has.items()})
        yield Finding("unequal seeds", f"{panel.title}: methods have different seeds, so pairs are fewer. {each}")
    single = [m for m, seeds in has.items() if len(seeds) == 1]
    few = [m for m, seeds in has.items() if 1 < len(seeds) < FEW_SEEDS]
    if single:
        yield Finding("one seed", f"{panel.title}: no deviation, interval or test with one seed: {', '.join(single)}")
    if few:
        most = max(len(has[m]) for m in few)
        rough = "intervals from so few are wide, and lean on normal differences"
        yield Finding("few seeds", f"{panel.title}: at most {most} seeds for {', '.join(few)}; {rough}")


def _pools(panel: Panel, rows: pd.DataFrame) -> Iterable[Finding]:
    """Same seed, same pool, same initial labels; same round, same number of labels."""
    start = rows[rows["round"] == 0]
    for column, what in (("labeled_hash", "initial labels"), ("pool_hash", "pool")):
        known = start.dropna(subset=[column])
        for seed, group in known[known.groupby("seed")[column].transform("nunique") > 1].groupby("seed"):
            sides = " / ".join(sorted(", ".join(methods) for _, methods in group.groupby(column)["method"]))
            yield Finding(f"different {what}", f"{panel.title}, seed {seed}: not the same {what}: {sides}")
    for r, column in enumerate(np.moveaxis(panel.labeled, -1, 0)):
        for s, counts in enumerate(column.T):
            known = counts[~np.isnan(counts)]
            if len(known) and np.ptp(known) > 0:
                each = {m: f"{c:.0f} labels" for m, c in zip(panel.methods, counts, strict=True) if not np.isnan(c)}
                where = f"{panel.title}, seed {panel.seeds[s]}, round {r}"
                yield Finding("different budgets", f"{where}: {_groups(each)}")


def _configurations(chains: tuple[Chain, ...]) -> Iterable[Finding]:
    """Keys whose values differ between the seeds of a method, and protocol keys that differ between methods."""
    by_method: dict[tuple[str, Any, str], list[Chain]] = defaultdict(list)
    by_panel: dict[tuple[str, Any], list[Chain]] = defaultdict(list)
    for chain in chains:
        dataset = chain.config.get("dataset.name", chain.config.get("dataset"))
        by_method[chain.sweep, dataset, chain.method].append(chain)
        by_panel[chain.sweep, dataset].append(chain)
    within = set()
    for (_, _, method), group in by_method.items():
        for key, values in _differing(group, lambda key: key != "seed"):
            within.add(key)
            each = _sides(group, key, values, lambda chain: f"seed {chain.seed}")
            yield Finding("different configuration", f"{method}: {key} differs between seeds: {each}")
    for (sweep, _), group in by_panel.items():
        for key, values in _differing(group, lambda key: _starts(key, PROTOCOL) and not _starts(key, OWN)):
            if key not in within:
                each = _sides(group, key, values, lambda chain: chain.method)
                yield Finding("different configuration", f"{sweep}: {key} differs between methods: {each}")


def _starts(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def _differing(chains: list[Chain], counts: Any) -> Iterable[tuple[str, list[str]]]:
    for key in sorted({key for chain in chains for key in chain.compared if counts(key)}):
        values = sorted({str(chain.compared.get(key)) for chain in chains})
        if len(values) > 1:
            yield key, values


def _sides(chains: list[Chain], key: str, values: list[str], name: Any) -> str:
    sides = []
    for value in values:
        names = dict.fromkeys(name(chain) for chain in chains if str(chain.compared.get(key)) == value)
        sides.append(f"{value} ({', '.join(names)})")
    return " / ".join(sides)


def _code(rounds: pd.DataFrame) -> Iterable[Finding]:
    for (_, method, seed), group in rounds.groupby(["sweep", "method", "seed"]):
        if group["fingerprint"].nunique() > 1:
            yield Finding("different configuration", f"{method} seed {seed} changed its configuration between rounds")
    # an edited working tree is other code at the same commit
    versions = rounds["code"].fillna(rounds["git_commit"]).dropna().astype(str).str[:10]
    if versions.nunique() > 1:
        where = rounds.assign(version=versions)
        most, *others = [version for version, _ in Counter(versions).most_common()]
        each = "; ".join(f"{version}: {_where(where[where['version'] == version])}" for version in others)
        yield Finding(
            "mixed code", f"{versions.nunique()} versions of the code computed the rounds: most {most}; {each}"
        )
    dirty = rounds[rounds["git_dirty"]]
    if len(dirty):
        yield Finding("uncommitted code", f"{len(dirty)} of {len(rounds)} rounds ran from a working tree with changes")
    for column, what in (("versions", "library versions"), ("device", "devices")):
        kinds = sorted(set(rounds[column]) - {""})
        if len(kinds) > 1:
            yield Finding(f"mixed {what}", f"{what} differ ({' / '.join(kinds)}): hours are not comparable")


def _groups(texts: dict[str, str]) -> str:
    """`seeds 0-4: mal, random; seeds 0-2: entropy`: names with the same text together."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, text in texts.items():
        groups[text].append(name)
    return "; ".join(f"{text}: {', '.join(names)}" for text, names in groups.items())


def _where(rows: pd.DataFrame) -> str:
    """`mal seeds 0-2, random seed 1 rounds 3-4`: chains whose rounds are all there are not told by round."""
    parts = []
    for method, group in rows.groupby("method"):
        seeds = sorted(group["seed"].unique())
        numbers = sorted(group["round"].unique())
        plural = "s" * (len(numbers) > 1)
        parts.append(f"{method} seed{'s' * (len(seeds) > 1)} {spans(seeds)} round{plural} {spans(numbers)}")
    return ", ".join(parts)


def spans(numbers: Iterable[int]) -> str:
    """`0-2, 5` of 0, 1, 2, 5."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ", ".join("-".join(str(n) for n in dict.fromkeys(span)) for span in spans)
