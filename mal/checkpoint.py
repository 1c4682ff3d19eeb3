"""Checkpoints of a phase: one file, replaced atomically, with a hash in front of what it holds."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from mal.distributed import ALONE, World
from mal.results import write_atomic

MAGIC = b"MAL checkpoint 1\n"
_DIGEST = 64

log = logging.getLogger(__name__)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts; a kill at any moment leaves the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomic(path, b"".join((MAGIC, digest, b"\n", payload)))


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
