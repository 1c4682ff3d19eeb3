"""Jobs that ended before our code started: no Python on the node, a set-up line that failed, no log to write to.

A job's first act is a line in CHAIN/slurm/began.jsonl; one that is no longer in the queue and has none left no trace.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mal.run import folder as run_folder
from slurm.attempts import FOLDER
from slurm.client import SlurmError
from slurm.squeue import Job, read_queue
from slurm.submitted import Submitted

BEGAN = "began.jsonl"
CLOCK_SECONDS = 60.0  # that the clocks of a node and of the launching machine may differ


def note_began(chain: Path, job: str, restart: int) -> None:
    """A job has reached our code."""
    note = {"job": job, "restart": restart, "node": os.environ.get("SLURMD_NODENAME", ""), "time": time.time()}
    folder = chain / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / BEGAN, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, b"\n" + json.dumps(note).encode() + b"\n")
    finally:
        os.close(handle)


def without_trace(sweep: Path, submitted: Mapping[str, Submitted], queue: Iterable[Job]) -> list[Submitted]:
    """The newest jobs of a sweep's chains that ended before our code started, and had something to do.

    sweep: RUNS/NAME. queue: read after `submitted`. What began later shows that the cause has passed.
    """
    there = {job.id for job in queue}
    began: dict[str, dict[str, float]] = {}
    committed: dict[str, int] = {}
    lost = []
    for job in submitted.values():
        chain = job.chains[0]
        if job.job in there or job.cancelled:
            continue
        if chain not in began:
            began[chain] = _read_began(sweep / chain)
            committed[chain] = run_folder.committed_rounds(sweep / chain)
        since = job.time - CLOCK_SECONDS
        if committed[chain] < job.until and not any(
            moment > since if number == job.job else moment > job.time for number, moment in began[chain].items()
        ):
            lost.append(job)
    return lost


def explain(lost: Sequence[Submitted]) -> dict[str, str]:
    """What is known of jobs without a trace, by id: Slurm's state and reason while it remembers them, and their logs.

    Those that a person cancelled are left out, as far as Slurm remembers it.
    """
    remembered: dict[str, Job] = {}
    if lost:
        try:
            remembered = {job.id: job for job in read_queue(job.job for job in lost)}
        except SlurmError:  # of a single job that is forgotten, or silence, which has been said already
            remembered = {}
    told = {}
    for job in lost:
        state = remembered.get(job.job)
        if state is not None and (state.alive or state.state == "CANCELLED"):
            continue
        told[job.job] = " ".join(filter(None, [f"job {job.job}", _state(state), _log(Path(job.log))]))
    return told


def _state(job: Job | None) -> str:
    if job is None:
        return ""
    where = f"on {job.nodes} " if job.nodes else ""
    return f"{where}({', '.join(filter(None, [job.state, job.reason]))})"


def _log(path: Path) -> str:
    try:
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        return f"has no log ({error.strerror}: {path})"
    return f"log {path}: {' / '.join(lines[:1] + lines[1:][-1:])}" if lines else f"log {path} is empty"


def _read_began(chain: Path) -> dict[str, float]:
    try:
        lines = (chain / FOLDER / BEGAN).read_text().splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        try:
            note = json.loads(line)
            found[str(note["job"])] = float(note["time"])
        except (ValueError, KeyError, TypeError):
            continue  # cut by a full disk or a crash
    return found
