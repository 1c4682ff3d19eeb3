"""The heartbeat of a round: progress.json in its working state, for the launcher's table and `sweeps/status.py`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mal.files import write_json
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.run.folder import DamagedRun
from mal.run.windows import Window, finite, tell

BEAT_SECONDS = 1.0
TOLD_SECONDS = 1.0  # between two windows in the log; windows.jsonl has all


class Progress:
    """Where a round is: phase, step, seconds over all attempts, attempts so far."""

    def __init__(self, round_folder: Path, number: int, interrupt: Interrupt) -> None:
        self.path = round_folder / run_folder.CHECKPOINT / run_folder.PROGRESS
        self.interrupt = interrupt
        before = read_progress(round_folder) or {}
        self.attempts = int(before.get("attempts", 0)) + 1
        self.started = str(before.get("started", now()))
        self._seconds_before = float(before.get("seconds", 0.0))
        self._clock = time.monotonic()
        self._beat, self._told = -BEAT_SECONDS, -TOLD_SECONDS
        self._state: dict[str, Any] = {"round": number, "phase": "start", "step": 0, "steps": 0}
        self._phase_clock, self._phase_step = self._clock, 0
        self._write()

    @property
    def seconds(self) -> float:
        """Seconds of work on this round, over all attempts as far as their heartbeats tell."""
        return self._seconds_before + time.monotonic() - self._clock

    def phase(self, name: str, steps: int, step: int = 0) -> None:
        """A new phase of `steps` steps begins at `step` (above 0 after a resume)."""
        self._state |= {"phase": name, "step": step, "steps": steps}
        for key in ("losses", "images_per_s"):
            self._state.pop(key, None)  # of the phase before
        self._phase_clock, self._phase_step = time.monotonic(), step
        self._write()
        self.interrupt.check()

    def at(self, step: int) -> None:
        """Note the step; written to disk at most once per second."""
        self._state["step"] = step
        if time.monotonic() - self._beat >= BEAT_SECONDS:
            self._write()

    def window(
        self, step: int, losses: Mapping[str, float], diverged: str, images: int, device_mib: int | None
    ) -> None:
        """A window of steps has ended at `step`: tell it. images: of a step, over all processes."""
        seconds = max(time.monotonic() - self._phase_clock, 1e-9)
        rate = (step - self._phase_step) / seconds
        phase, steps = str(self._state["phase"]), int(self._state["steps"])
        left = (steps - step) / rate
        told = Window(self._state["round"], phase, step, steps, losses, images * rate, left, device_mib, diverged)
        aloud = step == steps or time.monotonic() - self._told >= TOLD_SECONDS
        self._told = time.monotonic() if aloud else self._told
        tell(self.path.parents[2], told, aloud)
        self._state |= {"losses": finite(losses), "images_per_s": images * rate, "device_mib": device_mib}
        if diverged:
            self._state["diverged"] = f"{phase}: {diverged}"

    def leave(self, cause: str) -> None:
        """The last note of an interrupted attempt."""
        self._state["interrupted"] = cause
        self._write()

    def _write(self) -> None:
        if not self.interrupt.world.main:
            return
        self._beat = time.monotonic()
        done = self._state["step"] - self._phase_step
        rate = (self._beat - self._phase_clock) / done if done > 0 else None
        self._state |= {
            "eta_phase": None if rate is None else rate * (self._state["steps"] - self._state["step"]),
            "seconds": self.seconds,
            "attempts": self.attempts,
            "started": self.started,
            "updated": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        write_json(self.path, self._state, durable=False)


def read_progress(round_folder: Path) -> dict[str, Any] | None:
    """The last heartbeat of an unfinished round; None where there is none that can be read."""
    try:
        state = run_folder.read_json(round_folder / run_folder.CHECKPOINT / run_folder.PROGRESS)
    except (DamagedRun, OSError):
        return None
    return state if isinstance(state, dict) else None


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
