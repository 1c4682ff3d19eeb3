"""Chains in worker processes on this machine: one process per chain, each with its share of the threads or its GPU."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mal.chain import EXIT_DONE, EXIT_LOCKED, read_failure
from mal.labels.asking import awaited
from mal.process.interrupt import EXIT_INTERRUPTED, Interrupt
from mal.process.memory import available_memory
from mal.process.start import last_lines, start_chain
from mal.run import folder as run_folder
from mal.run.code_copy import code_variables
from sweeps.gpus import chains_on_each, free_mib, gpus, measured_mib
from sweeps.plan import ChainPlan, cores, leaders_of
from sweeps.table import Board, Row

POLL_SECONDS = 0.1
GRACE_SECONDS = 60.0  # for workers to save after Ctrl-C, before they are killed


@dataclass
class Worker:
    """A running chain and its process."""

    row: Row
    process: subprocess.Popen[bytes]
    slot: int
    log_start: int = field(default=0)


def worker_count(wanted: int, plans: Sequence[ChainPlan]) -> int:
    """Chains at a time: as asked for, else as many as the GPUs carry, else one per core; at most as many as there are.

    plans: of the chains to run. A GPU carries one chain until chains of the sweep have told what they take of it.
    """
    devices = devices_of(plans)
    on_each = chains_on_each(free_mib(devices), measured_mib([plan.folder for plan in plans]), cores())
    return max(1, min(wanted or len(devices) * on_each or cores(), len(plans)))


def devices_of(plans: Sequence[ChainPlan]) -> list[str]:
    """The GPUs that chains use: none where all are told to compute on the CPU."""
    return gpus() if any(plan.config.device != "cpu" for plan in plans) else []


def memory_of(plans: Sequence[ChainPlan]) -> tuple[float, float]:
    """Bytes that the images of a chain may take with loader=memory: of the host's memory, and of a GPU's."""
    free = free_mib(devices_of(plans))
    return available_memory(), 2**20 * min(free.values(), default=math.inf)


def run_local(plans: list[ChainPlan], workers: int, board: Board, code: Path) -> int:
    """Run every chain that is to run, by the code kept in a folder.

    Returns the exit status: 0 all done, 1 some failed, 130 stopped by a signal.
    """
    interrupt = Interrupt()
    interrupt.install()
    rows = [board.add(plan) for plan in plans]
    waiting = [row for row in rows if row.plan.to_run]
    before = leaders_of(plans)
    running: list[Worker] = []
    devices = devices_of(plans)
    with board:
        while (waiting or running) and not interrupt.requested:
            while len(running) < workers and (row := _next(waiting, running, before)) is not None:
                slot = min(set(range(workers)) - {worker.slot for worker in running})
                running.append(_start(row, slot, devices, code))
            time.sleep(POLL_SECONDS)
            running = [worker for worker in running if not _finished(worker, board)]
            board.update()
        if interrupt.requested:
            _stop(running, board)
    if interrupt.requested:
        board.say("Stopped; what was done is saved. The same command goes on from here.")
        return 130
    return 1 if any(row.status in ("failed", "locked", "interrupted") for row in rows) else 0


def _next(waiting: list[Row], running: Sequence[Worker], before: Mapping[Path, Mapping[Path, int]]) -> Row | None:
    """Take from the waiting the first that does not wait for rounds of a running chain, which trains the same in them.

    before: by a chain's folder, those of such chains and in how many rounds. None where there is none to start now.
    """
    committed = {w.row.plan.folder: run_folder.committed_rounds(w.row.plan.folder) for w in running}

    def waits(row: Row) -> bool:
        return any(committed.get(chain, n) < n for chain, n in before.get(row.plan.folder, {}).items())

    row = next((row for row in waiting if not waits(row)), None)
    if row is not None:
        waiting.remove(row)
    return row


def _start(row: Row, slot: int, devices: list[str], code: Path) -> Worker:
    plan = row.plan
    variables = {"MAL_LAUNCHER": str(os.getpid()), **code_variables(code, os.environ.get("PYTHONPATH", ""))}
    if plan.config.device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    elif devices:
        variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    log = plan.folder / run_folder.LOG
    process, start = start_chain(plan.folder, plan.target, log, plan.config.threads, variables)
    row.status = "running"
    return Worker(row, process, slot, start)


def _finished(worker: Worker, board: Board) -> bool:
    """Take note of a worker's progress and of its end."""
    row, status = worker.row, worker.process.poll()
    board.follow(row)
    if status is None:
        return False
    if status == EXIT_DONE:
        waits = awaited(row.plan.folder, row.plan.config)
        row.status, row.note = ("labels", str(waits)) if waits else ("done", "")
    elif status == EXIT_INTERRUPTED:
        row.status = "interrupted"
    elif status == EXIT_LOCKED:
        row.status, row.note = "locked", "another process is working on it"
    else:
        row.status, row.note = "failed", _reason(worker, status)
    board.ended(row)
    return True


def _reason(worker: Worker, status: int) -> str:
    if failure := read_failure(worker.row.plan.folder):
        return str(failure["error"]).splitlines()[0]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; the same command goes on from its last checkpoint"
    lines = last_lines(worker.row.plan.folder / run_folder.LOG, worker.log_start)
    return lines[-1] if lines else f"exit status {status}"


def _stop(running: list[Worker], board: Board) -> None:
    board.say(f"Stopping: {len(running)} chains save their state ...")
    for worker in running:
        worker.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in running:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        _finished(worker, board)
