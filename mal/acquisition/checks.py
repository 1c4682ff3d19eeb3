"""Checks of arguments that all acquisitions share, so that all give the same errors."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Progress = Callable[[int, int], None]
"""Called with (done, total) between steps of a long loop; may raise to stop it."""

Indices = NDArray[np.int64]
Floats = NDArray[np.floating]


def check_budget(budget: int, candidates: int) -> int:
    """The budget as an int, or ValueError unless 1 <= budget <= candidates."""
    if isinstance(budget, bool) or budget != int(budget) or not 1 <= budget <= candidates:
        raise ValueError(f"budget={budget!r}: must be a whole number from 1 to the {candidates} candidates")
    return int(budget)


def check_features(features: ArrayLike, name: str, width: int | None = None) -> NDArray[np.float32]:
    """A C-contiguous float32 (N, D) array, copied only where it is not one yet; ValueError where it cannot be one."""
    array = np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}: must be (points, dimensions), with at least 1 dimension")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"{name} has {array.shape[1]} dimensions: must have the candidates' {width}")
    return np.ascontiguousarray(array, dtype=np.float32)


_NUMBERS = 2**17  # of a block in float64: 1 MiB, reused by the allocator and kept in the cache


def squared_norms(features_ND: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    """Squared lengths (N,) in float64, computed in blocks; ValueError for NaN, infinity or lengths above 1e18."""
    norms = np.empty(len(features_ND), dtype=np.float64)
    block = max(1, _NUMBERS // features_ND.shape[1])
    for start in range(0, len(features_ND), block):
        rows = features_ND[start : start + block].astype(np.float64)
        norms[start : start + block] = np.einsum("nd,nd->n", rows, rows)
    # float32 products overflow beyond 3.4e38; the comparison is also False for NaN.
    if not np.all(norms < 1e36):
        worst = int(np.flatnonzero(~(norms < 1e36))[0])
        raise ValueError(
            f"{name}[{worst}] has the squared length {norms[worst]}: must be finite and below 1e36 (scale the features)"
        )
    return norms


def check_probabilities(probabilities: ArrayLike, name: str, ndim: int) -> NDArray[np.floating]:
    """A float array of `ndim` axes, the last one summing to 1 within 1e-3; ValueError otherwise."""
    array = np.asarray(probabilities)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} has dtype {array.dtype}: must be floating point")
    if array.ndim != ndim or array.shape[-1] == 0:
        raise ValueError(f"{name} has shape {array.shape}: must have {ndim} axes, the last one the classes")
    rows = max(1, _NUMBERS // (array[:1].size or 1))
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        sums = block.sum(axis=-1, dtype=np.float64)
        if not (np.all(np.abs(sums - 1) < 1e-3) and np.all(block >= 0)):
            raise ValueError(f"{name} has rows that are not probabilities: must be >= 0 and sum to 1 (logits given?)")
    return array


def report(progress: Progress | None, done: int, total: int) -> None:
    """Call `progress` where there is one."""
    if progress is not None:
        progress(done, total)


def threads_that_pay(numbers: int) -> AbstractContextManager[Any]:
    """One BLAS thread where the matrices of each step hold fewer than 2**25 numbers, else as many as are set.

    Threads of small products wait for each other longer than they work, and far longer on cores that others use too.
    """
    return _blas().limit(limits=1, user_api="blas") if numbers < 2**25 else nullcontext()


@cache
def _blas() -> Any:
    """The process's thread pools: looking for them takes milliseconds, and numpy's BLAS is there from the start."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
