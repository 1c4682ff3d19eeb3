"""Answers of the labelling page that are not yet taken: RUNS/NAME/labels/page.jsonl, one line for each answer or undo.

A line is whole or is left out, so nothing but the answer under way is lost where the page's process is killed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mal.labels.store import FOLDER
from mal.run.heartbeat import now

NAME = "page.jsonl"


def read(sweep: Path) -> dict[int, str]:
    """Label by index, in the order in which they were given."""
    found: dict[int, str] = {}
    path = sweep / FOLDER / NAME
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        entry = json.loads(line)
        found.pop(entry["index"], None)
        if entry["label"] is not None:
            found[entry["index"]] = entry["label"]
    return found


def note(sweep: Path, index: int, label: str | None) -> None:
    """Put an answer on disk, or its undoing (None), before this returns."""
    (sweep / FOLDER).mkdir(parents=True, exist_ok=True)
    with (sweep / FOLDER / NAME).open("ab+") as file:
        file.seek(0)
        if (kept := file.read().rfind(b"\n") + 1) < file.tell():
            file.truncate(kept)  # of a process that was killed while it wrote
        file.write(json.dumps({"index": index, "label": label, "time": now()}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def clear(sweep: Path) -> None:
    """Forget all of them: they were taken."""
    (sweep / FOLDER / NAME).unlink(missing_ok=True)
