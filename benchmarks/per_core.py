"""Images that one core reads: by FFCV's files and one thread, per processor second.

python -m benchmarks.per_core [--images 2000]

`delivered`: uint8 images of 256 x 256 as a GPU gets them, which then crops and flips; `cropped`: a random 224 x 224 of
each, flipped at random, on the same core, as a CPU trains. JPEGs of 20 KiB cut from two photographs. Processor time, so
that other work does not count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.loaders import BATCH, Ours, write
from mal.data.loader import in_order

REPEATS = 5
TARGETS = {("jpg", "cropped"): 900, ("raw", "delivered"): 11_000}


def cropped(ours: Ours, indices: np.ndarray) -> int:
    """An epoch of uint8 crops."""
    seen = 0
    for number, batch in enumerate(ours.loader.batches(in_order(indices, BATCH))):
        seen += len(ours.augmentation._move(batch.images, (number,), len(batch.images), 0, fill=0))
    return seen


def rate(epoch: Callable[[], int]) -> float:
    """Images per processor second, the median of some epochs after an unmeasured one."""
    epoch()
    rates = []
    for _ in range(REPEATS):
        began = time.process_time()
        rates.append(epoch() / (time.process_time() - began))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    count = parser.parse_args().images
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        for mode, file in write(Path(place), count)[1].items():
            ours = Ours("ffcv", file, count, torch.device("cpu"), 1)
            epochs = {
                "delivered": lambda ours=ours: ours.delivered(ours.shuffled()),
                "cropped": lambda ours=ours: cropped(ours, ours.shuffled()),
            }
            for name, epoch in epochs.items():
                found, target = rate(epoch), TARGETS.get((mode, name))
                verdict = "" if target is None else f">= {target:,} {'met' if found >= target else 'MISSED'}"
                print(f"{mode} {name:<12} {found:>10,.0f} images per core and second  {verdict}", flush=True)


if __name__ == "__main__":
    main()
