"""What a writer of a .beton file leaves now and then, so that the next one goes on where it was stopped or killed.

FOLDER/PART.beton       pages of samples, as many as `pages` says; what lies behind them is written again
FOLDER/.PART-HASH.npz   how far it was, and what FFCV keeps in memory up to its end; HASH: of what is being written
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mal.files import write_atomic


class Stopped(Exception):
    """The writer was asked to stop; what it wrote is kept, and the same command goes on."""


@dataclass
class State:
    """The first `done` samples are in the first `pages` pages of the file.

    metadata: uint8, FFCV's rows of those samples; allocations: where they lie, parts of FFCV's table; wrong: what could
    not be read, by index.
    """

    done: int = 0
    pages: int = 0
    metadata: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    allocations: list[np.ndarray] = field(default_factory=list)
    wrong: dict[int, str] = field(default_factory=dict)


class Unfinished:
    """The state of one part of one copy. identity: arrays and words that say what is being written, and how."""

    def __init__(self, folder: Path, part: str, identity: Sequence[Any]) -> None:
        digest = hashlib.sha256()
        for each in identity:
            digest.update(np.ascontiguousarray(each).tobytes() if isinstance(each, np.ndarray) else str(each).encode())
        self.identity = digest.hexdigest()
        self.file = folder / f"{part}.beton"
        self.beside = [folder / f"{part}_{name}.npy" for name in ("labels", "moments", "pixels")]
        self.path = folder / f".{part}-{self.identity[:12]}.npz"

    def read(self, start: int, page: int) -> State:
        """The state that was left, else a new one; start, page: of the file's data, bytes."""
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                head = json.loads(saved["head"].tobytes())
                state = State(head["done"], head["pages"], saved["metadata"], [saved["allocations"]])
                state.wrong = {int(index): what for index, what in head["wrong"].items()}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return State()  # none, or cut
        whole = self.file.is_file() and self.file.stat().st_size >= (start + page * state.pages if state.pages else 0)
        same = head["identity"] == self.identity and all(path.is_file() for path in self.beside)
        return state if same and whole else State()

    def save(self, state: State) -> None:
        """Keep the state, once the file's pages have reached the disk."""
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        wrong = {str(index): what for index, what in state.wrong.items()}
        head = {"identity": self.identity, "done": state.done, "pages": state.pages, "wrong": wrong}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            head=np.frombuffer(json.dumps(head).encode(), np.uint8),
            metadata=state.metadata,
            allocations=np.concatenate(state.allocations),
        )
        write_atomic(self.path, buffer.getvalue())
