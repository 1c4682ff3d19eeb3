"""What the benchmarks share: clocks, interleaved pairs, one format of a table's rows, networks and made-up images.

A ratio is the median over pairs of (ours / theirs), the two measured one right after the other, so that a machine that
becomes slower or faster meanwhile does not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mal.config.compose import compose_sweep
from mal.config.schema import Chain


def settled(clock: Callable[[], float]) -> Callable[[], float]:
    """A clock that is read when the GPU, where there is one at work, has done what it was given."""

    def now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return clock()

    return now


CLOCKS = {"wall": settled(time.perf_counter), "cpu": settled(time.process_time)}
HEAD = f"{'work':<48} {'ours':>10} {'bare':>10} {'ratio':>7}  {'target':<15}"


@dataclass(frozen=True)
class Pair:
    """Seconds of ours and of what it is compared with, and the ratio: medians."""

    ours: float
    bare: float
    ratio: float


def arguments(doc: str | None, **more: Any) -> argparse.Namespace:
    """The options of every benchmark; more: further ones by name, with their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="pairs; the median counts (default 9)")
    parser.add_argument("--threads", type=int, default=0, help="0 (default): all cores")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: with --threads 1, on busy cores")
    for name, default in more.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default {default}")
    return parser.parse_args()


def interleaved(
    ours: Callable[[], object], bare: Callable[[], object], repeats: int, clock: str = "wall", warm: int = 2
) -> Pair:
    """Both in turn, `warm` times unmeasured and then `repeats` times."""
    seconds = [(_seconds(ours, clock), _seconds(bare, clock)) for _ in range(warm + repeats)]
    return paired(seconds[warm:])


def paired(seconds: list[tuple[float, float]]) -> Pair:
    """The medians of measured pairs."""
    first, second = zip(*seconds, strict=True)
    return Pair(statistics.median(first), statistics.median(second), statistics.median(a / b for a, b in seconds))


def row(work: str, pair: Pair, target: float | None = None) -> None:
    """Print one row of the table; target: what the ratio may be at most."""
    verdict = "" if target is None else f"<= {target:.2f} {'met' if pair.ratio <= target else 'MISSED'}"
    print(f"{work:<48} {units(pair.ours):>10} {units(pair.bare):>10} {pair.ratio:>7.3f}  {verdict:<15}", flush=True)


def units(seconds: float) -> str:
    """Seconds for people."""
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def chain(*overrides: str, method: str = "mal") -> Chain:
    """One chain's configuration; the digits' unless `overrides` say otherwise."""
    return compose_sweep([f"methods=[{method}]", "seeds=1", *overrides]).chains[0]


def noise(count: int, channels: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, channels, size, size)."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def _seconds(function: Callable[[], object], clock: str) -> float:
    now = CLOCKS[clock]
    began = now()
    function()
    return now() - began
