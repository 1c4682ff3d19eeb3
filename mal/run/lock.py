"""One process at a time works on a chain, also where the shared file system has no flock (some Lustre, some NFS).

There a file with a heartbeat stands for the lock: its holder touches it, and one that was not touched for long belonged
to a process, or a host, that is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

LEASE_SECONDS = 60.0  # without a sign of the holder, as a waiting process's own clock counts
LONG_PAST_SECONDS = 180.0  # by the file's time: hosts' clocks differ
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def hold(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock at `path`; TimeoutError where another process still does after `patience` seconds.

    A holder without flock that lost its lock (suspended for longer than a lease, say) is told to save and leave by
    SIGTERM. Raises OSError where the file system fails.
    """
    lock = _taken(path, patience)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):  # the folder was removed meanwhile
            lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock now. Raises OSError where the file system fails."""
    try:
        with hold(path, 0):
            return False
    except TimeoutError:
        return not _is_long_past(_lease_file(path))


def _taken(path: Path, patience: float) -> BaseFileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=patience)
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in NO_FLOCK:
                raise
            lease = _lease_file(path)
            lock = SoftFileLease(lease, lease_duration=LEASE_SECONDS, on_compromise=lambda _: _leave())
            if patience and _is_long_past(lease):
                patience = max(patience, 1.2 * LEASE_SECONDS)
            lock.acquire(timeout=patience)
    except Timeout:
        raise TimeoutError(f"{path} is held by another process.") from None
    return lock


def _lease_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lease")


def _is_long_past(lease: Path) -> bool:
    try:
        return time.time() - lease.stat().st_mtime > LONG_PAST_SECONDS
    except FileNotFoundError:
        return False


def _leave() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
