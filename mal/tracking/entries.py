"""What a chain's folder has to say to a tracker: windows of steps and committed rounds, in order, each once.

A step of the x axis counts over all phases of all rounds; windows that a resumed chain writes again are the same to the
last bit but for their speed, so the first of each is taken. A round comes behind its windows.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mal.run import folder as run_folder
from mal.run.windows import FILE

PICTURES = 16  # of a query, at most


@dataclass(frozen=True)
class Entry:
    """step: over all phases; labeled: labels bought, of a round, None for a window; pictures: PNG files by name."""

    step: int
    labeled: int | None
    values: dict[str, float]
    pictures: dict[str, bytes] = field(default_factory=dict)


class Reader:
    """Entries of a chain, as they come."""

    def __init__(self, chain: Path) -> None:
        self.chain = chain
        self._place = self._rounds = 0  # bytes of windows.jsonl that were read; rounds that were told
        self._seen: set[tuple[int, str, int]] = set()
        self._waiting: list[dict[str, Any]] = []
        self._offset, self._phase, self._last = 0, (-1, ""), 0

    def new(self) -> list[Entry]:
        """Those that came since the last call."""
        committed = run_folder.committed_rounds(self.chain)  # before the windows, which are then all there
        self._waiting += self._windows()
        entries: list[Entry] = []
        while self._rounds < committed:
            entries += self._tell(self._rounds)
            entries.append(self._round(self._rounds))
            self._rounds += 1
        return entries + self._tell(self._rounds)

    def _windows(self) -> list[dict[str, Any]]:
        """New lines of windows.jsonl; of a line that is being written nothing is taken yet."""
        try:
            with (self.chain / FILE).open("rb") as file:
                file.seek(self._place)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._place += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                window = json.loads(line)
            except ValueError:
                continue  # cut by a full disk
            key = window["round"], window["phase"], window["step"]
            if key not in self._seen:
                self._seen.add(key)
                found.append(window)
        return found

    def _tell(self, number: int) -> list[Entry]:
        """The windows of a round, those of one before it among them."""
        told = [window for window in self._waiting if window["round"] <= number]
        self._waiting = [window for window in self._waiting if window["round"] > number]
        return [self._window(window) for window in told]

    def _window(self, window: dict[str, Any]) -> Entry:
        phase = window["round"], window["phase"]
        if phase != self._phase:
            self._offset, self._phase = self._last, phase
        self._last = self._offset + window["step"]
        losses = {f"{window['phase']}/{name}": v for name, v in window["losses"].items() if v is not None}
        return Entry(self._last, None, losses | {f"{window['phase']}/images_per_s": window["images_per_s"]})

    def _round(self, number: int) -> Entry:
        folder = run_folder.round_folder(self.chain, number)
        metrics = run_folder.read_json(folder / run_folder.METRICS)
        values = {metrics["metric"]: metrics["value"], "seconds": metrics["seconds"]}
        values |= {
            f"{section}/{k}": v for section in ("signals", "floor") for k, v in (metrics.get(section) or {}).items()
        }
        known = {f"round/{name}": float(value) for name, value in values.items() if value is not None}
        return Entry(self._last, int(metrics["labeled"]), known, pictures_of(folder))


def pictures_of(folder: Path) -> dict[str, bytes]:
    """The queried images that keep_queries=K kept, as PNG files by their place, index and class."""
    if not (folder / run_folder.QUERIES).is_file():
        return {}
    from PIL import Image

    with np.load(folder / run_folder.QUERIES, allow_pickle=False) as kept:
        indices, images, truth = kept["indices"], kept["images"], kept["truth"]
    pictures = {}
    for place, (index, image) in enumerate(zip(indices[:PICTURES], images, strict=False)):
        buffer = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
        label = f" class {truth[place]}" if truth.ndim == 1 else ""
        pictures[f"{place:02} image {index}{label}"] = buffer.getvalue()
    return pictures
