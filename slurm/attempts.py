"""What happened to the jobs of a chain, CHAIN/slurm/attempts.jsonl, and how often each cause is tried again.

An attempt is one stay of a job on its nodes. Its first line is written when it starts, its last when it ends by itself;
one that was cut off (a preemption without grace, a lost node) is judged by the attempt after it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.files import write_json
from mal.run import folder as run_folder
from mal.run.heartbeat import now, read_progress
from slurm.gpu_share import GpuShare

FOLDER = "slurm"
ATTEMPTS = "attempts.jsonl"
AVOIDED_HOURS = 12.0  # that a node which has failed a chain is avoided by its jobs: somebody may have mended it by then
# How many attempts in a row may end so without having saved anything, before the chain has failed; None: any number.
# What saved something may always go on, whatever ended it, except an error of the code, which is never tried again.
BUDGETS: dict[str, int | None] = {
    "preempted": None,
    "timeout": 2,
    "out of memory": 1,
    "hung": 2,
    "killed": 3,
    "died": 3,
    "storage": None,
    "place": 1,
}
_TIME = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ ")  # of a log's line
PLACE = "place"  # of the node: tried once elsewhere
ONE_PLACE = 4  # attempts on a node that a job cannot leave, a little later each: its trouble may pass
FIRST_WAIT_SECONDS = 5.0  # before a job tries again where it is, and four times as long each time
STORAGE_DELAY_SECONDS = 60.0  # of a requeued job after an error of the storage, twice as long each time
LONGEST_DELAY_SECONDS = 3600.0
ADVICE = {
    "timeout": "Raise cluster.time, or lower checkpoint_minutes.",
    "out of memory": "Raise cluster.mem_gb, ask for a larger GPU, or lower the batch sizes.",
    "hung": "Raise cluster.hang_minutes if a phase really runs for so long without a heartbeat.",
    PLACE: "It is of the nodes, or of the code; after mending it, launch with retry=true.",
}


@dataclass(frozen=True)
class Attempt:
    """One stay of a job on its nodes.

    cause: done, error, locked, stopped (cancelled, or requeued from outside), a key of BUDGETS; "" while it runs or
    where it was cut off. saved: whether a checkpoint or a commit was written. seconds: until its end or last sign of
    life; lost: those of them whose work was not saved. gpus: over all nodes. host: the node that an error of the place
    is of. gave_up: whether the chain failed for good with it, until a person launched it with retry=true.
    gpu_percent, gpu_mib: share of the time in which its GPUs computed, and their memory, where that is known.
    """

    job: str
    restart: int
    started: float
    gpus: int
    cause: str
    saved: bool
    seconds: float
    lost: float
    ended: bool
    host: str = ""
    gave_up: bool = False
    gpu_percent: float | None = None
    gpu_mib: int | None = None


def read_attempts(chain: Path) -> list[Attempt]:
    """The attempts of a chain, oldest first."""
    try:
        lines = (chain / FOLDER / ATTEMPTS).read_text().splitlines()
    except FileNotFoundError:
        return []
    starts: list[dict[str, Any]] = []
    ends: dict[tuple[str, int, float], dict[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut by a full disk or a crash
        if entry["event"] == "start":
            starts.append(entry)
        else:
            ends[_key(entry)] = entry
    lives = [entry.get("before") for entry in starts[1:]] + [_life(chain, starts[-1]["started"]) if starts else None]
    return [_attempt(start, ends.get(_key(start)), life) for start, life in zip(starts, lives, strict=False)]


def write_start(chain: Path, job: str, restart: int, gpus: int) -> float:
    """Note that an attempt begins; its start, which names it together with job and restart."""
    started = time.time()
    before = read_attempts(chain)
    note = {"event": "start", "job": job, "restart": restart, "started": started, "gpus": gpus}
    if before and not before[-1].ended:  # the heartbeat is overwritten soon
        note["before"] = _life(chain, before[-1].started)
    _append(chain, note)
    return started


def write_end(
    chain: Path, job: str, restart: int, started: float, cause: str, host: str = "", share: GpuShare | None = None
) -> None:
    """Note how an attempt ended; host: the node where it is to blame. share: of its GPUs."""
    note = {"event": "end", "job": job, "restart": restart, "started": started, "cause": cause}
    note |= {"host": host} if host else {}
    if share and share.percent is not None:
        note |= {"gpu_percent": share.percent, "gpu_mib": share.memory_mib}
    _append(chain, note | _life(chain, started) | {"ended": time.time()})


def may_go_on(cause: str, attempts: Sequence[Attempt]) -> bool:
    """Whether a chain whose last attempt ended by `cause` is to be tried again; attempts: including that one."""
    budget, last = BUDGETS[cause], _last(cause, attempts)
    if budget is None:
        return True
    if cause == PLACE and len({attempt.host for attempt in last}) == 1:
        return len(last) < ONE_PLACE
    return len(last) <= budget


def in_a_row(cause: str, attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts ended by a cause without anything saved, since the chain failed for good."""
    return len(_last(cause, attempts))


