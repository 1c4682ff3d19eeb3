"""The rounds of a panel as arrays over methods, seeds and rounds: paired by seed, never by row order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import stats, style


@dataclass(frozen=True)
class Panel:
    """One set of axes: a dataset (with one backbone and one metric). M methods, S seeds, R rounds; NaN where no value.

    values: (M, S, R), percent. labeled, pool: (M, S, R). hours: (M, S, R), GPU-hours spent up to and with a round, or
    hours of the whole machine where no GPU was used (see on_gpu); NaN from the first missing round on.
    planned: the most rounds that one of its chains is to have.
    """

    key: str
    title: str
    dataset: str
    backbone: str
    metric: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: tuple[int, ...]
    values: np.ndarray
    labeled: np.ndarray
    pool: np.ndarray
    hours: np.ndarray
    on_gpu: bool
    planned: int

    def index(self, method: str) -> int | None:
        """The position of a method, None where it did not run."""
        return self.methods.index(method) if method in self.methods else None

    @property
    def labels(self) -> np.ndarray:
        """Mean number of labels of each method and round (M, R)."""
        return stats.summary(self.labeled, axis=1)[0]

    @property
    def budgets(self) -> np.ndarray:
        """Mean number of labels of each round (R,)."""
        return stats.summary(self.labeled.reshape(-1, len(self.rounds)), axis=0)[0]

    @property
    def percents(self) -> np.ndarray:
        """Labels in percent of the pool, a mean for each round (R,)."""
        share = 100 * self.labeled / self.pool
        return stats.summary(share.reshape(-1, len(self.rounds)), axis=0)[0]

    @property
    def horizon(self) -> int:
        """The number of rounds that areas span: all those that two seeds of every method (or its only one) have.

        A method that has no chain with two rounds holds nobody back. 0 where no method has.
        """
        reached = np.cumprod(~np.isnan(self.values), axis=-1).sum(axis=-1)  # (M, S): rounds without a gap
        lengths = np.sort(reached, axis=1)[:, ::-1]
        per_method = (
            lengths[:, 0] if lengths.shape[1] == 1 else np.where(lengths[:, 1] >= 2, lengths[:, 1], lengths[:, 0])
        )
        moving = per_method[per_method >= 2]
        return int(moving.min()) if len(moving) else 0

    def areas(self) -> np.ndarray:
        """Area under the budget curve of each chain over the horizon (M, S), in percent."""
        h = self.horizon
        return stats.area_under_budget(self.labeled[..., :h], self.values[..., :h])

    def finished_areas(self) -> np.ndarray:
        """Area under the budget curve over all planned rounds (M, S), in percent; NaN for chains that have not all."""
        if self.planned > len(self.rounds):
            return np.full(self.values.shape[:2], np.nan)
        return stats.area_under_budget(self.labeled, self.values)

    def by_name(self, rows: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
        """A column of the panel's rows that holds values by name, as (M, S, R) each; NaN where a round has no such."""
        cubes: dict[str, np.ndarray] = {}
        for method, seed, number, values in rows[["method", "seed", "round", column]].values:
            at = self.methods.index(method), self.seeds.index(seed), number
            for name, value in values.items():
                cubes.setdefault(name, np.full(self.values.shape, np.nan))[at] = value
        return cubes


def panels_of(frame: pd.DataFrame) -> list[Panel]:
    """The panels of a frame of rounds, in the order of its rows."""
    return [_panel(str(key), rows) for key, rows in frame.groupby("panel", sort=False)]


def _panel(key: str, rows: pd.DataFrame) -> Panel:
    methods = tuple(style.ordered(rows["method"].unique()))
    seeds = tuple(sorted(int(s) for s in rows["seed"].unique()))
    rounds = tuple(range(int(rows["round"].max()) + 1))
    where = (
        rows["method"].map({m: i for i, m in enumerate(methods)}).to_numpy(int),
        rows["seed"].map({s: i for i, s in enumerate(seeds)}).to_numpy(int),
        rows["round"].to_numpy(int),
    )

    def cube(column: np.ndarray) -> np.ndarray:
        array = np.full((len(methods), len(seeds), len(rounds)), np.nan)
        array[where] = column
        return array

    on_gpu = bool((rows["gpus"] > 0).any())
    share = rows["gpus"].to_numpy(float) if on_gpu else 1.0
    first = rows.iloc[0]
    return Panel(
        key=key,
        title=style.panel_title(key, str(first["dataset"])),
        dataset=str(first["dataset"]),
        backbone=str(first["backbone"]),
        metric=str(first["metric"]),
        methods=methods,
        seeds=seeds,
        rounds=rounds,
        values=cube(rows["value"].to_numpy(float)),
        labeled=cube(rows["labeled"].to_numpy(float)),
        pool=cube(rows["pool"].to_numpy(float)),
        hours=np.cumsum(cube(rows["seconds"].to_numpy(float) * share / 3600), axis=-1),
        on_gpu=on_gpu,
        planned=int(max(rows["planned"].max(), len(rounds)) if rows["planned"].notna().any() else len(rounds)),
    )


def curves(panels: list[Panel]) -> pd.DataFrame:
    """The contract's curves.csv: one row a panel, method and round; std with ddof=1, empty for one seed.

    dataset: the panel's name, which is the dataset's unless a report holds it with two backbones, metrics or protocols.
    n counts the seeds with a value; a round that no seed has has no row.
    """
    rows = []
    for panel in panels:
        mean, std, count = stats.summary(panel.values, axis=1)
        present = ~np.isnan(panel.labeled).all(axis=1)
        labels, percents = panel.labels, stats.summary(100 * panel.labeled / panel.pool, axis=1)[0]
        for m, method in enumerate(panel.methods):
            for r in np.flatnonzero(present[m]):
                labeled = round(float(labels[m, r]))
                rows.append(
                    (
                        panel.key,
                        method,
                        int(r),
                        labeled,
                        percents[m, r],
                        panel.metric,
                        mean[m, r],
                        std[m, r],
                        count[m, r],
                    )
                )
    names = ["dataset", "method", "round", "labeled", "percent", "metric", "mean", "std", "n"]
    return pd.DataFrame(rows, columns=names)
