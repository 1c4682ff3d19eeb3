"""The processes of a local Slurm: finding them, and ending them.

No file of process ids is kept: command lines, sockets and environments tell which process belongs to which
cluster, so that nothing of another cluster, and no later process with the same id, is ever ended.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil


def daemons(conf: Path, names: Sequence[str] = ("munged", "slurmctld", "slurmd")) -> list[psutil.Process]:
    """The daemons of these names that run from the folder of `conf`, found by their command lines."""
    marks = (str(conf), f"--key-file={conf.parent / 'munge.key'}")
    found = []
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        info = process.info
        alive = info["name"] in names and info["status"] != psutil.STATUS_ZOMBIE
        if alive and any(mark in (info["cmdline"] or []) for mark in marks):
            found.append(process)
    return found


def job_processes(folder: Path, node: str = "") -> list[psutil.Process]:
    """The slurmstepds in `folder` (of one node, or of all) and everything that runs under them.

    A step's daemon is known by its socket in its node's spool, as Slurm hides its environment; a process that
    left it, by its own environment.
    """
    spool = f"{folder / 'spool' / node}/"
    connections = psutil.net_connections("unix")
    steps = [_process(c.pid) for c in connections if c.pid is not None and str(c.laddr).startswith(spool)]
    found = {p.pid: p for p in steps if p is not None and p.name().startswith("slurmstepd")}
    for step in list(found.values()):
        found.update({child.pid: child for child in step.children(recursive=True)})
    for process in psutil.process_iter(["environ"]):
        environ = process.info["environ"] or {}
        in_job = environ.get("SLURM_CONF") == str(folder / "slurm.conf") and "SLURM_JOB_ID" in environ
        if in_job and environ.get("SLURMD_NODENAME", "") == (node or environ.get("SLURMD_NODENAME", "")):
            found[process.pid] = process
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    return [p for pid, p in found.items() if pid not in own]


def stop_processes(folder: Path) -> int:
    """End every process of the cluster in `folder`; returns how many there were."""
    conf = folder / "slurm.conf"
    count = 0
    # the controller first, so that it starts nothing more; munged last, as the others need it to leave
    for name in ("slurmctld", "slurmd", "jobs", "munged"):
        processes = job_processes(folder) if name == "jobs" else daemons(conf, [name])
        end(processes, signal.SIGKILL if name == "jobs" else signal.SIGTERM)
        count += len(processes)
    return count


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def end(processes: list[psutil.Process], signum: int, timeout_s: float = 10) -> None:
    """Send `signum`; SIGKILL after `timeout_s`. One that has gone in between is not an error."""
    for attempt in (signum, signal.SIGKILL):
        processes = [p for p in processes if not _has_ended(p)]
        for process in processes:
            _send(process, attempt)
        deadline = time.monotonic() + timeout_s
        while not all(_has_ended(p) for p in processes) and time.monotonic() < deadline:
            time.sleep(0.02)


def _send(process: psutil.Process, signum: int) -> None:
    try:
        process.send_signal(signum)
    except psutil.NoSuchProcess:
        return


def _has_ended(process: psutil.Process) -> bool:
    """Gone, or a zombie that its parent (for an orphan the container's init) will reap in its own time."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE) or not process.is_running()
    except psutil.NoSuchProcess:
        return True
