"""Loops compiled by numba, kept on disk for the next process where there is a place for them.

Importing this module does not import numba.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

log = logging.getLogger(__name__)


@cache
def _say_once() -> None:
    log.warning(
        "compiled loops are compiled by every process, as neither their folder nor the user's cache can be written to: "
        "set NUMBA_CACHE_DIR to a folder that can."
    )


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: numba's `njit` with its on-disk cache; without it, which is said, where nothing can be written.

    options: of njit.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        from numba import njit

        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            _say_once()
            return njit(**options)(function)

    return decorate
