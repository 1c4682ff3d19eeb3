"""The job that makes a prepared copy before chains start: submitted once, requeued until the copy is there.

    python -m slurm.preparing CHAIN --minutes M      # in the batch script; CHAIN: one of those that wait for the copy

It starts `srun python -m mal.data.prepare chain=CHAIN`, which goes on behind what an earlier attempt wrote. When it is
interrupted, or at its time limit, the job puts itself back into the queue; so it ends well only where the copy is
whole, and chains that depend on it (afterok) start then and only then. Exit status: 0 the copy is there; 75 back in the
queue; else failed.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from mal.process.interrupt import EXIT_INTERRUPTED
from slurm.client import FIELD, SlurmError, SlurmSilentError, call, job_environment
from slurm.profile import Profile, submitit_parameters
from slurm.squeue import Job, read_queue
from slurm.submit import Submitter, job_id

GUARD_SECONDS = 25  # before the time limit: a job that is there at its end is not requeued
POLL_SECONDS = 0.2
GRACE_MINUTES = 10.0  # to wait for the end of a preemption's grace where scontrol cannot be run
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
INTERRUPTED = {EXIT_INTERRUPTED, 130, 128 + signal.SIGKILL, *(128 + number for number in SIGNALS)}

log = logging.getLogger("slurm.preparing")


def job_name(copy: Path) -> str:
    """mal:prepare:STEM-MODE:HASH, the same for all sweeps that wait for one copy."""
    return f"mal:prepare:{copy.name}:{hashlib.sha256(str(copy.resolve()).encode()).hexdigest()[:6]}"


def find(queue: Iterable[Job], copy: Path) -> Job | None:
    """The job that makes a copy, if one is queued or runs."""
    return next((job for job in queue if job.alive and job.name == job_name(copy)), None)


def waiting_for(number: str) -> dict[str, str]:
    """Id -> name of the jobs, of any sweep and user, that start when a job has ended well. Errors: those of `call`."""
    columns = FIELD.join(("%i", "%j", "%E"))
    rows = call("squeue", "--noheader", "--array", "--states=PENDING", f"--format={columns}").splitlines()
    found = (row.split(FIELD) for row in rows)
    return {row[0]: row[1] for row in found if re.search(rf"afterok:{number}\b", row[-1])}


def profile_for(profile: Profile) -> Profile:
    """The profile of the job: `prepare` of the cluster's, on one node, without a GPU."""
    own = profile.prepare
    return replace(
        profile,
        partition=own["partition"] or profile.partition,
        nodes=1,
        gpus_per_node=0,
        gpu_type=None,
        tasks_per_node=1,
        cpus_per_task=own["cpus"],
        mem_gb=own["mem_gb"],
        time={"default": own["time"]},
        constraint=None if own["partition"] else profile.constraint,
        pack=1,
    )


def script(submitter: Submitter, chain: Path, copy: Path, logs: Path) -> str:
    """The sbatch script; chain: the folder of one that waits for the copy."""
    profile = profile_for(submitter.profile)
    parameters = submitit_parameters(profile, "default", job_name(copy))
    output = str(logs.absolute()).replace("%", "%%") + "/%j.log"
    further = {"output": output, "comment": f"prepare {copy.name}"}
    parameters["additional_parameters"] = further | parameters["additional_parameters"]
    minutes = str(profile.minutes("default"))
    return submitter.text(parameters, ["slurm.preparing", str(chain.absolute()), "--minutes", minutes])


def submit(text: str, copy: Path) -> str:
    """Submit the job; its id, also where Slurm took it and was silent. Errors: those of `slurm.client.call`."""
    try:
        answer = call("sbatch", "--parsable", text=text, attempts=1, environment=job_environment())
        if (number := job_id(answer)) is not None:
            return number
    except SlurmSilentError:
        if (job := find(read_queue(), copy)) is None:
            raise
        return job.id
    job = find(read_queue(), copy)
    if job is None:
        raise SlurmError(f"sbatch printed no job's id, but {answer.strip()!r}")
    return job.id


class Supervisor:
    """The job that this process is: its step, and what follows its end."""

    def __init__(self, chain: Path, minutes: float) -> None:
        self.chain, self.minutes = chain, minutes
        self.id, self.cpus = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_CPUS_PER_TASK", "1")
        self.began, self.told = time.monotonic(), False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Outlive the signals that tell the step to save."""
        self.told = True
        log.warning("received %s", signal.Signals(number).name)

    def run(self) -> int:
        """Make the copy; the exit status."""
        for number in SIGNALS:
            signal.signal(number, self.note)
        status = self._step()
        if status == 0 and not self.told:
            return 0
        if status not in {0, *INTERRUPTED}:
            return status
        # Told to go, and whole: Slurm would call this job preempted, and nothing that waits for it would ever start.
        return self._again(status)

    def _step(self) -> int:
        srun = [
            "srun",
            "--ntasks=1",  # --unbuffered would make it a terminal
            f"--cpus-per-task={self.cpus}",
            "--kill-on-bad-exit=1",
        ]
        command = [*srun, sys.executable, "-u", "-m", "mal.data.prepare", f"chain={self.chain}", f"workers={self.cpus}"]
        process = subprocess.Popen(command)
        late = False
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if not late and time.monotonic() - self.began > 60 * self.minutes - GUARD_SECONDS:
                log.warning("the time limit is near")
                late = True
                process.terminate()
        return EXIT_INTERRUPTED if late else process.returncode

    def _again(self, status: int) -> int:
        log.warning("This job goes back into the queue.")
        try:
            call("scontrol", "requeue", self.id, attempts=6, wait_s=3)
            time.sleep(60)  # until Slurm ends it
        except SlurmError as error:
            log.warning("It cannot requeue itself: %s", error)
            if self.told:
                time.sleep(60 * GRACE_MINUTES)  # Slurm requeues what is still there at the end of the grace
        return status or EXIT_INTERRUPTED


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m slurm.preparing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chain", type=Path, help="folder of a chain that waits for the copy")
    parser.add_argument("--minutes", type=float, required=True, help="the job's time limit")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    log.info("attempt %s: %s", os.environ.get("SLURM_RESTART_COUNT", "0"), shlex.join(["prepare", str(options.chain)]))
    return Supervisor(options.chain, options.minutes).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
