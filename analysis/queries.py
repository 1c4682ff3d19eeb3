"""What methods queried: evenness over classes, overlap between methods, features of a round."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import stats
from analysis.panels import Panel
from analysis.reading import labels_of
from mal.run import folder as run_folder

UNLABELLED, LABELLED, QUERIED = 0, 1, 2


@dataclass(frozen=True)
class Balance:
    """Classes of a panel's queries, C classes.

    evenness: (M, S, R), entropy of a query's classes divided by log C: 1 is even, 0 a single class. lift: (M, C), how
    many times more often a class was queried than its share (of the pool, or 1/C where the pool is not known), mean
    over seeds. against_pool: which of the two. order: classes from the largest in the pool to the smallest.
    """

    evenness: np.ndarray
    lift: np.ndarray
    against_pool: bool
    order: np.ndarray


def balance(panel: Panel, rows: pd.DataFrame) -> Balance | None:
    """Class balance of the queries of a panel's rounds; None where no round says which classes it queried."""
    asked = rows[[isinstance(q, list) and sum(q) > 0 for q in rows["query_classes"]]]
    if asked.empty:
        return None
    count = max(len(q) for q in asked["query_classes"])
    bought = np.full((len(panel.methods), len(panel.seeds), len(panel.rounds), count), np.nan)
    pools = np.full((len(panel.seeds), count), np.nan)
    for method, seed, number, query, pool in asked[["method", "seed", "round", "query_classes", "pool_classes"]].values:
        s = panel.seeds.index(seed)
        bought[panel.methods.index(method), s, number] = query
        if isinstance(pool, list):
            pools[s] = pool
    against_pool = not np.isnan(pools).any()
    expected = pools / pools.sum(axis=1, keepdims=True) if against_pool else np.full_like(pools, 1 / count)
    total = np.nansum(bought, axis=2)
    total[np.isnan(bought).all(axis=(2, 3))] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = stats.summary(total / total.sum(axis=-1, keepdims=True) / expected, axis=1)[0]
        share = bought / bought.sum(axis=-1, keepdims=True)
        entropy = -np.sum(np.where(share > 0, share * np.log(share), np.where(np.isnan(share), np.nan, 0.0)), axis=-1)
    order = np.argsort(-expected.mean(axis=0), kind="stable")
    return Balance(entropy / np.log(count), lift, against_pool, order)


@dataclass(frozen=True)
class Overlap:
    """Labels that two methods both bought, in percent of a query (M, M), mean over seeds; NaN where not comparable.

    first: the query of round 0, drawn from the same images by all. all: every query before `rounds` rounds.
    first_chance, all_chance: what random queries of that size would share.
    """

    first: np.ndarray
    all: np.ndarray
    first_chance: float
    all_chance: float
    rounds: int


def overlap(panel: Panel, rows: pd.DataFrame) -> Overlap | None:
    """Overlap of the queries of each two methods with the same seed, pool and initial labels; None for one method."""
    rounds = panel.horizon
    if len(panel.methods) < 2 or rounds < 2:
        return None
    shape = (len(panel.methods), len(panel.methods), len(panel.seeds))
    first, everything = np.full(shape, np.nan), np.full(shape, np.nan)
    chances = []
    for seed, group in rows[rows["round"].isin([0, rounds - 1])].groupby("seed"):
        bought = {method: _bought(chain, rounds) for method, chain in group.groupby("method")}
        known = {panel.methods.index(str(m)): b for m, b in bought.items() if b is not None}
        s = panel.seeds.index(int(str(seed)))
        for i, a in known.items():
            chances.append((100 * len(a[1]) / a[3], 100 * len(a[2]) / a[3]))
            for j, b in known.items():
                if a[0] == b[0]:
                    first[i, j, s] = 100 * len(np.intersect1d(a[1], b[1])) / len(a[1])
                    everything[i, j, s] = 100 * len(np.intersect1d(a[2], b[2])) / len(a[2])
    if not chances:
        return None
    chance = np.mean(chances, axis=0)
    return Overlap(stats.summary(first)[0], stats.summary(everything)[0], float(chance[0]), float(chance[1]), rounds)


def _bought(chain: pd.DataFrame, rounds: int) -> tuple[str, np.ndarray, np.ndarray, int] | None:
    """Hash of the initial labels, first query, all queries and the size of the first unlabelled pool of one chain."""
    first, last = chain[chain["round"] == 0], chain[chain["round"] == rounds - 1]
    if first.empty or last.empty:
        return None
    beginning, end = first.iloc[0].to_dict(), last.iloc[0].to_dict()
    start, query = labels_of(beginning["folder"], run_folder.LABELED), labels_of(beginning["folder"], run_folder.QUERY)
    final = labels_of(end["folder"], run_folder.LABELED)
    if start is None or query is None or final is None or not len(query):
        return None
    identity = f"{beginning['labeled_hash']} {beginning['pool_hash']}"
    return identity, query, np.setdiff1d(final, start), beginning["pool"] - len(start)


@dataclass(frozen=True)
class FeatureMap:
    """A round's features on their two principal axes. points: (n, 2). state: (n,), UNLABELLED, LABELLED or QUERIED.

    explained: the share of the variance that the two axes hold, in percent.
    """

    method: str
    seed: int
    number: int
    points: np.ndarray
    state: np.ndarray
    explained: float


def feature_maps(panel: Panel, rows: pd.DataFrame, most: int = 4) -> list[FeatureMap]:
    """The first round with features of up to `most` methods, of one seed, so that the maps can be compared."""
    having = rows[[Path(folder, run_folder.FEATURES).is_file() for folder in rows["folder"]]]
    if having.empty:
        return []
    seed = having["seed"].mode().iloc[0]
    mine = having[having["seed"] == seed]
    number = mine["round"].mode().iloc[0]
    chosen = mine[mine["round"] == number].set_index("method")
    methods = [method for method in panel.methods if method in chosen.index][:most]
    return [_feature_map(Path(chosen.loc[m, "folder"]), m, int(seed), int(number)) for m in methods]


def _feature_map(folder: Path, method: str, seed: int, number: int) -> FeatureMap:
    with np.load(folder / run_folder.FEATURES, allow_pickle=False) as arrays:
        features, state = arrays["features"].astype(np.float64), arrays["state"]
    centred = features - features.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    top = axes[:, ::-1][:, :2]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), [0, 1]])  # the same signs on every machine
    return FeatureMap(method, seed, number, centred @ top, state, float(100 * variances[-2:].sum() / variances.sum()))
