"""The progress of a running sweep: a live table of chains on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mal.run import folder as run_folder
from mal.run.heartbeat import read_progress
from sweeps.plan import ChainPlan, State

REFRESH_SECONDS = 0.5
STYLES = {
    "running": "cyan",
    "done": "green",
    "failed": "bold red",
    "locked": "red",
    "interrupted": "yellow",
    "labels": "magenta",
}
STATUSES = {State.DONE: "done", State.FAILED: "failed", State.RUNNING: "elsewhere", State.WAITING: "labels"}


@dataclass
class Row:
    """A chain in the table."""

    plan: ChainPlan
    status: str
    committed: int
    note: str = ""
    value: float | None = None
    metric: str = ""
    heartbeat: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # of the rounds that this launch saw committed

    @property
    def left(self) -> float | None:
        """Estimated seconds of work left, None while nothing is known."""
        if self.status not in ("running", "waiting"):
            return 0.0
        if not self.seconds:
            return None
        spent = float(self.heartbeat.get("seconds", 0.0)) if self.status == "running" else 0.0
        mean = sum(self.seconds) / len(self.seconds)
        return max(0.0, mean * (self.plan.target - self.committed) - min(spent, mean))


class Board:
    """The chains of a launch, followed through what their processes leave on disk."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.rows: list[Row] = []
        self.console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
        self.live: Live | None = None
        self._drawn = 0.0

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self.live = Live(self._table(), console=self.console, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.update(force=True)
        if self.live:
            self.live.stop()

    def add(self, plan: ChainPlan) -> Row:
        """A row for a chain."""
        status = STATUSES.get(plan.state, "waiting")
        row = Row(plan, status, plan.committed, note=plan.note if status not in ("waiting", "done") else "")
        if plan.committed:
            self._read_metric(row)
        self.rows.append(row)
        return row

    def say(self, text: str) -> None:
        """A line above the table."""
        self.console.print(text)

    def follow(self, row: Row) -> None:
        """Take a chain's heartbeat and its new commits from disk."""
        while run_folder.is_committed(run_folder.round_folder(row.plan.folder, row.committed)):
            row.committed += 1
            metrics = self._read_metric(row)
            row.seconds.append(float(metrics["seconds"]))
            if not self.live:
                self._line(
                    row,
                    f"round {metrics['round']} committed: {metrics['labeled']} labels, {row.metric} {row.value:.2f}%, "
                    f"{metrics['seconds']:.1f} s",
                )
        row.heartbeat = read_progress(run_folder.round_folder(row.plan.folder, row.committed)) or {}
        if (found := row.heartbeat.get("diverged")) and not row.note:
            row.note = f"DIVERGED in round {row.committed}, {found}"
            if not self.live:
                self._line(row, row.note)

    def ended(self, row: Row) -> None:
        """A chain's process has ended."""
        if row.status != "done" and not self.live:
            where = "" if row.status == "labels" else f"{row.status} in round {row.committed}: "
            self._line(row, where + row.note)

    def update(self, force: bool = False) -> None:
        """Redraw, at most twice per second."""
        if self.live and (force or time.monotonic() - self._drawn > REFRESH_SECONDS):
            self._drawn = time.monotonic()
            self.live.update(self._table(), refresh=True)

    def _read_metric(self, row: Row) -> dict[str, Any]:
        metrics = run_folder.read_json(run_folder.round_folder(row.plan.folder, row.committed - 1) / run_folder.METRICS)
        row.value, row.metric = metrics["value"], metrics["metric"]
        return dict(metrics)

    def _line(self, row: Row, text: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')}  {row.plan.name}  {text}  [{self._summary()}]", markup=False)

    def _summary(self) -> str:
        done = sum(min(row.committed, row.plan.target) for row in self.rows)
        wanted = sum(row.plan.target for row in self.rows)
        return f"{done}/{wanted} rounds, {self._left()}"

    def _left(self) -> str:
        known = [s for row in self.rows for s in row.seconds]
        if not known:
            return "time left not known yet"
        mean = sum(known) / len(known)
        left = [row.left for row in self.rows]
        work = sum(
            mean * (row.plan.target - row.committed) if seconds is None else seconds
            for row, seconds in zip(self.rows, left, strict=True)
        )
        return f"about {duration(work / self.workers)} left"

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), caption=self._summary(), caption_justify="left")
        for column in ("chain", "rounds", "now", "metric", "left", ""):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        shown = self.rows if len(self.rows) < self.console.height - 4 else [r for r in self.rows if r.status in STYLES]
        for row in shown[: max(1, self.console.height - 5)]:
            table.add_row(*self._cells(row))
        return table

    def _cells(self, row: Row) -> list[Text]:
        target = row.plan.target
        done = min(row.committed, target)
        width = min(target, 10)
        filled = round(width * done / target)
        value = "" if row.value is None else f"{row.metric} {row.value:.2f}%"
        left = row.left
        return [
            Text(row.plan.name),
            Text(f"{'█' * filled}{'░' * (width - filled)} {done}/{target}"),
            Text(phase(row.heartbeat) if row.status == "running" else row.status, style=STYLES.get(row.status, "dim")),
            Text(value),
            Text(duration(left) if left and row.status == "running" else ""),
            Text(row.note, style="red"),
        ]


def phase(heartbeat: dict[str, Any]) -> str:
    """Where a round is, e.g. `minimax 43%`."""
    if not heartbeat:
        return "starting"
    steps = heartbeat.get("steps") or 0
    share = f" {100 * heartbeat.get('step', 0) // steps}%" if steps else ""
    return f"{heartbeat.get('phase', '')}{share}"


def duration(seconds: float) -> str:
    """For people: 42 s, 3 min 10 s, 5 h 20 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
