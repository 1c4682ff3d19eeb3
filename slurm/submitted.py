"""The jobs that a sweep has submitted, RUNS/NAME/.slurm/jobs.jsonl: ids that sbatch printed, and what each is for.

Comments belong to some sites, and names can be changed; a job is known by its id as well. What is in the queue and not
here was submitted by an older version, or by a launcher that was killed in between. What each task of an array is for
is in RUNS/NAME/.slurm/array-DIGEST.json, written before it is submitted, and the array's name has the digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.files import write_atomic
from slurm.squeue import Job, array_digest, job_comment, name_of

FOLDER = ".slurm"
FILE = "jobs.jsonl"
SAME_SECONDS = 60.0  # between sbatch's answer here and the submission by Slurm's clock


@dataclass(frozen=True)
class Submitted:
    """One job, or one task of an array: its chains (METHOD/seed-S), how far, when it was submitted, and its log.

    aim: the rounds that it is to commit in the end, where Slurm took no further job of its chains; 0: as until.
    """

    job: str
    name: str
    chains: tuple[str, ...]
    until: int
    time: float
    log: str
    aim: int = 0
    cancelled: bool = False


def read_submitted(sweep: Path) -> dict[str, Submitted]:
    """The jobs of a sweep's folder RUNS/NAME, by id; empty where none was submitted."""
    try:
        lines = (sweep / FOLDER / FILE).read_text().splitlines()
    except FileNotFoundError:
        return {}
    found: dict[str, Submitted] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            job = entry["job"] = str(entry["job"])
            if digest := entry.pop("array", ""):
                found |= _tasks(sweep, digest, entry)
            elif "name" in entry:
                found[job] = Submitted(**entry | {"chains": tuple(entry["chains"])})
            elif job in found:
                found[job] = dataclasses.replace(found[job], **{k: v for k, v in entry.items() if k != "job"})
        except (ValueError, KeyError, TypeError):
            continue  # cut by a full disk or a crash
    return found


def note_submitted(sweep: Path, job: str, name: str, chains: Sequence[str], until: int, log: str) -> None:
    """Remember a job that Slurm has just taken."""
    entry = {"job": job, "name": name, "chains": list(chains), "until": until, "time": time.time(), "log": log}
    _append(sweep, entry)


def note_array(sweep: Path, tasks: Sequence[tuple[Sequence[str], int]]) -> str:
    """Remember what the tasks of an array are for, chains and how far, before it is submitted; its digest."""
    text = json.dumps([{"chains": list(chains), "until": until} for chains, until in tasks])
    digest = hashlib.sha256(f"{time.time_ns()} {text}".encode()).hexdigest()[:8]
    write_atomic(array_file(sweep, digest), text.encode())
    return digest


def note_submitted_array(sweep: Path, job: str, name: str, digest: str, log: str) -> None:
    """Remember an array that Slurm has just taken; log: of its tasks, with %a for the number."""
    _append(sweep, {"job": job, "name": name, "array": digest, "time": time.time(), "log": log})


def array_file(sweep: Path, digest: str) -> Path:
    """Where it is kept what the tasks of an array are for."""
    return sweep / FOLDER / f"array-{digest}.json"


def read_task(path: Path, number: int) -> tuple[tuple[str, ...], int]:
    """The chains of an array's task, and how far."""
    task = json.loads(path.read_text())[number]
    return tuple(task["chains"]), int(task["until"])


def note_aim(sweep: Path, job: str, aim: int) -> None:
    """A submitted job is to go further than its script says."""
    _append(sweep, {"job": job, "aim": aim})


def note_cancelled(sweep: Path, job: str) -> None:
    """A submitted job was cancelled by a person."""
    _append(sweep, {"job": job, "cancelled": True})


def claim(jobs: Iterable[Job], submitted: Mapping[str, Submitted], sweep: str, runs: Path | str) -> list[Job]:
    """The jobs, those of a sweep with the name and the comment of their chains' jobs; tasks of arrays likewise."""
    arrays: dict[str, dict[str, Submitted]] = {}
    claimed = []
    for job in jobs:
        ours, digest = submitted.get(job.id), array_digest(job.name)
        if ours is None and digest:  # a launcher was killed before it could note the id
            base = job.id.partition("_")[0]
            note = {"job": base, "name": job.name, "time": 0.0, "log": ""}
            ours = arrays.setdefault(digest, _tasks(Path(runs) / sweep, digest, note)).get(job.id)
        claimed.append(_claimed(job, ours, sweep, runs))
    return claimed


def _tasks(sweep: Path, digest: str, entry: Mapping[str, Any]) -> dict[str, Submitted]:
    """The tasks of an array by their ids; entry: what all share. Empty where it is of another sweep."""
    try:
        tasks = json.loads(array_file(sweep, digest).read_text())
    except FileNotFoundError:
        return {}
    found = {}
    for number, task in enumerate(tasks):
        own = {"job": f"{entry['job']}_{number}", "log": str(entry["log"]).replace("%a", str(number))}
        found[own["job"]] = Submitted(**{**entry, **own}, chains=tuple(task["chains"]), until=int(task["until"]))
    return found


def _claimed(job: Job, ours: Submitted | None, sweep: str, runs: Path | str) -> Job:
    if ours is None or not _same(job, ours):
        return job
    name = name_of(sweep, ours.chains, runs)
    return dataclasses.replace(job, name=name, comment=job_comment(ours.chains, ours.until))


def _same(job: Job, ours: Submitted) -> bool:
    """Whether a job in the queue is the one that was submitted: a cluster that was set up anew counts from 1 again."""
    when = job.submitted.timestamp() if job.submitted else 0.0
    return ours.name in job.name or abs(when - ours.time) < SAME_SECONDS


def _append(sweep: Path, entry: Mapping[str, Any]) -> None:
    folder = sweep / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, b"\n" + json.dumps(entry).encode() + b"\n")  # a line of its own, also behind one that was cut
    finally:
        os.close(handle)
