"""The nodes that have failed a chain: its jobs leave them, and avoid them for some hours."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from slurm.attempts import bad_nodes, lapsed_nodes
from slurm.client import SlurmError, call
from slurm.squeue import Job, read_queue

# Of a node that will not take a job, with the marks of sinfo cut off.
_OUT = re.compile(r"down|drain|fail|maint|power|unk|inval|futr", re.IGNORECASE)

log = logging.getLogger("slurm.job")


def away_from(job: str, chains: Sequence[Path], needed: int) -> list[str]:
    """The nodes that a job must not come back to, in Slurm's notation; the waiting jobs of its chains neither."""
    bad = sorted({node for chain in chains for node in bad_nodes(chain)})
    if not bad or not others_remain(bad, needed):
        return []
    exclude = [*excluded_before(job), *bad]
    log.warning("%s: the chain goes on elsewhere.", ", ".join(bad))
    try:
        exclude_for(waiting_of_chain(job), exclude)
    except SlurmError as error:
        log.warning("The other jobs of the chain are not known: %s", error)
    return exclude


def lift_lapsed(job: str, chain: Path) -> None:
    """Let a chain's waiting jobs start again on nodes that failed it long ago; job: the one that this process is."""
    try:
        if lapsed := lapsed_nodes(chain):
            lift(waiting_of_chain(job), lapsed)
    except SlurmError as error:
        log.warning("The other jobs of the chain are not known: %s", error)


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


def others_remain(bad: Sequence[str], needed: int, partition: str | None = None) -> bool:
    """Whether a partition ("": the cluster, None: this job's) has as many nodes in service without the bad ones."""
    partition = os.environ.get("SLURM_JOB_PARTITION", "") if partition is None else partition
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
