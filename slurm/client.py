"""Calls of Slurm's commands: a clean environment, retries while the controller is silent, plain errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

FIELD = "\x1f"  # between columns: no name, reason or node list holds it
# What a client says when slurmctld restarts, is busy or cannot be reached; anything else is an answer.
_SILENT = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Connection timed out",
    "Transport endpoint is not connected",
    "Zero Bytes were transmitted or received",
    "Slurm temporarily unable to accept job",
    "Resource temporarily unavailable",
    "Slurm backup controller in standby mode",
)


class SlurmError(RuntimeError):
    """Slurm refused a request; the message is Slurm's."""


class SlurmSilentError(SlurmError):
    """The controller did not answer; the request may or may not have been carried out."""


def has_slurm() -> bool:
    """Whether this machine has Slurm's commands; whether a controller answers is another matter."""
    return shutil.which("sbatch") is not None


def slurm_answers() -> bool:
    """Whether a Slurm controller answers here; a fraction of a second where there is none."""
    if not has_slurm():
        return False
    try:
        return "UP" in call("scontrol", "ping", attempts=1)
    except SlurmError:
        return False


def call(*command: str, text: str | None = None, attempts: int = 3, wait_s: float = 2.0) -> str:
    """Standard output of a Slurm command given `text` on standard input; tried again while the controller is silent.

    Only a request that is harmless when it reaches Slurm twice may have more than one attempt.
    Errors: SlurmSilentError after the last attempt, SlurmError where Slurm refuses, both with Slurm's words.
    """
    assert attempts >= 1
    for attempt in range(attempts):
        if attempt:
            time.sleep(wait_s * attempt)
        try:
            return _call_once(command, text)
        except SlurmSilentError:
            if attempt + 1 == attempts:
                raise
    raise AssertionError("unreachable")


def plain_environment() -> dict[str, str]:
    """Environment of this process without what would change the meaning of a command or a job.

    That is: defaults that a user has set for squeue, sinfo and sbatch, and, inside a job, the job's own variables.
    SLURM_CONF stays.
    """
    drop = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SQUEUE_", "SINFO_", "SUBMITIT_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    if "SLURM_CONF" in os.environ:
        kept["SLURM_CONF"] = os.environ["SLURM_CONF"]
    return kept


def _call_once(command: tuple[str, ...], text: str | None) -> str:
    try:
        done = subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            env=plain_environment(),
            timeout=120,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not installed on this machine; use cluster=local, or a login node") from None
    except subprocess.TimeoutExpired:
        raise SlurmSilentError(f"{command[0]} did not end within 120 s") from None
    if done.returncode == 0:
        return done.stdout
    words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
    kind = SlurmSilentError if any(sign in words for sign in _SILENT) else SlurmError
    raise kind(f"{' '.join(command)}: {words}")
