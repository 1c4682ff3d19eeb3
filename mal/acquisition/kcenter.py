"""k-center greedy (core-set selection), lazy and exact: the picks of the plain algorithm for a fraction of its work.

The plain algorithm updates every candidate's distance to its nearest centre at each pick. These distances
only fall, so a stale one is an upper bound: only candidates whose bound may be the highest have to be brought
up to date, in blocks of centres (one matrix product each). float32 products carry a rigorous error bound;
where two candidates are closer than that, they are compared in float64.

Most of a block's centres are far from a candidate, and few numbers say so: with P the projection onto the features'
first principal directions and Q onto the others, x.c <= Px.Pc + |Qx||Qc| (Cauchy-Schwarz). That product is D / 65 times
as cheap, and only the pairs that may be nearer than those before need all of their D numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mal.acquisition.checks import Indices, Progress, check_budget, check_features, report, squared_norms

if TYPE_CHECKING:
    import torch

_SAMPLE = 8192  # bounds looked at to place the threshold that separates the pool of candidates worth an update
_LEADING = 64  # principal directions that a first look takes, where features have many more
_WORTH_A_LOOK = 2**31  # pairs of candidates and centres; with a quarter of these it gains nothing
_DIRECTIONS_OF = 512  # candidates that the directions are computed from
_ROUNDINGS = 5  # of the first look's numbers, as many dimensions' worth in the bound of the products' error
_NEAR = 1 / 8  # of a block's centres: for a candidate with more to multiply out, one product with all costs less


def kcenter_greedy(
    features_ND: ArrayLike,
    centres_MD: ArrayLike | None,
    budget: int,
    *,
    device: str | torch.device = "cpu",
    block: int = 256,
    pool: int | None = None,
    leading: int | None = None,
    progress: Progress | None = None,
) -> Indices:
    """Pick `budget` times the candidate farthest (L2) from its nearest centre, which then is a centre too.

    features_ND: (N, D) candidates; centres_MD: (M, D) labelled features, or None. Distances are those of the
    float32 features in float64; ties go to the lowest position, chosen candidates are never chosen again, and
    without labelled centres the first pick is position 0. `block` centres are folded in at a time; `pool`
    candidates are kept in view (default: N / 16, at least 4096); a first look takes the `leading` principal
    directions (default: 64 of 256 or more where candidates times centres are over 2e9; 0: none): these change
    the time only. With a `device` other than cpu the products run there, in float32 proper and without a first
    look; the features are kept on both sides. Memory: the features as given, 52 bytes per candidate, and 260 per
    candidate and labelled centre for a first look.
    Returns int64 (budget,) in order of choice. Raises ValueError for features that are not finite.
    Source: Sener & Savarese, Active Learning for CNNs: A Core-Set Approach (ICLR 2018), algorithm 1.
    """
    features = check_features(features_ND, "features")
    budget = check_budget(budget, len(features))
    width = features.shape[1]
    centres = check_features(np.empty((0, width)) if centres_MD is None else centres_MD, "centres", width)
    if block < 1:
        raise ValueError(f"block={block}: must be 1 or more centres")
    if leading is None:
        pairs = len(features) * (len(centres) + budget)
        leading = _LEADING if wide_enough(width) and pairs >= _WORTH_A_LOOK else 0
    search = _Search(features, centres, budget, block, min(leading, width - _ROUNDINGS), device)
    return search.run(pool or max(4096, len(features) // 16), progress)


def wide_enough(width: int) -> bool:
    """Whether features of so many numbers may get a first look."""
    return width >= 4 * _LEADING


def memory_of_look(rows: int, width: int) -> int:
    """Bytes of a first look at so many candidates and labelled centres: their projections, and the directions'."""
    return 4 * (_LEADING + 1) * rows + 16 * _DIRECTIONS_OF * width


