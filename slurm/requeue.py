"""How a job leaves so that its work goes on: back into the queue, away from bad nodes, or as a copy of itself."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from slurm.client import SlurmError, call, job_environment
from slurm.squeue import Job, read_queue
from slurm.submitted import note_submitted, read_submitted

# Slurm's answer where this job, or every job of the site, is not to be requeued: it does not requeue it either.
_FORBIDDEN = re.compile(r"presently disabled|not permitted|Access/permission denied", re.IGNORECASE)
WINDOW_SECONDS = 5.0  # after a requeue, for a word on the waiting job before this process is ended
# Of a node that will not take a job, with the marks of sinfo cut off.
_OUT = re.compile(r"down|drain|fail|maint|power|unk|inval|futr", re.IGNORECASE)

log = logging.getLogger("slurm.job")


class RequeueForbiddenError(Exception):
    """Slurm does not requeue this job, whoever asks."""


def requeue(job: str, exclude: Sequence[str] = (), delay_s: float = 0.0) -> bool:
    """Put this job back into the queue, which ends it soon; False where Slurm cannot be asked.

    exclude: nodes that it must not start on, if there are others. delay_s: until it may start.
    Errors: RequeueForbiddenError.
    """
    wanted = [f"ExcNodeList={','.join(exclude)}"] if exclude else []
    wanted += [f"StartTime=now+{round(delay_s)}"] if delay_s else []
    try:
        log.warning("This job goes back into the queue.")
        call("scontrol", "requeue", job, attempts=6, wait_s=3)
    except SlurmError as error:
        if _FORBIDDEN.search(str(error)):
            raise RequeueForbiddenError(str(error)) from None
        if not _is_back(job):
            log.warning("This job cannot requeue itself: %s", error)
            return False
    deadline = time.monotonic() + WINDOW_SECONDS
    while wanted and time.monotonic() < deadline:
        try:
            call("scontrol", "update", f"JobId={job}", *wanted, attempts=1)
            break
        except SlurmError as error:  # it is not back in the queue yet
            log.info("not yet: %s", error)
            time.sleep(0.1)
    return True


def _is_back(job: str) -> bool:
    """Whether a job is in the queue again: scontrol may be ended, with all of the job, before it has said so."""
    try:
        return any(other.waiting or not other.alive for other in read_queue([job]))
    except SlurmError:
        return False


def exclude_for(jobs: Sequence[Job], nodes: Sequence[str]) -> None:
    """Keep the waiting jobs of a chain away from nodes that have failed it."""
    for job in jobs:
        if job.waiting:
            try:
                call("scontrol", "update", f"JobId={job.id}", f"ExcNodeList={','.join(nodes)}", attempts=1)
            except SlurmError as error:  # it then moves on by itself
                log.warning("Job %s is not kept away from %s: %s", job.id, ", ".join(nodes), error)


def lift(jobs: Sequence[Job], nodes: Sequence[str]) -> None:
    """Let the waiting jobs of a chain start again on nodes that failed it long ago."""
    for job in jobs if nodes else []:
        before = excluded_before(job.id) if job.waiting else []
        try:
            names = call("scontrol", "show", "hostnames", *before, attempts=2).split() if before else []
            if set(names) & set(nodes):
                left = ",".join(name for name in names if name not in nodes)
                call("scontrol", "update", f"JobId={job.id}", f"ExcNodeList={left}", attempts=1)
        except SlurmError as error:  # the next job, or the next launch, tries again
            log.warning("Job %s still avoids %s: %s", job.id, ", ".join(nodes), error)


def others_remain(partition: str, bad: Sequence[str], needed: int) -> bool:
    """Whether a partition ("": the cluster) has as many nodes in service without the bad ones."""
    where = [f"--partition={partition}"] if partition else []
    try:
        rows = call("sinfo", "--noheader", "--Node", *where, "--format=%N %T", attempts=2)
    except SlurmError as error:
        log.warning("The nodes of %s are not known: %s", partition, error)
        return False
    states = dict(row.split()[:2] for row in rows.splitlines() if len(row.split()) > 1)
    return len([name for name, state in states.items() if name not in bad and not _OUT.search(state)]) >= needed


def excluded_before(job: str) -> list[str]:
    """The nodes that a job avoids already, in Slurm's notation."""
    try:
        found = re.search(r"\bExcNodeList=(\S+)", call("scontrol", "--oneliner", "show", "job", job, attempts=2))
    except SlurmError:
        return []
    return [found[1]] if found and found[1] != "(null)" else []


def waiting_of_chain(job: str) -> list[Job]:
    """The other jobs of this job's chains that wait: they have its name. Errors: SlurmError.

    A task of an array is the only job of its chains.
    """
    if "_" in job:
        return []
    name = os.environ.get("SLURM_JOB_NAME", "")
    return [other for other in read_queue() if other.name == name and other.id != job and other.waiting]


def submit_again(job: str, sweep: Path) -> bool:
    """Submit a copy of this job, to go on after it; False where Slurm refuses.

    For where Slurm does not requeue; sweep: RUNS/NAME, where the copy is noted.
    """
    task = job.partition("_")[2]
    try:
        script = call("scontrol", "write", "batch_script", job, "-", attempts=3)
        alone = [f"--array={task}", f"--dependency=afterany:{job}"] if task else []
        answer = call("sbatch", "--parsable", *alone, text=script, attempts=1, environment=job_environment())
    except SlurmError as error:
        log.warning("This job cannot submit a copy of itself: %s", error)
        return False
    copy = answer.strip().splitlines()[-1].partition(";")[0] + (f"_{task}" if task else "")
    log.warning("Slurm does not requeue this job: job %s goes on after it.", copy)
    if (ours := read_submitted(sweep).get(job)) is not None:
        note_submitted(sweep, copy, ours.name, ours.chains, ours.until, ours.log.replace(job, copy))
    return True
