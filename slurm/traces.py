"""Jobs that ended before our code started: no Python on the node, a set-up line that failed, no log to write to.

A job's first act is a line in CHAIN/slurm/began.jsonl; one that is no longer in the queue and has none left no trace.
The lines of a job's script that try again where its work cannot begin are here, too.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
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
UNREACHED_SECONDS = 30  # that a job waits which has not reached our code: the next one would end in the same way
UNREACHED_STARTS = 3  # in a row, after which a job tries no more; those that reached our code do not count
UNREAD_TIMES = 8  # that a job's Python reads our code again, after 1, 2, 4 ... seconds: four minutes in all

# The first line of a job's log, before anything that can fail: where it ran.
_HELLO = 'echo "job $SLURM_JOB_ID is on ${SLURMD_NODENAME:-$(hostname)}"'
# What follows where a set-up line or the start of Python fails. A job that is cancelled meanwhile stays so.
_UNREACHED = r"""
unreached() {{
  sleep {seconds}
  job=$SLURM_JOB_ID; [ -z "$SLURM_ARRAY_TASK_ID" ] || job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
  reached=$(sed -n "s/.*\"$job\", \"restart\": \([0-9]*\).*/\1/p" {began} 2>/dev/null | sort -n | tail -1)
  [ $((${{SLURM_RESTART_COUNT:-0}} - ${{reached:--1}})) -le {starts} ] && scontrol requeue $SLURM_JOB_ID
}}
trap unreached EXIT
"""
# Our code is on storage that may fail just now: then a new Python reads it again, a little later.
START = f"""
import importlib, os, sys, time
tries = int(os.environ.pop("MAL_UNREAD", 0))
try:
    main = importlib.import_module(sys.argv[1]).main
except (ImportError, OSError) as error:
    if tries == {UNREAD_TIMES}:
        raise
    print(f"our code cannot be read here ({{error}}): again in {{2**tries}} s", file=sys.stderr)
    time.sleep(2**tries)
    os.environ["MAL_UNREAD"] = str(tries + 1)
    os.execv(sys.executable, sys.orig_argv)
sys.exit(main(sys.argv[2:]))
"""
_EXECUTE = "shopt -s execfail  # where Python is missing the line above comes into effect"


def setup_lines(own: Sequence[str], sweep: Path) -> list[str]:
    """The lines of a job's script before its last: where it ran, and what follows where its work cannot begin.

    own: the profile's lines, which nothing here changes. sweep: RUNS/NAME.
    """
    began = f"{shlex.quote(str(sweep))}/*/seed-*/{FOLDER}/{BEGAN}"
    guard = _UNREACHED.format(seconds=UNREACHED_SECONDS, starts=UNREACHED_STARTS, began=began)
    return [_HELLO, guard, *own, _EXECUTE]


def python_line(command: Sequence[str]) -> str:
    """The last line: a module of our code and its arguments, by this Python."""
    return f"exec {shlex.join([sys.executable, '-u', '-c', START, *command])}"


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
