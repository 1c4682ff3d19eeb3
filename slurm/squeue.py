"""What the queue holds: one squeue call, and job names that tell which chain a job belongs to.

Never sacct: many clusters have no accounting database, and polling it for every job is what administrators dislike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from slurm.client import FIELD, call

# squeue -o: a column has no width limit unless one is given, in every version of Slurm (--json has not).
_COLUMNS = {
    "id": "%i",
    "name": "%j",
    "state": "%T",
    "reason": "%r",
    "start": "%S",
    "end": "%e",
    "nodes": "%N",
    "user": "%u",
    "partition": "%P",
    "submitted": "%V",
}
_NAME = re.compile(r"mal:(?P<sweep>[^:]+):(?P<method>[^:]+):s(?P<seed>\d+):(?P<runs>[0-9a-f]{6})")
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})


@dataclass(frozen=True)
class Job:
    """A job that Slurm remembers.

    state: Slurm's long form (PENDING, RUNNING, COMPLETING, SUSPENDED ...); reason: why it waits, in Slurm's words.
    start, end, submitted: in local time; for a waiting job Slurm's estimates; None where it has none.
    nodes: Slurm's host list, empty while it waits.
    """

    id: int
    name: str
    state: str
    reason: str
    start: datetime | None
    end: datetime | None
    nodes: str
    user: str
    partition: str
    submitted: datetime | None

    @property
    def waiting(self) -> bool:
        """In the queue, and on no node."""
        return self.state in WAITING


@dataclass(frozen=True)
class ChainName:
    """What the job name of a chain's jobs says."""

    sweep: str
    method: str
    seed: int
    runs_hash: str


def runs_hash(runs: Path | str) -> str:
    """Six hexadecimal digits for the absolute path of a runs folder: sweeps of one name there and elsewhere differ."""
    return hashlib.sha256(str(Path(runs).resolve()).encode()).hexdigest()[:6]


def job_name(sweep: str, method: str, seed: int, runs: Path | str) -> str:
    """The name that all jobs of a chain share, and singleton goes by: mal:SWEEP:METHOD:sSEED:HASH."""
    name = f"mal:{sweep}:{method}:s{seed}:{runs_hash(runs)}"
    assert _NAME.fullmatch(name), name
    return name


def parse_job_name(name: str) -> ChainName | None:
    """The chain that a job's name stands for; None for jobs of anything else."""
    match = _NAME.fullmatch(name)
    return ChainName(match["sweep"], match["method"], int(match["seed"]), match["runs"]) if match else None


def read_queue(job_ids: Iterable[int] = ()) -> list[Job]:
    """Jobs of this user that are not over, or those of `job_ids` as long as Slurm remembers them, by their ids.

    One squeue call.

    Errors: SlurmError, SlurmSilentError (the queue is then unknown, not empty).
    """
    chosen = ",".join(str(number) for number in job_ids)
    where = [f"--jobs={chosen}", "--states=all"] if chosen else ["--me"]
    lines = call("squeue", "--noheader", "--array", *where, f"--format={FIELD.join(_COLUMNS.values())}").splitlines()
    return sorted((_parse(line) for line in lines), key=lambda job: job.id)


def by_chain(jobs: Iterable[Job], sweep: str, runs: Path | str) -> dict[tuple[str, int], list[Job]]:
    """(method, seed) -> that chain's jobs, in the order given, for one sweep under one runs folder."""
    chains: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        chain = parse_job_name(job.name)
        if chain is not None and (chain.sweep, chain.runs_hash) == (sweep, runs_hash(runs)):
            chains.setdefault((chain.method, chain.seed), []).append(job)
    return chains


def _parse(line: str) -> Job:
    values = dict(zip(_COLUMNS, line.split(FIELD), strict=True))
    return Job(
        id=int(values["id"].split("_")[0]),
        name=values["name"],
        state=values["state"],
        reason="" if values["reason"] == "None" else values["reason"],
        start=_time(values["start"]),
        end=_time(values["end"]),
        nodes=values["nodes"],
        user=values["user"],
        partition=values["partition"],
        submitted=_time(values["submitted"]),
    )


def _time(text: str) -> datetime | None:
    return None if text in ("N/A", "NONE", "Unknown", "") else datetime.fromisoformat(text).astimezone()
