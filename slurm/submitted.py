"""The jobs that a sweep has submitted, RUNS/NAME/.slurm/jobs.jsonl: ids that sbatch printed, and what each is for.

Comments belong to some sites, and names can be changed; a job is known by its id as well. What is in the queue and not
here was submitted by an older version, or by a launcher that was killed in between.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.squeue import Job, job_comment, name_of

FOLDER = ".slurm"
FILE = "jobs.jsonl"
SAME_SECONDS = 60.0  # between sbatch's answer here and the submission by Slurm's clock


@dataclass(frozen=True)
class Submitted:
    """One job: the chains that it works on (METHOD/seed-S), how far, when it was submitted, and its log.

    aim: the rounds that it is to commit in the end, where Slurm took no further job of its chains; 0: as until.
    """

    job: int
    name: str
    chains: tuple[str, ...]
    until: int
    time: float
    log: str
    aim: int = 0
    cancelled: bool = False


def read_submitted(sweep: Path) -> dict[int, Submitted]:
    """The jobs of a sweep's folder RUNS/NAME, by id; empty where none was submitted."""
    try:
        lines = (sweep / FOLDER / FILE).read_text().splitlines()
    except FileNotFoundError:
        return {}
    found: dict[int, Submitted] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            job = int(entry["job"])
            if "name" in entry:
                found[job] = Submitted(**entry | {"job": job, "chains": tuple(entry["chains"])})
            elif job in found:
                found[job] = dataclasses.replace(found[job], **{k: v for k, v in entry.items() if k != "job"})
        except (ValueError, KeyError, TypeError):
            continue  # cut by a full disk or a crash
    return found


def note_submitted(sweep: Path, job: int, name: str, chains: Sequence[str], until: int, log: str) -> None:
    """Remember a job that Slurm has just taken."""
    entry = {"job": job, "name": name, "chains": list(chains), "until": until, "time": time.time(), "log": log}
    _append(sweep, entry)


def note_aim(sweep: Path, job: int, aim: int) -> None:
    """A submitted job is to go further than its script says."""
    _append(sweep, {"job": job, "aim": aim})


def note_cancelled(sweep: Path, job: int) -> None:
    """A submitted job was cancelled by a person."""
    _append(sweep, {"job": job, "cancelled": True})


def claim(jobs: Iterable[Job], submitted: Mapping[int, Submitted], sweep: str, runs: Path | str) -> list[Job]:
    """The jobs, those of a sweep with the name and the comment that they were submitted with."""
    return [_claimed(job, submitted.get(job.id), sweep, runs) for job in jobs]


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
