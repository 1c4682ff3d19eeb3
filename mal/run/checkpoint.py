"""Checkpoints of a phase: one file, replaced atomically, with a hash in front of what it holds.

They are written beside the training: the state is copied at a step's boundary, and a thread makes the file of the copy.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from mal.files import atomic_file
from mal.process.distributed import ALONE, World

MAGIC = b"MAL checkpoint 1\n"
_DIGEST = 64

log = logging.getLogger(__name__)


class Writer:
    """Saves beside other work, one file at a time. As a context: leaving it waits for the last one."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, path: Path, state: dict[str, Any]) -> None:
        """Copy the state, which may change from then on, and start to `save` the copy.

        Waits for the file before, and raises what went wrong with that.
        """
        self.wait()
        # Joined at the end of the interpreter where nobody waits for it: an error elsewhere loses no finished step.
        self._thread = threading.Thread(target=self._save, args=(path, copied(state)), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the file begun last is there; raises what kept it from being written."""
        self._join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _save(self, path: Path, state: dict[str, Any]) -> None:
        try:
            save(path, state)
        except BaseException as error:  # the one who waits raises it
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:
            self._join()


def copied(state: Any) -> Any:
    """The same numbers, strings, lists and dicts, with copies of the tensors in the host's memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state


class _Hashed:
    """A file to write to that knows the hash of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts; a kill at any moment leaves the old file or the new one."""
    with atomic_file(path) as file:
        file.write(MAGIC + b"0" * _DIGEST + b"\n")
        payload = _Hashed(file)
        torch.save(state, cast(BinaryIO, payload))  # as it goes: no second copy of the state in memory
        file.seek(len(MAGIC))
        file.write(payload.hash.hexdigest().encode())


def load(path: Path, identity: str, device: torch.device, world: World = ALONE) -> dict[str, Any] | None:
    """The state saved at `path`, or None where there is none to be believed.

    identity: what the state must have been saved for (its key "identity"). A checkpoint is working state: one that
    is cut, altered or of another configuration costs the time since the phase began, so it is reported and left out.
    world: the processes that all get what rank 0 reads.
    """
    content = world.once(lambda: path.read_bytes() if path.is_file() else None)
    if content is None:
        return None
    head = len(MAGIC) + _DIGEST + 1
    payload = content[head:]
    if content[:head] != MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        log.warning("%s is cut or damaged: this phase starts again.", path)
        return None
    state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    if state.get("identity") != identity:
        log.warning("%s belongs to another configuration or parent round: this phase starts again.", path)
        return None
    return state
