"""What takes long to compute from a dataset's files, kept in DATA/computed for the next job."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from filelock import FileLock

from mal.files import write_atomic

FOLDER = "computed"
Arrays = dict[str, np.ndarray]

log = logging.getLogger(__name__)


def computed(data: Path, name: str, identity: str, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays that `compute` gives, from DATA/computed/NAME.npz where that was computed from the same files.

    identity: what they depend on; another one computes them anew. One process computes while others wait for it. Where
    `data` cannot be written to, each computes for itself.
    """
    path = data / FOLDER / f"{name}.npz"
    if (found := _read(path, identity)) is not None:
        return found
    lock: AbstractContextManager[object] = nullcontext()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock")).acquire()
    except OSError as error:
        log.warning("%s cannot be written to (%s): it is computed in every job.", path.parent, error.strerror)
        return compute()
    with lock:
        if (found := _read(path, identity)) is not None:
            return found
        arrays = compute()
        buffer = io.BytesIO()
        np.savez(buffer, identity=np.frombuffer(identity.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        write_atomic(path, buffer.getvalue())
    return arrays


def _read(path: Path, identity: str) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None  # not there, or cut: it is computed again
    return arrays if arrays.pop("identity", np.empty(0, np.uint8)).tobytes() == identity.encode() else None
