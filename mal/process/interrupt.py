"""Signals set a flag; the training loop looks at it between two steps, saves and leaves."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from mal.process.distributed import ALONE, World

EXIT_INTERRUPTED = 75  # BSD's EX_TEMPFAIL: run it again


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes and threads started inside never get the signals of a job: they are for this process to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, Interrupt.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupted(Exception):
    """The process was asked to leave; its state is on disk."""


class Interrupt:
    """Whether this process was asked to stop, by a signal or by the end of the process that started it.

    world: the processes that stop together, if any of them is asked to.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self) -> None:
        self.cause: str | None = None
        self.world: World = ALONE
        self._pid = os.getpid()
        self._launcher = int(os.environ.get("MAL_LAUNCHER", "0"))

    def install(self) -> None:
        """Handle the signals from now on; a second one of the same kind still only sets the flag."""
        for number in self.SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:  # a forked child inherits the handler, but is not the one to answer
            self.cause = signal.Signals(number).name

    @property
    def requested(self) -> bool:
        """Whether this process was asked to save and leave at the next step boundary."""
        if self.cause is None and self._launcher and os.getppid() != self._launcher:
            self.cause = "end of the launcher"
        return self.cause is not None

    def check(self) -> None:
        """Raise `Interrupted` if a stop was asked for: where nothing needs to be saved first, in every process."""
        if self.world.most(self.requested)[0]:
            self.stop()

    def stop(self) -> NoReturn:
        """Raise `Interrupted`: this process or another was asked."""
        self.cause = self.cause or "a stop of another process"
        raise Interrupted(self.cause)
