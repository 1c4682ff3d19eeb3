"""TypiClust: from each large cluster without labels, the candidate in its densest part. Made for small budgets."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mal.acquisition.checks import Indices, Progress, check_budget, check_features, report, squared_norms

Array = NDArray[np.float64]


def typiclust(
    features_ND: ArrayLike,
    centres_MD: ArrayLike | None,
    budget: int,
    *,
    seed: int,
    max_clusters: int = 500,
    neighbours: int = 20,
    smallest: int = 5,
    progress: Progress | None = None,
) -> Indices:
    """Pick the most typical candidate of one cluster after another, the least labelled and then largest first.

    features_ND: (N, D) candidates; centres_MD: (M, D) labelled features, or None. k-means makes min(M +
    budget, max_clusters) clusters of both; typicality is 1 / (mean distance to the nearest `neighbours`
    candidates of the same cluster, at most half of them). Clusters of fewer than `smallest` candidates come
    last. Memory: a copy of the features (k-means sees candidates and labelled as one array) and the nearest
    neighbours of each candidate.
    Returns int64 (budget,) in order of choice; the same for the same seed. Raises ValueError for features
    that are not finite.
    Source: Hacohen et al., Active Learning on a Budget (ICML 2022), algorithm 1 and appendix.
    """
    features = check_features(features_ND, "features")
    budget = check_budget(budget, len(features))
    width = features.shape[1]
    centres = check_features(np.empty((0, width)) if centres_MD is None else centres_MD, "centres", width)
    for array, name in ((features, "features"), (centres, "centres")):
        squared_norms(array, name)
    wanted = min(len(centres) + budget, max_clusters, len(centres) + len(features))
    points = np.concatenate([centres, features]) if len(centres) else features
    clusters = k_means(points, wanted, seed)
    labelled_C = np.bincount(clusters[: len(centres)], minlength=wanted)
    return most_typical(
        features, clusters[len(centres) :], labelled_C, budget,
        neighbours=neighbours, smallest=smallest, progress=progress,
    )  # fmt: skip


def k_means(points_PD: NDArray[np.float32], clusters: int, seed: int) -> Indices:
    """The cluster of each point, (P,): Lloyd's algorithm up to 50 clusters, mini-batches beyond, as the source does."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if clusters <= 1:
        return np.zeros(len(points_PD), dtype=np.int64)
    if clusters <= 50:
        model = KMeans(clusters, n_init=1, random_state=seed, copy_x=False)
    else:
        model = MiniBatchKMeans(clusters, n_init=1, random_state=seed, batch_size=5000)
    with threadpool_limits(1):  # with more threads the order of their sums, and so the last bits, would vary
        return np.asarray(model.fit_predict(points_PD), dtype=np.int64)


def most_typical(
    features_ND: NDArray[np.float32],
    clusters_N: Indices,
    labelled_C: Indices,
    budget: int,
    *,
    neighbours: int = 20,
    smallest: int = 5,
    progress: Progress | None = None,
) -> Indices:
    """The choice, given each candidate's cluster and how many labelled points each cluster has.

    Clusters are ordered by labelled points (fewest first), size (largest first) and number; those of at least
    `smallest` candidates are visited in turn, again and again, each giving its most typical candidate left
    (ties by lowest position). When they are used up, the small ones follow. Returns int64 (budget,) in order
    of choice.
    """
    sizes_C = np.bincount(clusters_N, minlength=len(labelled_C))
    order = np.lexsort((np.arange(len(sizes_C)), -sizes_C, labelled_C))
    members = np.split(np.argsort(clusters_N, kind="stable"), np.cumsum(sizes_C)[:-1])
    picks: list[int] = []
    for small in (False, True):
        waiting = [c for c in order if sizes_C[c] > 0 and (sizes_C[c] < smallest) == small]
        opened: dict[int, _Cluster] = {}
        while waiting and len(picks) < budget:
            for c in list(waiting[: budget - len(picks)]):
                if c not in opened:
                    opened[c] = _Cluster(features_ND, members[c], neighbours)
                picks.append(opened[c].take())
            report(progress, len(picks), budget)
            waiting = [c for c in waiting if c not in opened or opened[c].left]
    return np.array(picks, dtype=np.int64)


class _Cluster:
    """The candidates of one cluster with their nearest neighbours, kept right as candidates are taken."""

    def __init__(self, features_ND: NDArray[np.float32], members: Indices, neighbours: int) -> None:
        self.features_ND, self.members, self.neighbours = features_ND, members, neighbours
        self.left = len(members)
        self.free = np.ones(len(members), dtype=bool)
        # Neighbours to spare: a list is made anew only once too many of its members have been taken.
        self.width = min(2 * neighbours, max(1, len(members) - 1))
        self.near_RW = np.zeros((len(members), self.width), dtype=np.int64)
        self.distances_RW = np.full((len(members), self.width), np.inf)
        self._find(np.arange(len(members)))

    def take(self) -> int:
        """The position of the most typical candidate left, which is then taken."""
        count = max(1, min(self.neighbours, self.left // 2))
        sparse_R = np.flatnonzero(self.free & (np.isfinite(self.distances_RW).sum(axis=1) < count))
        if sparse_R.size and self.left > 1:
            self._find(sparse_R)
        nearest_RW = np.sort(self.distances_RW[:, : self.width], axis=1)[:, :count]
        # The least mean distance is the highest typicality; a candidate alone has none to be compared with.
        spread_R = np.where(self.free, np.where(self.left > 1, nearest_RW.mean(axis=1), 0), np.inf)
        place = int(np.argmin(spread_R))
        self.free[place] = False
        self.left -= 1
        self.distances_RW[self.near_RW == place] = np.inf
        return int(self.members[place])

    def _find(self, rows: Indices) -> None:
        """List the nearest candidates left of some rows, in float64, in blocks."""
        others = np.flatnonzero(self.free)
        points = self.features_ND[self.members[others]].astype(np.float64)
        norms = np.einsum("nd,nd->n", points, points)
        width = min(self.width, len(others) - 1)
        if width < 1:
            return
        step = max(1, 2**22 // len(others))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            own = self.features_ND[self.members[part]].astype(np.float64)
            squared = norms + np.einsum("nd,nd->n", own, own)[:, None] - 2 * own @ points.T
            squared[part[:, None] == others] = np.inf
            near = np.argpartition(squared, width - 1, axis=1)[:, :width]
            # Differences, not the expansion: equal points are at distance 0.
            gaps = points[near] - own[:, None]
            self.near_RW[part, :width] = others[near]
            self.distances_RW[part] = np.inf
            self.distances_RW[part, :width] = np.sqrt(np.einsum("nwd,nwd->nw", gaps, gaps))
