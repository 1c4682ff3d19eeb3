"""How sweeps are launched in a study over hours: as it should be, or on a bad day.

Each returns whether it took a person.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable

from mal.files import write_atomic
from slurm.squeue import read_queue
from tests.chaos.trial import Trial, check_no_doubles, wait_for

# sbatch that fails, before or after it has reached Slurm, half of the time
ANSWERS_LOST = """#!/bin/sh
case $(($(od -An -N1 -tu1 /dev/urandom) % 4)) in
0) echo "sbatch: error: Unexpected message received" >&2; exit 1 ;;
1) REAL "$@" >/dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1 ;;
esac
exec REAL "$@"
"""
LEAKING = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "1",
    "SLURM_JOB_ID": "9", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SBATCH_EXPORT": "NONE", "SLURM_EXPORT_ENV": "NONE",
    "CUDA_VISIBLE_DEVICES": "7",
}  # fmt: skip


def plainly(trial: Trial) -> bool:
    """As it should be."""
    return _finished(trial.launcher().wait(), trial)


def killed(trial: Trial) -> bool:
    """SIGKILL after some sbatch; the same command again."""
    launcher, wanted = trial.launcher(), trial.rng.randint(1, trial.seeds * trial.rounds - 1)
    wait_for(lambda: len(read_queue()) >= wanted or launcher.poll() is not None, "some submissions", 120)
    launcher.kill()
    launcher.wait()
    return plainly(trial)


def twice(trial: Trial) -> bool:
    """Two at once."""
    both = [trial.launcher(), trial.launcher()]
    for launcher in both:
        launcher.wait()
    return any(_finished(launcher.returncode, trial) for launcher in both)


def controller_restarts(trial: Trial) -> bool:
    """Slurmctld restarts while jobs are submitted."""
    launcher = trial.launcher()
    wait_for(lambda: read_queue() or launcher.poll() is not None, "the first submission", 120)
    trial.cluster.kill_controller(signal.SIGTERM)  # it saves its state, else it forgets jobs
    time.sleep(trial.rng.uniform(0, 8))
    trial.cluster.start_controller()
    return _finished(launcher.wait(), trial)


def answers_lost(trial: Trial) -> bool:
    """Half of all sbatch fail, some of them after Slurm has the job."""
    front = trial.runs.parent / "losing"
    front.mkdir(exist_ok=True)
    write_atomic(front / "sbatch", ANSWERS_LOST.replace("REAL", str(shutil.which("sbatch"))).encode())
    (front / "sbatch").chmod(0o755)
    return _finished(trial.launcher(PATH=f"{front}{os.pathsep}{os.environ['PATH']}").wait(), trial)


def from_a_job(trial: Trial) -> bool:
    """From a shell that is inside something else."""
    return _finished(trial.launcher(**LEAKING).wait(), trial)


def _finished(status: int, trial: Trial) -> bool:
    check_no_doubles(trial)
    if status in (0, 3):  # 3: a part of the jobs, whose last go on to the end
        return False
    print(f"launch.py ended with {status}: {(trial.runs.parent / 'launch.log').read_text()[-2000:]}", flush=True)
    trial.launcher().wait()
    return True


LAUNCHES: dict[str, Callable[[Trial], bool]] = {
    "plain": plainly,
    "launcher killed, launched again": killed,
    "two launchers at once": twice,
    "controller silent during the launch": controller_restarts,
    "sbatch loses answers": answers_lost,
    "launched from within a job": from_a_job,
}
