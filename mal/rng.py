"""Random numbers as pure functions of their purpose: no global state, nothing to save in a checkpoint."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(*parts: int | str) -> int:
    """A 128-bit key for a purpose, e.g. `derive(seed, round, "task", "epoch", 3)`; distinct parts, distinct keys."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator (Philox) for a purpose: the same numbers on every machine."""
    return np.random.Generator(np.random.Philox(key=derive(*parts)))


def torch_seed(*parts: int | str) -> int:
    """A seed for a torch generator: 63 bits, not negative."""
    return derive(*parts) >> 65
