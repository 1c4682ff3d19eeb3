"""How a job leaves so that its work goes on: back into the queue, or as a copy of itself."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

from slurm.avoid import excluded_before
from slurm.client import SlurmError, call, job_environment
from slurm.squeue import read_queue
from slurm.submitted import note_submitted, read_submitted

# Slurm's answer where this job, or every job of the site, is not to be requeued: it does not requeue it either.
_FORBIDDEN = re.compile(r"presently disabled|not permitted|Access/permission denied", re.IGNORECASE)
WINDOW_SECONDS = 5.0  # after a requeue, for a word on the waiting job before this process is ended

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


def submit_again(job: str, sweep: Path, exclude: Sequence[str] = (), delay_s: float = 0.0) -> bool:
    """Submit a copy of this job, to go on after it; False where Slurm refuses.

    For where Slurm does not requeue; sweep: RUNS/NAME, where the copy is noted. exclude: nodes that it must not start
    on; none: those that this job avoids, which its script may not name. delay_s: until it may start.
    """
    task = job.partition("_")[2]
    try:
        script = call("scontrol", "write", "batch_script", job, "-", attempts=3)
        alone = [f"--array={task}", f"--dependency=afterany:{job}"] if task else []
        wanted = [f"--exclude={','.join(nodes)}"] if (nodes := exclude or excluded_before(job)) else []
        wanted += [f"--begin=now+{round(delay_s)}"] if delay_s else []
        answer = call("sbatch", "--parsable", *alone, *wanted, text=script, attempts=1, environment=job_environment())
    except SlurmError as error:
        log.warning("This job cannot submit a copy of itself: %s", error)
        return False
    copy = answer.strip().splitlines()[-1].partition(";")[0] + (f"_{task}" if task else "")
    log.warning("Slurm does not requeue this job: job %s goes on after it.", copy)
    if (ours := read_submitted(sweep).get(job)) is not None:
        note_submitted(sweep, copy, ours.name, ours.chains, ours.until, ours.log.replace(job, copy))
    return True
