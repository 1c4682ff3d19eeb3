"""What takes long to find out about a dataset's files, kept in DATA/computed for the next job.

Nothing of it is needed: where DATA cannot be written to, it is kept in the user's own cache folder (XDG_CACHE_HOME or
~/.cache), and where that cannot be either, it is found out again, which is said.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from mal.files import write_atomic

FOLDER = "computed"
LOOK_SECONDS, SAY_SECONDS = 1.0, 60.0
# What zip, zlib and numpy's parser of headers raise for files that are not there or damaged.
DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, SyntaxError, TypeError, MemoryError)
DAMAGED += (zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # type: ignore[assignment]
Arrays = dict[str, np.ndarray]

log = logging.getLogger(__name__)


def computed(
    data: Path, name: str, identity: str, compute: Callable[[], Arrays], check: Callable[[], None] = lambda: None
) -> Arrays:
    """The arrays that `compute` gives, from where they are kept if they were computed from the same files.

    identity: what they depend on; another one computes them anew. One process computes while others wait for it; check:
    called while waiting, may raise.
    """
    if (found := recall(data, name, identity)) is not None:
        return found
    with _alone(data, name, check):
        if (found := recall(data, name, identity)) is not None:
            return found
        arrays = compute()
        keep(data, name, identity, arrays)
    return arrays


def recall(data: Path, name: str, identity: str) -> Arrays | None:
    """What is kept under a name for this identity; None where nothing is, or where it cannot be read."""
    for path in _places(data, name):
        if (arrays := _read(path)) is not None and arrays.pop("identity", _NONE).tobytes() == identity.encode():
            return arrays
    return None


def recall_any(data: Path, name: str) -> Arrays | None:
    """What is kept under a name, whatever it was computed from."""
    for path in _places(data, name):
        if (arrays := _read(path)) is not None:
            arrays.pop("identity", None)
            return arrays
    return None


def keep(data: Path, name: str, identity: str, arrays: Arrays) -> None:
    """Keep arrays under a name; where they cannot be kept anywhere, this is said and that is all."""
    buffer = io.BytesIO()
    np.savez(buffer, identity=np.frombuffer(identity.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    reasons = []
    for path in _places(data, name):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, buffer.getvalue())
        except OSError as error:
            reasons.append(f"{path.parent} ({error.strerror})")
        else:
            return
    log.warning("%s cannot be kept in %s: it is computed again by every job.", name, " nor in ".join(reasons))


def user_cache() -> Path:
    """The user's own cache folder, which need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mal"


_NONE = np.empty(0, np.uint8)


def _places(data: Path, name: str) -> tuple[Path, Path]:
    own = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:12]  # datasets of other folders have the same names
    return data / FOLDER / f"{name}.npz", user_cache() / own / f"{name}.npz"


@contextlib.contextmanager
def _alone(data: Path, name: str, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a name, if a lock can be had."""
    for path in _places(data, name):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _acquire(path.with_suffix(".lock"), check)
        except NotImplementedError:
            break  # a file system without locks: what two processes compute at a time is the same
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                break
            continue
        try:
            yield
        finally:
            lock.release()
        return
    yield


def _acquire(path: Path, check: Callable[[], None]) -> FileLock:
    lock, began = FileLock(path), time.monotonic()
    said = began
    while True:
        try:
            lock.acquire(timeout=LOOK_SECONDS)
        except Timeout:
            check()
            if (now := time.monotonic()) - said > SAY_SECONDS:
                said = now
                log.info("waiting for another process to compute %s, since %.0f s", path.stem, now - began)
        else:
            return lock


def _read(path: Path) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except DAMAGED:
        return None  # not there, or damaged: it is computed again
