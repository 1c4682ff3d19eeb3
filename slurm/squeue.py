"""What the queue holds: one squeue call, and job names that tell which chain a job belongs to.

Never sacct: many clusters have no accounting database, and polling it for every job is what administrators dislike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from slurm.client import FIELD, NoSlurmError, SlurmSilentError, call, has_slurm

RECORD = "\x1e"  # behind each job: other people's names and comments hold line breaks
# squeue -o: a column has no width limit unless one is given, in every version of Slurm (--json has not).
_COLUMNS = {
    "id": "%i",  # 123; 123_4 of an array's task, 123_[5-9%2] of several that wait; 123+0 of a heterogeneous job
    "name": "%j",
    "state": "%T",
    "reason": "%r",
    "start": "%S",
    "end": "%e",
    "nodes": "%N",
    "user": "%u",
    "partition": "%P",
    "submitted": "%V",
    "comment": "%k",
}
_NAME = re.compile(r"mal:(?P<sweep>[^:]+):(?P<method>[^:]+):s(?P<seed>\d+):(?P<runs>[0-9a-f]{6})")
_PACK = re.compile(r"mal:(?P<sweep>[^:]+):pack:[0-9a-f]{8}:(?P<runs>[0-9a-f]{6})")
_ARRAY = re.compile(r"mal:(?P<sweep>[^:]+):array:(?P<digest>[0-9a-f]{8}):(?P<runs>[0-9a-f]{6})")
_FOLDED = re.compile(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]")
_COMMENT = re.compile(r"until=(?P<until>\d+) (?P<chains>\S+)")
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
OVER = frozenset(
    {"COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
)


@dataclass(frozen=True)
class Job:
    """A job that Slurm remembers.

    id: as Slurm's commands take it, 123, or 123_4 of an array's task. state: Slurm's long form (PENDING, RUNNING,
    COMPLETING, SUSPENDED ...), but REQUEUED where squeue says COMPLETING of a job that is to start again; reason: why
    it waits, in Slurm's words.
    start, end, submitted: in local time; for a waiting job Slurm's estimates; None where it has none.
    nodes: Slurm's host list, empty while it waits, except for one that is being requeued.
    """

    id: str
    name: str
    state: str
    reason: str
    start: datetime | None
    end: datetime | None
    nodes: str
    user: str
    partition: str
    submitted: datetime | None
    comment: str = ""

    @property
    def waiting(self) -> bool:
        """In the queue, and on no node."""
        return self.state in WAITING

    @property
    def alive(self) -> bool:
        """Whether it may still do work: COMPLETING is the cleaning up after a job that does not start again."""
        return self.state not in OVER

    @property
    def until(self) -> int:
        """The rounds that a chain's job commits, by its comment; 0 for other jobs."""
        match = _COMMENT.fullmatch(self.comment)
        return int(match["until"]) if match else 0


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


def pack_name(sweep: str, chains: Sequence[str], runs: Path | str) -> str:
    """The name of jobs that run several chains (METHOD/seed-S each): mal:SWEEP:pack:HASH:HASH."""
    digest = hashlib.sha256(",".join(chains).encode()).hexdigest()[:8]
    return f"mal:{sweep}:pack:{digest}:{runs_hash(runs)}"


def array_name(sweep: str, digest: str, runs: Path | str) -> str:
    """The name of an array whose tasks each work on chains: mal:SWEEP:array:DIGEST:HASH."""
    return f"mal:{sweep}:array:{digest}:{runs_hash(runs)}"


def array_digest(name: str) -> str:
    """What an array's name tells; "" of other names."""
    match = _ARRAY.fullmatch(name)
    return match["digest"] if match else ""


def job_comment(chains: Sequence[str], until: int) -> str:
    """What a job's comment tells about it: how far, and which chains (METHOD/seed-S)."""
    return f"until={until} {','.join(chains)}"


def name_of(sweep: str, chains: Sequence[str], runs: Path | str) -> str:
    """The name of the jobs that work on these chains (METHOD/seed-S each)."""
    if len(chains) > 1:
        return pack_name(sweep, chains, runs)
    method, _, seed = chains[0].rpartition("/seed-")
    return job_name(sweep, method, int(seed), runs)


