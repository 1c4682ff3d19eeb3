"""Shared storage that fails for a moment: asked again with growing patience, as its silence is not an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 300.0
LONGEST_SECONDS = 60.0  # between two tries

log = logging.getLogger("slurm.job")


class StorageError(Exception):
    """The storage has failed for longer than a job waits for it."""


def insist(function: Callable[[], T]) -> T:
    """The result of a function that reads or writes files; tried again while the file system fails.

    Raises `StorageError` once `PATIENCE_SECONDS` have been waited.
    """
    wait, waited = 1.0, 0.0
    while True:
        try:
            return function()
        except OSError as error:
            if waited >= PATIENCE_SECONDS:
                raise StorageError(f"the storage fails: {error}") from error
            log.warning("the storage fails (%s): trying again in %g s", error, wait)
        time.sleep(wait)
        waited, wait = waited + wait, min(2 * wait, LONGEST_SECONDS)
