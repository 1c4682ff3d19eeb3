"""Whether the processes of a chain show signs of life, at the cost of one small file every few seconds."""

from __future__ import annotations

import json
from pathlib import Path

from mal.run import folder as run_folder
from slurm.clock import RunClock

LOOK_SECONDS = 10.0  # between two looks at the heartbeat; less where a round may be silent for a short time only
START_MINUTES = 1.0  # at least, until the first sign of life: torch comes from a file system that may be busy


class Watch:
    """The heartbeat of a chain's round at work; made before its processes start.

    Time counts by the job's own clock, so that neither a suspension nor a host's wrong clock looks like a hang.
    """

    def __init__(self, chain: Path, hang_minutes: float, clock: RunClock) -> None:
        self.chain, self.hang_minutes, self.clock = chain, hang_minutes, clock
        self.every = min(LOOK_SECONDS, 60 * hang_minutes / 4)
        self._heartbeat: Path | None = None
        self._alive = False
        self._last = self._look()
        self._since = self._looked = clock.seconds

    def silent(self) -> bool:
        """Whether the last sign of life is too long ago."""
        seconds = self.clock.seconds
        if seconds - self._looked < self.every:
            return False
        self._looked = seconds
        try:
            beat = self._look()
        except OSError:  # the storage does not tell, which says nothing about the processes
            self._since = seconds
            return False
        if beat is not None and beat != self._last:
            self._last, self._since, self._alive = beat, seconds, True
        return seconds - self._since > 60 * (
            self.hang_minutes if self._alive else max(self.hang_minutes, START_MINUTES)
        )

    def _look(self) -> float | None:
        beat = None if self._heartbeat is None else _read(self._heartbeat)
        if beat is None:  # of a round that is committed, or has not begun
            number = run_folder.committed_rounds(self.chain)
            folder = run_folder.round_folder(self.chain, number)
            self._heartbeat = folder / run_folder.CHECKPOINT / run_folder.PROGRESS
            beat = _read(self._heartbeat)
        return beat


def _read(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_bytes())["updated"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
