"""watch=true: a launch that goes on by itself whenever people have labelled what a chain waited for."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from mal.chain import read_failure
from mal.config.compose import Sweep
from mal.labels.asking import awaited
from mal.run import folder as run_folder

LOOK_SECONDS = 2.0
Standing = tuple[int, bool]  # committed rounds, whether people are waited for


def watch(sweep: Sweep, launch: Callable[[Sweep], int]) -> int:
    """Launch, and again as soon as a chain can go on, until all are done or one has failed; the last exit status."""
    while True:
        before = standings(sweep)
        status = launch(sweep)
        if status or sweep.dry_run:
            return status
        for number in (signal.SIGINT, signal.SIGTERM):  # chains that ran here had them
            signal.signal(number, signal.default_int_handler)
        while not _can_go_on(sweep, before, now := standings(sweep)):
            if _over(sweep, now):
                return status
            before |= {chain: at for chain, at in now.items() if at[1]}  # seen waiting: its labels come next
            time.sleep(LOOK_SECONDS)


def standings(sweep: Sweep) -> dict[Path, Standing]:
    """Where each chain stands, from its files."""
    found = {}
    for chain in sweep.chains:
        folder = run_folder.chain_folder(sweep.runs, sweep.name, chain.method["name"], chain.seed)
        found[folder] = run_folder.committed_rounds(folder), awaited(folder, chain) is not None
    return found


def _can_go_on(sweep: Sweep, before: dict[Path, Standing], now: dict[Path, Standing]) -> bool:
    """Whether a chain has the labels that it waited for, or a new round, and all that it asked for is there."""
    for chain, (committed, waits) in now.items():
        moved = before[chain][1] or committed > before[chain][0]
        if moved and not waits and committed < sweep.chains[0].rounds:
            return True
    return False


def _over(sweep: Sweep, now: dict[Path, Standing]) -> bool:
    """Whether every chain is done, or one has failed."""
    rounds = sweep.chains[0].rounds
    return all(committed >= rounds for committed, _ in now.values()) or any(read_failure(chain) for chain in now)