def parse_job_name(name: str) -> ChainName | None:
    """The chain that a job's name stands for; None for jobs of anything else."""
    match = _NAME.fullmatch(name)
    return ChainName(match["sweep"], match["method"], int(match["seed"]), match["runs"]) if match else None


def read_queue(job_ids: Iterable[str] = ()) -> list[Job]:
    """Jobs of this user that are not over, or those of `job_ids` as long as Slurm remembers them, by their ids.

    One squeue call. Rows that are not to be read are somebody else's: ours have no such names.

    Errors: SlurmError, SlurmSilentError (the queue is then unknown, not empty).
    """
    chosen = ",".join(job_ids)
    where = [f"--jobs={chosen}", "--states=all"] if chosen else ["--me"]
    answer = call("squeue", "--array", *where, f"--format={FIELD.join(_COLUMNS.values())}{RECORD}")
    header, *rows = answer.split(f"{RECORD}\n")
    if not rows or rows.pop():  # not even a header, or cut within a row
        raise SlurmSilentError(f"squeue gave a part of an answer: {(header or 'nothing')[-80:]!r}")
    return sorted((job for row in rows for job in _parse(row)), key=lambda job: order(job.id))


def order(job: str) -> tuple[int, int]:
    """What ids are sorted by: when they were submitted, then by task."""
    number, _, task = job.partition("_")
    return int(number), int(task or 0)


def slurm_answers() -> bool:
    """Whether a Slurm answers here; False where there is none, in a fraction of a second.

    Errors: SlurmError, SlurmSilentError where there is one and it does not answer.
    """
    try:
        return has_slurm() and read_queue() is not None
    except NoSlurmError:
        return False


def by_chain(jobs: Iterable[Job], sweep: str, runs: Path | str) -> dict[tuple[str, int], list[Job]]:
    """(method, seed) -> that chain's jobs, in the order given, for one sweep under one runs folder.

    A job that runs several chains stands under each of them.
    """
    chains: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        for chain in chains_of(job):
            if (chain.sweep, chain.runs_hash) == (sweep, runs_hash(runs)):
                chains.setdefault((chain.method, chain.seed), []).append(job)
    return chains


def chains_of(job: Job) -> list[ChainName]:
    """The chains that a job works on: none for jobs of anything else."""
    if chain := parse_job_name(job.name):
        return [chain]
    pack, comment = _PACK.fullmatch(job.name), _COMMENT.fullmatch(job.comment)
    if not pack or not comment:
        return []
    members = [name.rsplit("/seed-", 1) for name in comment["chains"].split(",")]
    return [ChainName(pack["sweep"], method, int(seed), pack["runs"]) for method, seed in members]


def _parse(row: str) -> list[Job]:
    """A row as a job, or as several tasks of an array; none for what none of ours looks like."""
    columns = row.split(FIELD)
    if len(columns) != len(_COLUMNS):
        return []
    values = dict(zip(_COLUMNS, columns, strict=True))
    return [_job(number, values) for number in _ids(values["id"])]


def _ids(text: str) -> list[str]:
    if folded := _FOLDED.fullmatch(text):
        ends = [part.split("-") for part in folded[2].split(",")]
        return [f"{folded[1]}_{task}" for part in ends for task in range(int(part[0]), int(part[-1]) + 1)]
    return [text] if re.fullmatch(r"\d+(_\d+)?", text) else []


def _job(number: str, values: Mapping[str, str]) -> Job:
    return Job(
        id=number,
        name=values["name"],
        state="REQUEUED" if _comes_back(values) else values["state"],
        reason="" if values["reason"] == "None" else values["reason"],
        start=_time(values["start"]),
        end=_time(values["end"]),
        nodes=values["nodes"],
        user=values["user"],
        partition=values["partition"],
        submitted=_time(values["submitted"]),
        comment="" if values["comment"] == "(null)" else values["comment"],
    )


def _comes_back(values: Mapping[str, str]) -> bool:
    """Whether a job that Slurm clears up after is to start again: the end of such a one is an estimate, and to come."""
    end = _time(values["end"])
    return values["state"] == "COMPLETING" and end is not None and end > datetime.now().astimezone()


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:  # N/A, NONE, Unknown
        return None
