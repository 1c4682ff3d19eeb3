"""The time over which a job ran: while it is suspended (gang scheduling, `scontrol suspend`) nothing of it runs."""

from __future__ import annotations

import threading
import time

TICK_SECONDS = 0.5
STOPPED_SECONDS = 5.0  # between two ticks: the process was stopped, not slow


class RunClock:
    """Seconds that this process has run since the clock was made; a thread of its own counts them.

    A call of the process's other threads that waits (for a file, for Slurm) counts: only all of them stand still
    together when a job is suspended.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(TICK_SECONDS)
            now = time.monotonic()
            self.seconds += counted(now - before)
            before = now


def counted(gap: float) -> float:
    """What a gap between two ticks counts: itself, or one tick where the process was stopped."""
    return gap if gap < STOPPED_SECONDS else TICK_SECONDS
