"""How far a long pass over images is: a bar on a terminal, lines elsewhere, and a file for `sweeps/status.py`."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mal.files import write_json
from mal.run.folder import DamagedRun, read_json

PROGRESS = ".progress.json"
SAY_SECONDS = 30  # between two lines where the output is not a terminal
NOTE_SECONDS = 1


class ProgressReport:
    """The progress of one part, with its rate and the time left. folder: where the file is kept, if anywhere."""

    def __init__(self, what: str, total: int, folder: Path | None = None) -> None:
        self.what, self.total = what, total
        self.path = None if folder is None else folder / PROGRESS
        self.console = Console(highlight=False)
        self.began = self.last = self.noted = time.monotonic()
        self.first: int | None = None
        self.bar: Progress | None = None

    def __enter__(self) -> ProgressReport:
        if self.console.is_terminal and sys.stdout.isatty():
            rate = TextColumn("{task.fields[rate]:.0f} images/s")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(self.what, total=self.total, rate=0.0)
            self.bar.start()
        return self

    def __call__(self, done: int) -> None:
        """So many are done; those that a run before has done do not count for the rate."""
        if self.first is None:
            self.first = done
            if done:
                self.console.print(f"{self.what}: goes on behind the first {done:,} of {self.total:,} images")
        now = time.monotonic()
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = (self.total - done) / rate if rate else None
        if self.path and now - self.noted > NOTE_SECONDS:
            self.noted = now
            note = {"part": self.what, "done": done, "total": self.total, "images_per_s": rate, "seconds_left": left}
            write_json(self.path, note | {"updated": time.time()}, durable=False)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, rate=rate)
        elif now - self.last > SAY_SECONDS or (done == self.total and self.last > self.began):
            self.last = now
            text = "" if left is None else f", {timedelta(seconds=round(left))} left"
            print(f"{self.what}: {done:,} of {self.total:,} images, {rate:.0f} images/s{text}", flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def read_report(folder: Path) -> dict[str, Any] | None:
    """What a pass that keeps its file in a folder said last; None where there is none that can be read."""
    try:
        note = read_json(folder / PROGRESS)
    except (DamagedRun, OSError):
        return None
    return note if isinstance(note, dict) else None