class _HostProducts:
    """Folds blocks of centres into the state with numpy's matrix product and a compiled reduction."""

    def __init__(self, search: _Search, leading: int) -> None:
        self.search = search
        self.leading: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        if leading > 0:
            sample = search.features_ND[:: -(-len(search.features_ND) // _DIRECTIONS_OF)].astype(np.float64)
            directions_DL = np.linalg.svd(sample, full_matrices=False)[2][:leading].T
            self.leading = (
                _leading(search.features_ND, search.norms_N, directions_DL),
                _leading(search.centres_MD, search.norms_M, directions_DL),
            )

    def fold(self, rows_R: Indices, first: int, stop: int) -> None:
        search = self.search
        step = max(256, 2_000_000 // search.block)
        buffer = np.empty(min(step, rows_R.size) * search.block, dtype=np.float32)
        for r in range(0, rows_R.size, step):
            part = rows_R[r : r + step]
            leading_RL = None if self.leading is None else _rows(self.leading[0], part)
            features_RD: NDArray[np.float32] | None = None  # gathered once for all blocks
            for c in range(first, stop, search.block):
                end = min(stop, c + search.block)
                if leading_RL is not None and c > 0:
                    left = self.fold_near(part, leading_RL, c, end, buffer)
                    if left.size:
                        self.fold_all(left, _rows(search.features_ND, left), c, end, buffer)
                    if 2 * left.size > part.size:  # the next blocks are no better
                        leading_RL = None
                else:
                    features_RD = _rows(search.features_ND, part) if features_RD is None else features_RD
                    self.fold_all(part, features_RD, c, end, buffer)

    def fold_near(
        self, part: Indices, leading_RL: NDArray[np.float32], first: int, end: int, buffer: NDArray[np.float32]
    ) -> Indices:
        """By the products with those that may be among the two nearest so far; the rows where these are too many."""
        from mal.acquisition import _kernels

        search = self.search
        centres_BD, norms_B = search.centre_block(first, end)
        most_RB = np.matmul(leading_RL, self.leading_block(first, end).T, out=_shaped(buffer, len(part), end - first))
        return _kernels.fold_near(
            most_RB, search.features_ND, centres_BD, norms_B, first, part, search.best_N, search.second_N,
            search.nearest_N, _NEAR * len(norms_B),
        )  # fmt: skip

    def fold_all(
        self, part: Indices, features_RD: NDArray[np.float32], first: int, end: int, buffer: NDArray[np.float32]
    ) -> None:
        """By the products with all centres first..end-1."""
        from mal.acquisition import _kernels

        search = self.search
        centres_BD, norms_B = search.centre_block(first, end)
        products_RB = np.matmul(features_RD, centres_BD.T, out=_shaped(buffer, len(part), end - first))
        _kernels.fold_products(products_RB, norms_B, first, part, search.best_N, search.second_N, search.nearest_N)

    def leading_block(self, first: int, end: int) -> NDArray[np.float32]:
        """Of centres first..end-1."""
        assert self.leading is not None
        of_candidates, of_labelled = self.leading
        return self.search.of_centres(of_labelled, of_candidates, first, end)


def _rows(of_candidates: NDArray[np.float32], rows_R: Indices) -> NDArray[np.float32]:
    """Those of some candidates, in ascending order, without a copy where they are neighbours."""
    if rows_R[-1] - rows_R[0] == rows_R.size - 1:
        return of_candidates[rows_R[0] : rows_R[-1] + 1]
    return of_candidates[rows_R]


def _shaped(buffer: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    return buffer[: rows * columns].reshape(rows, columns)


def _leading(
    features_ND: NDArray[np.float32], norms_N: NDArray[np.float64], directions_DL: NDArray[np.float64]
) -> NDArray[np.float32]:
    """[Px, |Qx|], float32 (N, L + 1): the product of two is at least x.c, but for roundings as in x.c itself."""
    found = np.empty((len(features_ND), directions_DL.shape[1] + 1), np.float32)
    step = max(1, 2**22 // features_ND.shape[1])
    for first in range(0, len(found), step):
        rows = slice(first, first + step)
        projected_RL = features_ND[rows].astype(np.float64) @ directions_DL
        found[rows, :-1] = projected_RL
        # Rounded up: 1e-12 covers the float64 roundings, which a difference of nearly equal numbers would magnify.
        rest = np.maximum(0, norms_N[rows] * (1 + 1e-12) - (projected_RL**2).sum(axis=1))
        found[rows, -1] = np.sqrt(rest) * (1 + 2.0**-22)
    return found


class _TorchProducts:
    """The same on a torch device, which holds a copy of the features."""

    def __init__(self, search: _Search, device: str | torch.device) -> None:
        import torch

        self.search, self.torch, self.device = search, torch, torch.device(device)
        self.features_ND = torch.from_numpy(search.features_ND).to(self.device)
        self.norms_N = torch.from_numpy(search.norms_N.astype(np.float32)).to(self.device)

    def fold(self, rows_R: Indices, first: int, stop: int) -> None:
        torch, search = self.torch, self.search
        step = max(256, 2**26 // search.block)
        with _float32_products():
            for c in range(first, stop, search.block):
                centres_BD, norms_B = (torch.from_numpy(a).to(self.device) for a in
                                       search.centre_block(c, min(stop, c + search.block)))  # fmt: skip
                for r in range(0, rows_R.size, step):
                    part = rows_R[r : r + step]
                    search.merge(part, *self._two_lowest(part, centres_BD, norms_B), c)

    def _two_lowest(self, part: Indices, centres_BD: Any, norms_B: Any) -> tuple[Any, Any, Any]:
        torch = self.torch
        rows = self.features_ND[torch.from_numpy(part).to(self.device)]
        values = torch.addmm(norms_B[None], rows, centres_BD.T, alpha=-2)
        best, nearest = values.min(dim=1)
        values.scatter_(1, nearest[:, None], float("inf"))
        second = values.amin(dim=1)
        return best.cpu().numpy(), second.cpu().numpy(), nearest.cpu().numpy()


@contextlib.contextmanager
def _float32_products() -> Iterator[None]:
    """Matrix products of a GPU in float32 proper: TF32 keeps 10 bits of mantissa; the error bound would not hold."""
    import torch

    products: Any = torch.backends.cuda.matmul
    # torch 2.9 and later; its older keys raise once somebody has used these.
    key, exact = ("fp32_precision", "ieee") if hasattr(products, "fp32_precision") else ("allow_tf32", False)
    before = getattr(products, key)
    setattr(products, key, exact)
    try:
        yield
    finally:
        setattr(products, key, before)


class _Search:
    """The state of the lazy search: what is known of each candidate's distance to its nearest centre.

    Centres are numbered: 0..M-1 labelled, then the picks. Candidate i has met seen_N[i] of them, folded_N[i]
    of those in float32: best_N[i] is the lowest |c|^2 - 2 x.c, of centre nearest_N[i], and second_N[i] the
    second lowest.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        centres: NDArray[np.float32],
        budget: int,
        block: int,
        leading: int,
        device: str | torch.device,
    ) -> None:
        self.features_ND, self.centres_MD, self.budget, self.block = features, centres, budget, block
        count, width = features.shape
        self.norms_N = squared_norms(features, "features")
        self.norms_M = squared_norms(centres, "centres")
        farthest = np.sqrt(max(self.norms_N.max(), self.norms_M.max(initial=0)))
        # |fl(x.c) - x.c| <= g |x||c|, g = D u / (1 - D u), in any order of summation; |x||c| <= (|x| + |c|)^2
        # / 4; the few roundings after it are below 5 u (|x| + |c|)^2. u = 2^-24; the tiny term covers
        # underflow.
        unit = 2.0**-24
        worst = (width / 2 / (1 - width * unit) + 6) * unit if width * unit < 0.5 else np.inf
        self.error_N = worst * (np.sqrt(self.norms_N) + farthest) ** 2 + 1e-30
        self.best_N = np.full(count, np.inf, dtype=np.float32)
        self.second_N = np.full(count, np.inf, dtype=np.float32)
        self.nearest_N = np.zeros(count, dtype=np.int32)
        self.folded_N = np.zeros(count, dtype=np.int32)
        self.seen_N = np.zeros(count, dtype=np.int32)
        self.low_N = np.full(count, -np.inf)
        self.high_N = np.full(count, np.inf)
        self.picks_B = np.empty(budget, dtype=np.int64)
        self.products = _HostProducts(self, leading) if str(device) == "cpu" else _TorchProducts(self, device)

    def run(self, pool: int, progress: Progress | None) -> Indices:
        from mal.acquisition import _kernels

        labelled = len(self.centres_MD)
        picked = 0
        if labelled == 0:
            # Every candidate is infinitely far: the lowest position wins, and the search proper starts with
            # one centre.
            self.picks_B[0], picked = 0, 1
            self.high_N[0] = self.low_N[0] = -1.0
        while picked < self.budget:
            threshold = self.threshold(pool)
            pool_P = np.flatnonzero(self.high_N >= threshold)
            self.refresh(pool_P, labelled + picked - picked % self.block)
            before = picked
            picked = _kernels.pick_centres(
                self.features_ND, self.centres_MD, self.picks_B, picked, self.budget, pool_P, threshold, 2 * self.block,
                self.low_N, self.high_N, self.seen_N, self.folded_N, self.best_N, self.second_N, self.nearest_N,
                self.error_N,
            )  # fmt: skip
            if picked > before:
                report(progress, picked, self.budget)
        return self.picks_B

    def threshold(self, pool: int) -> float:
        """A bound that about `pool` candidates reach, and at least one."""
        if self.high_N.size <= pool:
            return 0.0
        # Chosen candidates are at -1, and 0 keeps them out.
        sample = self.high_N[:: max(1, self.high_N.size // _SAMPLE)]
        place = int(sample.size * (1 - pool / self.high_N.size))
        return float(max(0.0, min(np.partition(sample, place)[place], self.high_N.max())))

    def refresh(self, pool_P: Indices, target: int) -> None:
        """Bring the pool's stale candidates nearer to the first `target` centres, in float32.

        Those far behind double the centres they have met rather than meeting all: most drop out of the pool
        on the way.
        """
        behind = (self.seen_N[pool_P] < target) & (self.low_N[pool_P] < self.high_N[pool_P])
        stale_P = pool_P[behind]
        starts_P = self.folded_N[stale_P]
        for start in np.unique(starts_P):
            rows_R = stale_P[starts_P == start]
            stop = min(target, max(2 * int(start), self.block))
            self.products.fold(rows_R, int(start), stop)
            self.folded_N[rows_R] = stop
            self.seen_N[rows_R] = stop
            value_R = self.norms_N[rows_R] + self.best_N[rows_R]
            self.low_N[rows_R] = np.maximum(0, value_R - self.error_N[rows_R])
            self.high_N[rows_R] = np.maximum(0, value_R + self.error_N[rows_R])

    def centre_block(self, first: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Centres first..stop-1 and their squared lengths in float32."""
        return self.of_centres(self.centres_MD, self.features_ND, first, stop), self.centre_norms(first, stop)

    def centre_norms(self, first: int, stop: int) -> NDArray[np.float32]:
        """Their squared lengths alone."""
        return self.of_centres(self.norms_M, self.norms_N, first, stop).astype(np.float32)

    def of_centres(self, of_labelled: NDArray[Any], of_candidates: NDArray[Any], first: int, stop: int) -> NDArray[Any]:
        """What is known of the labelled and of the candidates, for centres first..stop-1."""
        labelled = len(self.centres_MD)
        old = of_labelled[min(first, labelled) : min(stop, labelled)]
        new = self.picks_B[max(first - labelled, 0) : max(stop - labelled, 0)]
        return np.concatenate([old, of_candidates[new]]) if new.size else old

    def merge(self, rows_R: Indices, best_R: Any, second_R: Any, nearest_R: Any, first: int) -> None:
        """Fold a block's two lowest values into the state (the compiled reduction does the same in one go)."""
        before = self.best_N[rows_R]
        second = np.minimum(self.second_N[rows_R], np.minimum(second_R, np.maximum(before, best_R)))
        self.second_N[rows_R] = second
        self.nearest_N[rows_R] = np.where(best_R < before, nearest_R + first, self.nearest_N[rows_R])
        self.best_N[rows_R] = np.minimum(before, best_R)
