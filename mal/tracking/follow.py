"""The process that mirrors a chain into its trackers while the chain runs: `python -m mal.tracking.follow CHAIN`.

A process of its own, so that a tracker that hangs or breaks costs a chain nothing. It ends with the chain's process,
whose end it sees as the end of its input; signals are not for it. What it had no time for, the next attempt's mirrors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mal.config.frozen import load_chain
from mal.config.schema import flat
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.run.lock import hold
from mal.tracking.entries import Reader
from mal.tracking.trackers import TRACKERS, Tracker

FOLDER = "tracking"  # below the sweep's folder
LOCK = ".tracking.lock"
LOOK_SECONDS, LOCK_SECONDS = 5.0, 1.0
END_SECONDS, LEAVE_SECONDS = 60.0, 1.0  # waited for at a chain's end, and where it was told to stop

log = logging.getLogger("mal.tracking")


@contextlib.contextmanager
def followed(chain: Path, trackers: Sequence[str], interrupt: Interrupt) -> Iterator[None]:
    """While the block runs, a process mirrors the chain; none where there is no tracker or this is not rank 0."""
    if not trackers or not interrupt.world.main:
        yield
        return
    command = [sys.executable, "-m", "mal.tracking.follow", str(chain), *trackers]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    except OSError as error:
        log.warning("trackers cannot be started (%s): the chain goes on without", error)
        yield
        return
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_SECONDS if interrupt.cause else END_SECONDS)


def mirror(chain: Path, names: Sequence[str], look: float = LOOK_SECONDS) -> None:
    """Mirror a chain into the named trackers until the end of this process's input."""
    config = flat(yaml.safe_load((chain / run_folder.CONFIG).read_bytes()))
    open_ones: dict[str, Tracker] = {}
    for name in names:
        with _left_where_broken(name, open_ones):
            open_ones[name] = TRACKERS[name](chain.parents[1] / FOLDER / name, chain, config)
    reader, ended = Reader(chain), False
    while open_ones:
        ended = ended or _ended(look)
        entries = reader.new()
        for name in list(open_ones):
            with _left_where_broken(name, open_ones):
                for entry in entries:
                    open_ones[name].write(entry)
                open_ones[name].flush()
        if ended:
            break
    for name in list(open_ones):
        with _left_where_broken(name, open_ones):
            open_ones[name].close()


@contextlib.contextmanager
def _left_where_broken(name: str, open_ones: dict[str, Any]) -> Iterator[None]:
    """A tracker that raises is said once and left: its library may raise anything."""
    try:
        yield
    except Exception as error:
        log.warning("tracker %s is left, as it fails: %s: %s", name, type(error).__name__, " ".join(str(error).split()))
        open_ones.pop(name, None)


def _ended(seconds: float) -> bool:
    """Whether the input has ended, waited for so long."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def main() -> int:
    """The command line; returns the exit status."""
    for number in Interrupt.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    chain = Path(sys.argv[1])
    while True:
        try:
            with hold(chain / LOCK, LOCK_SECONDS):
                mirror(chain, sys.argv[2:])
            return 0
        except TimeoutError:  # that of an attempt before is still at it
            if _ended(0) and run_folder.committed_rounds(chain) < load_chain(chain / run_folder.CONFIG).rounds:
                return 0  # the next attempt's mirrors


if __name__ == "__main__":
    sys.exit(main())
