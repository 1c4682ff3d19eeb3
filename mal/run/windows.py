"""What training says of each window of steps: a line in CHAIN/windows.jsonl and in the log, and whether it diverges.

A chain that goes on behind a checkpoint writes the windows since then again; the last line of a window counts.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "windows.jsonl"
GROWTH = 10  # times what a loss began with
# A loss that began with less is measured by this: ten times it is beyond any entropy, which may begin near 0 and rises
# in a sound training to at most log(classes), 9.0 for 8,142.
LEAST = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """Mean losses of a window of steps that ends at `step`, by name; images_per_s, seconds_left: of the phase.

    device_mib: the peak of the GPU's memory, None without one. diverged: what a person must look at, else "".
    """

    round: int
    phase: str
    step: int
    steps: int
    losses: Mapping[str, float]
    images_per_s: float
    seconds_left: float
    device_mib: int | None
    diverged: str

    def __str__(self) -> str:
        losses = ", ".join(f"{name} {value:.4g}" for name, value in self.losses.items())
        said = f"round {self.round}, {self.phase} {self.step}/{self.steps}: {losses}; {self.images_per_s:,.0f} images/s"
        said += f", {self.seconds_left:.0f} s left"
        said += "" if self.device_mib is None else f", {self.device_mib} MiB on the GPU"
        return f"{said}; DIVERGED: {self.diverged}" if self.diverged else said


def finite(losses: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no NaN: None where a loss is no number."""
    return {name: value if math.isfinite(value) else None for name, value in losses.items()}


def diverged(first: Mapping[str, float], losses: Mapping[str, float]) -> str:
    """What of the losses is no number, or ten times what it began with; "" for nothing. first: of the first step."""
    for name, value in losses.items():
        if not math.isfinite(value):
            return f"loss {name} is {value}"
        began = first.get(name, math.nan)
        if abs(value) > GROWTH * max(abs(began), LEAST):
            return f"loss {name} is {value:.3g}, it began with {began:.3g}"
    return ""


def tell(chain: Path, window: Window, aloud: bool) -> None:
    """Write the line of windows.jsonl, and aloud that of the log; a full disk must not end a training for them."""
    if aloud:
        (log.warning if window.diverged else log.info)("%s", window)
    line = json.dumps(asdict(window) | {"losses": finite(window.losses), "time": time.time()}).encode() + b"\n"
    try:
        handle = os.open(chain / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        log.warning("%s cannot be written to (%s)", chain / FILE, error.strerror)
        return
    try:
        os.write(handle, line)
    except OSError as error:
        log.warning("%s cannot be written to (%s)", chain / FILE, error.strerror)
    finally:
        os.close(handle)
