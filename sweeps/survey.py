"""The state of every chain of a sweep, from its files and one call of squeue."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from yaml import YAMLError

from mal.chain import read_failure
from mal.config.frozen import load_chain, plain
from mal.config.people import FILES
from mal.config.registry import nearest
from mal.labels.asking import awaited
from mal.process.start import last_lines
from mal.run import folder as run_folder
from mal.run.heartbeat import read_progress
from slurm.attempts import Attempt, bad_nodes, read_attempts
from slurm.squeue import Job, by_chain
from slurm.stuck import remedy, stuck
from slurm.submit import log_of
from slurm.submitted import Submitted, claim, read_submitted
from slurm.traces import without_trace
from sweeps.preparing import last_words, waiting

TAIL_BYTES, TAIL_LINES = 8192, 3  # of a log
FRESH_SECONDS = 90.0  # a heartbeat so young is that of a live process
LOST_BY = ("preempted", "timeout", "stopped", "")  # "": cut off by Slurm, without grace or with its node


@dataclass
class ChainView:
    """One chain.

    state: done, running, queued, stuck (its job waits for a person), labels (it waits for labels from people), failed,
    missing (nothing works on it), or unknown (not done, and Slurm does not answer). cells: one word per round:
    committed, running, queued, labels, failed, missing or unknown. heartbeat: of the round at work, with its age in
    seconds. note: Slurm's reason, the error's last line, or where it stopped. lost: its newest jobs, where they ended
    before our code started. bad_nodes: that have failed it, and that its next jobs avoid. diverged: the first round and
    phase with a loss that is no number or ten times what it began with. tail: the last lines of the log of a chain that
    ended without saying why. hours: on nodes; lost_hours, lost_gpu_hours: done again after interruptions. people:
    whether they give its labels.
    """

    method: str
    seed: int
    folder: Path
    rounds: int
    committed: int
    state: str = "missing"
    cells: list[str] = field(default_factory=list)
    note: str = ""
    log: Path | None = None
    jobs: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    diverged: str = ""
    tail: list[str] = field(default_factory=list)
    bad_nodes: list[str] = field(default_factory=list)
    heartbeat: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    metric: str = ""
    left_s: float | None = None
    hours: float = 0.0
    gpu_hours: float = 0.0
    lost_hours: float = 0.0
    lost_gpu_hours: float = 0.0
    interruptions: dict[str, int] = field(default_factory=dict)
    people: bool = False

    @property
    def name(self) -> str:
        """METHOD/seed-S."""
        return f"{self.method}/seed-{self.seed}"

    @property
    def shown(self) -> str:
        """The name, or METHOD alone where people label, as it has one chain then."""
        return self.method if self.people else self.name

    @property
    def age(self) -> float | None:
        """Seconds since the heartbeat."""
        return max(0.0, time.time() - self.heartbeat["updated"]) if "updated" in self.heartbeat else None

    @property
    def percent(self) -> float | None:
        """Of the phase at work."""
        steps = self.heartbeat.get("steps") or 0
        return 100 * self.heartbeat["step"] / steps if steps else None


def names_asked(runs: Path, name: str) -> list[str]:
    """The sweep of that name, all where none is given. Raises ValueError where it is not under the runs folder."""
    known = run_folder.sweep_names(runs)
    if name and name not in known:
        there = f"There are: {', '.join(known)}." if known else "There is none yet."
        raise ValueError(f"name={name}: no such sweep under runs={runs}{nearest(name, known) or '.'} {there}")
    if not known:
        raise ValueError(f"runs={runs} holds no sweep: launch one with sweeps/launch.py, or set runs=.")
    return [name] if name else known


def survey(runs: Path, name: str, queue: Sequence[Job] | None) -> list[ChainView]:
    """The chains of a sweep, by method and seed. Changes nothing, and takes no lock.

    queue: None where there is a Slurm that does not tell.
    """
    submitted = read_submitted(runs / name)
    ours = claim(queue or [], submitted, name, runs)
    jobs = by_chain(ours, name, runs)
    lost = without_trace(runs / name, submitted, ours) if queue is not None else []
    copy, log = waiting(runs / name, queue)
    views = []
    for folder in run_folder.chain_folders(runs, name):
        method, seed = folder.parent.name, int(folder.name.rpartition("-")[2])
        alive = [job for job in jobs.get((method, seed), []) if job.alive]
        view = _view(folder, method, seed, alive, known=queue is not None)
        if copy and view.state in ("queued", "missing", "stuck"):
            view.note = copy  # Slurm ends the jobs of chains whose copy could not be made
            if log:
                view.log, view.tail, log = log, last_words(log), None  # once
        else:
            view.lost = _lost(view, lost)
        views.append(view)
    return views


def _view(folder: Path, method: str, seed: int, jobs: Sequence[Job], known: bool) -> ChainView:
    committed, config = run_folder.committed_rounds(folder), _config(folder)
    view = ChainView(method, seed, folder, int(config["rounds"]), committed, jobs=[job.id for job in jobs])
    view.people = config.get("dataset", {}).get("oracle") == FILES
    seconds = _committed_seconds(view)
    heartbeat = read_progress(run_folder.round_folder(folder, committed)) or {}
    failure = read_failure(folder) if committed < view.rounds else None
    view.log, view.bad_nodes = log_of(folder), bad_nodes(folder)
    if committed >= view.rounds:
        view.state = "done"
    elif failure:
        view.state, view.note = "failed", _last_line(str(failure["error"]))
    else:
        _look_for_work(view, heartbeat, jobs, known)
        _look_for_people(view)
    if view.committed < view.rounds and "diverged" in heartbeat:
        view.diverged = view.diverged or f"round {committed}, {heartbeat['diverged']}"
    if view.state == "missing" and view.log and heartbeat and "interrupted" not in heartbeat:
        view.tail = last_lines(view.log, max(0, view.log.stat().st_size - TAIL_BYTES), TAIL_LINES)
    view.cells = _cells(view, jobs, known)
    _count_hours(view, read_attempts(folder), seconds)
    if seconds and view.state in ("running", "queued"):
        spent = float(heartbeat.get("seconds", 0.0)) if view.state == "running" else 0.0
        mean = sum(seconds) / len(seconds)
        view.left_s = max(0.0, mean * (view.rounds - committed) - min(spent, mean))
    return view


def _look_for_work(view: ChainView, heartbeat: dict[str, Any], jobs: Sequence[Job], known: bool) -> None:
    """Who works, or is to work, on a chain that is neither done nor failed."""
    on_node = [job for job in jobs if not job.waiting]
    if on_node or _alive(heartbeat):
        view.state, view.heartbeat = "running", heartbeat
        view.note = "" if not on_node or on_node[0].state == "RUNNING" else on_node[0].state.lower()
    elif (held := stuck(jobs)) is not None:
        view.state, view.note = "stuck", f"{held.reason or held.state}; {remedy(held)}"
    elif jobs:
        view.state, view.note = "queued", jobs[0].reason or jobs[0].state
    elif known:
        view.note = _stopped(heartbeat)
    else:
        view.state, view.note = "unknown", "Slurm does not answer: its jobs, if any, are not known"


def _look_for_people(view: ChainView) -> None:
    """Whether a chain that nothing works on waits for labels."""
    if not view.people or view.state not in ("missing", "unknown"):
        return
    if found := awaited(view.folder, load_chain(view.folder / run_folder.CONFIG)):
        view.state, view.note = "labels", str(found)


def _lost(view: ChainView, lost: Sequence[Submitted]) -> list[str]:
    if view.committed >= view.rounds:
        return []
    return [job.job for job in lost if view.name in job.chains]


def _config(folder: Path) -> dict[str, Any]:
    """The chain's file, unchecked but for its number of rounds; `DamagedRun` where it has none."""
    try:
        config = plain(folder / run_folder.CONFIG)
        int(config["rounds"])
    except (YAMLError, KeyError, TypeError, ValueError):
        raise run_folder.DamagedRun(
            f"{folder / run_folder.CONFIG} is not a chain's configuration; it was cut or edited."
        ) from None
    return config


