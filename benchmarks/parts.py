"""Seconds, processor seconds and memory of each part of a chain's rounds, taken while `mal.chain` runs it unchanged.

The functions that a round is made of are wrapped; a part's own seconds are those outside of the parts within it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mal.data.loader import Loader
from mal.process.memory import STATUS
from mal.training.scan import Scanner

# Module, name in it, the part that it is.
FUNCTIONS = (
    ("mal.data.dataset", "load", "open data"),
    ("mal.round", "Rounds.__init__", "start"),
    ("mal.round", "Rounds.run", "rest of the round"),
    ("mal.run.ledger", "Ledger.state", "ledger"),
    ("mal.run.ledger", "Oracle.label", "oracle"),
    ("mal.training.loop", "Trainer.run", "training"),
    ("mal.training.scan", "Scanner.scan", "scan"),
    ("mal.training.scan", "Blocks.save", "blocks of the scan"),
    ("mal.run.checkpoint", "save", "checkpoints"),
    ("mal.run.checkpoint", "load", "checkpoints"),
    ("mal.round", "Rounds._floor", "floor"),
    ("mal.record", "Recorder.files", "records"),
    ("mal.run.folder", "commit", "commit, hashes"),
)
EVERY_SECONDS = 0.02


@dataclass
class Part:
    """One call. own, cpu: seconds outside of other parts; mib: memory at its peak beyond what was there before."""

    name: str
    round: int
    seconds: float
    own: float
    cpu: float
    mib: float


class Clock:
    """Takes the parts down, from several threads; memory without pages of mapped files, of all threads together."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.round = -1
        self._open = threading.local()
        self._peaks: list[list[float]] = []
        threading.Thread(target=self._sample, daemon=True).start()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part for as long as the context is entered."""
        stack = self._open.__dict__.setdefault("stack", [])
        inner, peak, before = [0.0, 0.0], [anonymous_mib()], anonymous_mib()
        self._peaks.append(peak)
        stack.append(inner)
        began, cpu = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            seconds, used = time.monotonic() - began, time.process_time() - cpu
            stack.pop()
            self._peaks = [each for each in self._peaks if each is not peak]
            if stack:
                stack[-1][0] += seconds
                stack[-1][1] += used
            most = max(peak[0], anonymous_mib()) - before
            self.parts.append(Part(name, self.round, seconds, seconds - inner[0], used - inner[1], most))

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Take every call of OWNER.NAME down as that part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            if part == "rest of the round":
                self.round = given[1]
            with self.part(f"{part}: {given[1]}" if part == "scan" else part):
                return function(*given, **named)

        setattr(owner, name, timed)

    def _sample(self) -> None:
        while True:
            now = anonymous_mib()
            for peak in list(self._peaks):
                peak[0] = max(peak[0], now)
            time.sleep(EVERY_SECONDS)


def anonymous_mib() -> float:
    """Resident memory of this process that no file backs."""
    with STATUS.open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def run_timed(chain: Path, out: Path, kill: str = "", scanned: int = 0) -> None:
    """Run a chain to its end in this process and append its parts to `out`, a line of JSON each.

    kill: "select" or "commit": end by SIGKILL in the middle of that part. scanned: see `cut_scans`; 0: all images.
    """
    from mal.chain import run_chain
    from mal.config.frozen import load_chain
    from mal.methods import METHODS
    from mal.process.interrupt import Interrupt

    if scanned:
        cut_scans(scanned)
    clock = Clock()
    for module, name, part in FUNCTIONS:
        owner: Any = importlib.import_module(module)
        *within, last = name.split(".")
        clock.wrap(functools.reduce(getattr, within, owner), last, part)
    method = METHODS[load_chain(chain / "config.yaml").method["acquisition"]]
    clock.wrap(method, "select", "choosing")
    if kill:
        _arm(kill)
    try:
        run_chain(chain, None, Interrupt())
    finally:
        with out.open("a") as lines:
            lines.writelines(json.dumps(asdict(part)) + "\n" for part in clock.parts)


def cut_scans(most: int) -> None:
    """Let scans of the pool see `most` images; the others' rows are made up, each between those of two of them."""
    scan = Scanner.scan

    def cut(self: Scanner, phase: str, loader: Loader, indices: np.ndarray, *given: Any, **named: Any) -> Any:
        if phase == "evaluate" or len(indices) <= most:
            return scan(self, phase, loader, indices, *given, **named)
        found = scan(self, phase, loader, indices[:most], *given, **named)
        return {name: _spread(values, len(indices)) for name, values in found.items()}

    Scanner.scan = cut  # type: ignore[method-assign]


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """(n, ...) to (count, ...)."""
    random = np.random.default_rng(count)
    spread = values[random.integers(0, len(values), count)]
    if spread.dtype.kind == "f":
        share = random.random((count, *(1,) * (values.ndim - 1)), dtype=spread.dtype)
        spread += share * (values[random.integers(0, len(values), count)] - spread)
    return spread


def _arm(kill: str) -> None:
    """SIGKILL once half of a selection is made, or once the query is written and the commit is not."""
    from mal.methods.base import Setting
    from mal.run import folder

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if kill == "select":
        count = Setting.count_picks

        def counting(self: Setting, steps: int) -> Callable[[int, int], None]:
            report = count(self, steps)
            return lambda done, total: die() if 2 * done >= total else report(done, total)

        Setting.count_picks = counting  # type: ignore[method-assign]
        return
    write = folder.write_indices

    def writing(path: Path, indices: Any) -> None:
        write(path, indices)
        if path.name == folder.QUERY:
            die()

    folder.write_indices = writing