def delay_s(causes: Mapping[Path, str], leaves: bool, restart: int) -> float:
    """Seconds until the next job of chains may start, where starting at once would only fail again.

    causes: why they ended now. leaves: whether it starts on another node. restart: times in a row, where the storage
    does not tell.
    """

    def times(cause: str) -> int:
        try:
            return max(in_a_row(cause, read_attempts(chain)) for chain in causes)
        except OSError:
            return restart

    if "storage" in causes.values():
        return min(STORAGE_DELAY_SECONDS * 2 ** min(times("storage"), 10), LONGEST_DELAY_SECONDS)
    if PLACE in causes.values() and not leaves:
        return FIRST_WAIT_SECONDS * 4 ** max(0, times(PLACE) - 1)
    return 0.0


def _last(cause: str, attempts: Sequence[Attempt]) -> list[Attempt]:
    of_cause = itertools.takewhile(lambda a: a.cause == cause and not a.saved and not a.gave_up, reversed(attempts))
    return list(of_cause)


def bad_nodes(chain: Path) -> list[str]:
    """The nodes that have failed a chain lately, which its jobs avoid, sorted."""
    since = time.time() - 3600 * AVOIDED_HOURS
    return sorted(node for node, moment in _failed(chain).items() if moment > since)


def lapsed_nodes(chain: Path) -> list[str]:
    """The nodes that failed a chain so long ago that its jobs avoid them no more, sorted."""
    return sorted(set(_failed(chain)) - set(bad_nodes(chain)))


def _failed(chain: Path) -> dict[str, float]:
    failed = [attempt for attempt in read_attempts(chain) if attempt.cause == PLACE and attempt.host]
    return {attempt.host: attempt.started + attempt.seconds for attempt in failed}


def give_up(chain: Path, cause: str, tail: Sequence[str]) -> None:
    """Record the failure in the round's folder, as for an error; `tail`: the last lines of the log.

    Also in the log of attempts, so that those up to here do not count against the chain once it is tried again.
    """
    number = run_folder.committed_rounds(chain)
    times = f"{cause} {(BUDGETS[cause] or 0) + 1} times"
    hosts = bad_nodes(chain) if cause == PLACE else []
    if hosts:
        own = [line for line in tail if not line.startswith(("srun:", "slurmstepd:"))]
        times = f"it failed on {', '.join(hosts)} ({_TIME.sub('', own[-1]) if own else 'without a message'})"
    error = f"Round {number} was given up: {times}{'' if hosts else ' without anything saved between'}."
    note = {"error": " ".join([error, ADVICE.get(cause, "")]).strip(), "traceback": "\n".join(tail), "time": now()}
    if last := _last_end(chain):
        _append(chain, last | {"gave_up": True})
    write_json(run_folder.round_folder(chain, number) / run_folder.FAILED, note)


def _last_end(chain: Path) -> dict[str, Any]:
    try:
        lines = (chain / FOLDER / ATTEMPTS).read_text().splitlines()
    except FileNotFoundError:
        return {}
    entry = json.loads(lines[-1]) if lines else {}
    return dict(entry) if entry.get("event") == "end" else {}


def _key(entry: dict[str, Any]) -> tuple[str, int, float]:
    return str(entry["job"]), int(entry["restart"]), float(entry["started"])


def _attempt(start: dict[str, Any], end: dict[str, Any] | None, seen: dict[str, Any] | None) -> Attempt:
    life = end or seen or {}
    until = float(life.get("ended") or life.get("alive") or start["started"])
    saved = float(life.get("saved") or 0.0)
    seconds = max(0.0, until - start["started"])
    done = str(life.get("cause", "")) == "done"
    lost = 0.0 if done else min(seconds, max(0.0, until - max(saved, start["started"])))
    return Attempt(
        job=str(start["job"]),
        restart=int(start["restart"]),
        started=float(start["started"]),
        gpus=int(start["gpus"]),
        cause=str(life.get("cause", "")),
        saved=saved > start["started"],
        seconds=seconds,
        lost=lost,
        ended=end is not None,
        host=str(life.get("host", "")),
        gave_up=bool(life.get("gave_up", False)),
        gpu_percent=life.get("gpu_percent"),
        gpu_mib=life.get("gpu_mib"),
    )


def _life(chain: Path, started: float) -> dict[str, Any]:
    heartbeat = read_progress(run_folder.round_folder(chain, run_folder.committed_rounds(chain))) or {}
    saved = _last_save(chain)
    return {"alive": max(started, saved, float(heartbeat.get("updated", 0.0))), "saved": saved}


def _last_save(chain: Path) -> float:
    number = run_folder.committed_rounds(chain)
    folder = run_folder.round_folder(chain, number) / run_folder.CHECKPOINT
    files = list(folder.rglob("*.ckpt"))
    if number:
        files.append(run_folder.round_folder(chain, number - 1) / run_folder.COMMITTED)
    return max((_modified(path) for path in files), default=0.0)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # dropped at the commit meanwhile
        return 0.0


def _append(chain: Path, note: dict[str, Any]) -> None:
    folder = chain / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ATTEMPTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, json.dumps(note).encode() + b"\n")
    finally:
        os.close(handle)