def _committed_seconds(view: ChainView) -> list[float]:
    seconds = []
    for number in range(view.committed):
        metrics = run_folder.read_json(run_folder.round_folder(view.folder, number) / run_folder.METRICS)
        seconds.append(float(metrics["seconds"]))
        for found in metrics.get("diverged", []):
            view.diverged = view.diverged or f"round {number}, {found}"
        view.value, view.metric = float(metrics["value"]), str(metrics["metric"])
        view.gpu_hours += metrics.get("gpus", 0) * seconds[-1] / 3600
    return seconds


def _alive(heartbeat: dict[str, Any]) -> bool:
    if not heartbeat or "interrupted" in heartbeat:
        return False
    if heartbeat.get("host") == socket.gethostname():
        return _is_chain(int(heartbeat["pid"]))
    return time.time() - heartbeat["updated"] < FRESH_SECONDS


def _is_chain(pid: int) -> bool:
    try:
        return "mal.chain" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _stopped(heartbeat: dict[str, Any]) -> str:
    if not heartbeat:
        return "not started"
    steps = heartbeat.get("steps") or 0
    at = f" at step {heartbeat.get('step', 0)} of {steps}" if steps else ""
    return f"stopped in {heartbeat.get('phase', 'its start')}{at}; the launch command goes on"


def _cells(view: ChainView, jobs: Sequence[Job], known: bool) -> list[str]:
    until = max((job.until for job in jobs), default=0)
    cells = ["committed"] * min(view.committed, view.rounds)
    for number in range(view.committed, view.rounds):
        if number == view.committed and view.state in ("running", "failed", "labels"):
            cells.append(view.state)
        else:
            waits = number < until and view.state != "failed"
            lacking = "missing" if known or view.state in ("failed", "labels") else "unknown"
            cells.append("queued" if waits else lacking)
    return cells


def _count_hours(view: ChainView, attempts: Sequence[Attempt], seconds: Sequence[float]) -> None:
    if not attempts:  # worker processes of this machine
        view.hours = sum(seconds) / 3600
        return
    view.hours = sum(a.seconds for a in attempts) / 3600
    view.gpu_hours = sum(a.seconds * a.gpus for a in attempts) / 3600
    over = attempts[:-1] if view.state == "running" else attempts
    lost = [a for a in over if a.cause in LOST_BY]
    view.lost_hours = sum(a.lost for a in lost) / 3600
    view.lost_gpu_hours = sum(a.lost * a.gpus for a in lost) / 3600
    for attempt in over:
        if attempt.cause != "done":
            cause = attempt.cause or "cut off"
            view.interruptions[cause] = view.interruptions.get(cause, 0) + 1


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "an error without a message"
