"""The prepared copy that loader=ffcv needs, made before the chains start: in this process, or by a job of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mal.config.schema import Chain
from mal.data.ffcv.prepared import MANIFEST, unfinished_folder
from mal.data.progress_report import read_report
from mal.files import write_json
from mal.run.folder import read_json
from slurm.preparing import find
from slurm.squeue import Job
from sweeps.loading import copy_missing
from sweeps.plan import ChainPlan
from sweeps.table import duration

FOLDER = ".prepare"  # below the sweep's: what copy its chains wait for, and the logs of the jobs that make it
WAITING = "copy.json"


def needing(plans: list[ChainPlan]) -> ChainPlan | None:
    """A chain to run whose copy is not there."""
    return next((plan for plan in plans if plan.to_run and copy_missing(plan.config)), None)


def prepare_here(config: Chain) -> None:
    """Make the copy that a chain reads, with a bar on a terminal and lines elsewhere.

    Raises ValueError where it cannot be made, KeyboardInterrupt where it was stopped: the same command goes on.
    """
    from mal.data.ffcv.library import require_ffcv
    from mal.data.ffcv.unfinished import Stopped
    from mal.data.ffcv.worker_pool import WorkersDied
    from mal.data.prepare import GOES_ON, prepare
    from mal.data.prepare_request import request_for

    require_ffcv()
    try:
        prepare(request_for(config, len(os.sched_getaffinity(0))))
    except OSError as error:
        raise ValueError(f"The prepared copy could not be written: {error}. Or choose loader=torch.") from None
    except WorkersDied as error:
        raise ValueError(f"The prepared copy is not whole: {error} {GOES_ON}. Or choose loader=torch.") from None
    except Stopped as stop:
        raise KeyboardInterrupt(f"{stop}; {GOES_ON}") from None


def note(sweep: Path, copy: Path) -> Path:
    """Leave word of the copy that the chains of a sweep wait for, for `sweeps/status.py`; the folder of its logs."""
    folder = sweep / FOLDER
    write_json(folder / WAITING, {"copy": str(copy.absolute())})
    return folder


def waiting(sweep: Path, queue: Sequence[Job] | None) -> tuple[str, Path | None]:
    """Why chains of a sweep have not started, where they wait for a copy, else ""; the log, where it could not be made.

    queue: None where Slurm does not tell.
    """
    copy = noted(sweep)
    if copy is None or queue is None or (copy / MANIFEST).is_file():
        return "", None
    if job := find(queue, copy):
        said = read_report(unfinished_folder(copy)) if job.state == "RUNNING" else None
        left = "" if not said or said["seconds_left"] is None else f", {duration(said['seconds_left'])} left"
        share = f"{said['part']} {said['done'] / said['total']:.0%}" if said else ""  # short: it ends a line of a table
        at = f"{share}{left}" if said else job.reason or job.state.lower()
        return f"waits for the prepared copy (job {job.id}: {at})", None
    logs = sorted((sweep / FOLDER).glob("*.log"), key=lambda path: path.stat().st_mtime)
    return "no prepared copy: its job has ended; the launch command goes on", logs[-1] if logs else None


def last_words(log: Path, count: int = 3) -> list[str]:
    """The last lines of a log that are not Slurm's own."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return ([line for line in lines if not line.startswith(("srun:", "slurmstepd"))] or lines)[-count:]


def noted(sweep: Path) -> Path | None:
    """The copy that chains of a sweep wait for or have waited for; None where there was none."""
    path = sweep / FOLDER / WAITING
    return Path(read_json(path)["copy"]) if path.is_file() else None
