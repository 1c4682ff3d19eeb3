"""Calls of Slurm's commands: a clean environment, retries while the controller is silent, plain errors.

Three answers stay three: no Slurm here (NoSlurmError), a silent one (SlurmSilentError, after retries), and what Slurm
says, which may be a refusal (SlurmError).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping

FIELD = "\x1f"  # between columns: no name, reason or node list holds it
TIMEOUT_S = 60.0  # of one call; Slurm's own time-outs are 10 to 30 s
LOOK_S = 5.0  # between two looks at what a slow command has said so far
# What a client says where no cluster is configured for this machine.
_NONE = ("Could not establish a configuration source",)
# What a client says when slurmctld restarts, is busy, cannot be reached or cannot know us just now: no answer.
_SILENT = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Connection timed out",
    "Connection reset",
    "Broken pipe",
    "No route to host",
    "Network is unreachable",
    "Host is down",
    "Transport endpoint is not connected",
    "Zero Bytes were transmitted or received",
    "Unexpected message received",
    "Communication connection failure",
    "Communication shutdown failure",
    "Message send failure",
    "Message receive failure",
    "Header lengths are longer than data received",
    "Insane message length",
    "Slurm temporarily unable to accept job",
    "Resource temporarily unavailable",
    "controller in standby mode",
    "authentication",
    "Authentication",
    "credential",
    "Munge",
    "munge",
)
_RETRYING = "sleeping and retrying"  # of sbatch, which then tries for minutes
# Of the launching shell, and of no meaning in a job: its GPUs, of a launcher around this one, of torchrun and MPI.
_LEAKING = re.compile(
    r"(CUDA|ROCR|HIP)_VISIBLE_DEVICES|MAL_LAUNCHER|(ROLE_|GROUP_|NODE_|LOCAL_)?(RANK|WORLD_SIZE)|ROLE_NAME"
    r"|MASTER_(ADDR|PORT)|(TORCHELASTIC|OMPI|PMI|PMIX)_\w+"
)


class SlurmError(RuntimeError):
    """Slurm refused a request; the message is Slurm's."""


class NoSlurmError(SlurmError):
    """There is no Slurm here: no commands, or no cluster is configured."""


class SlurmSilentError(SlurmError):
    """The controller did not answer; the request may or may not have been carried out."""


class SlurmFullError(SlurmError):
    """Slurm takes no more jobs for now, and would let sbatch wait."""


def has_slurm() -> bool:
    """Whether this machine has Slurm's commands; whether a controller answers is another matter."""
    return shutil.which("sbatch") is not None


def call(
    *command: str,
    text: str | None = None,
    attempts: int = 3,
    wait_s: float = 2.0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Standard output of a Slurm command given `text` on standard input; tried again while the controller is silent.

    Only a request that is harmless when it reaches Slurm twice may have more than one attempt.
    Errors: SlurmSilentError after the last attempt, SlurmError where Slurm refuses, both with Slurm's words;
    NoSlurmError; SlurmFullError.
    """
    assert attempts >= 1
    for attempt in range(attempts):
        if attempt:
            time.sleep(wait_s * attempt)
        try:
            return _call_once(command, text, environment or plain_environment())
        except SlurmSilentError:
            if attempt + 1 == attempts:
                raise
    raise AssertionError("unreachable")


def plain_environment() -> dict[str, str]:
    """Environment of this process without what would change the meaning of a command or a job.

    That is: defaults that a user has set for squeue, sinfo and sbatch (those that a launch honours are in its script),
    and, inside a job, the job's own variables. What says where the cluster is, and who asks, stays.
    """
    drop = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SQUEUE_", "SINFO_", "SUBMITIT_")
    stays = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
    return {key: value for key, value in os.environ.items() if key in stays or not key.startswith(drop)}


def job_environment() -> dict[str, str]:
    """What sbatch may carry from the launching shell into a job: not the ranks, hosts and GPUs of something else."""
    return {key: value for key, value in plain_environment().items() if not _LEAKING.fullmatch(key)}


def _call_once(command: tuple[str, ...], text: str | None, environment: Mapping[str, str]) -> str:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
        )
    except FileNotFoundError:
        raise NoSlurmError(
            f"{command[0]} is not installed on this machine; use cluster=local, or a login node"
        ) from None
    except OSError as error:  # of the file system that the command is on
        raise SlurmSilentError(f"{command[0]} cannot be started: {error.strerror}") from None
    with process:
        out, err = _communicate(process, command[0], text)
    if process.returncode == 0:
        return out.decode(errors="backslashreplace")
    words = " ".join(err.decode(errors="backslashreplace").split()) or f"exit status {process.returncode}"
    if process.returncode < 0:  # Slurm ends all that runs in a job at once
        raise SlurmSilentError(f"{command[0]} was ended by signal {-process.returncode}: {words}")
    if any(sign in words for sign in _NONE):
        raise NoSlurmError(f"{command[0]}: {words}")
    if _RETRYING in words:
        raise SlurmFullError(f"{command[0]}: {words}")
    kind = SlurmSilentError if any(sign in words for sign in _SILENT) else SlurmError
    raise kind(f"{' '.join(word for word in command if FIELD not in word)}: {words}")


def _communicate(process: subprocess.Popen[bytes], name: str, text: str | None) -> tuple[bytes, bytes]:
    deadline = time.monotonic() + TIMEOUT_S
    given = None if text is None else text.encode()
    while True:
        try:
            return process.communicate(given, timeout=LOOK_S)
        except subprocess.TimeoutExpired as late:
            given = None  # on its way already
            said = (late.stderr or b"").decode(errors="backslashreplace")
            if _RETRYING in said:
                process.kill()
                raise SlurmFullError(f"{name}: {' '.join(said.split())}") from None
            if time.monotonic() > deadline:
                process.kill()
                raise SlurmSilentError(f"{name} did not end within {TIMEOUT_S:g} s") from None
