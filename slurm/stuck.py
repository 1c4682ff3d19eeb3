"""Jobs that will never start by themselves, by Slurm's reason, and the command that helps."""

from __future__ import annotations

import re
from collections.abc import Iterable

from slurm.squeue import Job

# Reasons as squeue and scontrol write them; with blanks or underscores, whatever the version.
_HELD = re.compile(r"held", re.IGNORECASE)  # JobHeldUser, JobHeldAdmin, launch failed requeued held
_NODES = re.compile(r"ReqNodeNotAvail|PartitionDown|PartitionInactive|NodeDown|BadNode")
_DEPENDENCY = re.compile(r"DependencyNeverSatisfied")
# What the job asks for, and gets nowhere: it is to be submitted with other keys.
_REQUEST = re.compile(
    r"BadConstraints|PartitionTimeLimit|PartitionNodeLimit|PartitionConfig|PerJob|PerNode|InvalidAccount|InvalidQOS"
    r"|QOSNotAllowed|AccountNotAllowed|QOSMin|ReservationDeleted|NodeNotAvailInConf|DeadLine|FedJobLock"
)
_HELD_STATES = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")


def is_stuck(job: Job) -> bool:
    """Whether a job waits for a person."""
    return job.waiting and bool(remedy(job))


def remedy(job: Job) -> str:
    """What sets a waiting job going, one phrase with the command; "" where it starts by itself."""
    if not job.waiting:
        return ""
    if job.state in _HELD_STATES or _HELD.search(job.reason):
        return f"held: `scontrol release {job.id}` lets it go, once the cause is mended"
    if _DEPENDENCY.search(job.reason):
        return f"`scancel {job.id}`, then launch again"
    if _NODES.search(job.reason):
        return (
            f"nodes are down, drained or reserved: `sinfo -R` says why; else `scancel {job.id}` and launch with other "
            "nodes (cluster.partition, cluster.constraint, cluster.exclude)"
        )
    if _REQUEST.search(job.reason):
        return f"it asks for what it cannot get: `scancel {job.id}`, then launch with other cluster.* keys"
    return ""


def stuck(jobs: Iterable[Job]) -> Job | None:
    """The job of a chain that waits for a person, where nothing of the chain is on a node.

    Jobs of a chain go one by one, so what is behind a stuck one waits with it.
    """
    alive = [job for job in jobs if job.alive]
    if any(not job.waiting for job in alive):
        return None
    return next((job for job in alive if is_stuck(job)), None)
