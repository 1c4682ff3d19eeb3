"""A wait for images that others read: it answers a stop, is said now and then, and ends in a message."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LOOK_SECONDS, SAY_SECONDS, PATIENCE_SECONDS = 5, 60, 900

log = logging.getLogger(__name__)


class Wait:
    """One wait, from now on. what: does not come, as a sentence; hint: why that may be and what to change.

    look: asked each time that nothing has come, may raise.
    """

    def __init__(self, what: str, hint: str, look: Callable[[], None] = lambda: None) -> None:
        self._what, self._hint, self._look = what, hint, look
        self._began = self._said = time.monotonic()

    def on(self) -> None:
        """Nothing has come for LOOK_SECONDS: go on waiting. Raises TimeoutError after PATIENCE_SECONDS."""
        self._look()
        waited = (now := time.monotonic()) - self._began
        if waited > PATIENCE_SECONDS:
            raise TimeoutError(f"{self._what} for {waited:.0f} s: {self._hint}")
        if now - self._said > SAY_SECONDS:
            self._said = now
            log.warning("%s for %.0f s", self._what, waited)
