"""What the rounds to do cost, phase by phase, before they begin: images through the networks / images per second.

The rate of a phase is that of earlier rounds under `runs=` with the same data set and backbone on GPUs (their
windows.jsonl); where there are none, that of a table. A pass without gradients is three times as fast.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from mal.config.alike import TRAINED_AS, shared_phases, signatures
from mal.config.schema import Chain
from mal.config.sizes import steps_of_round
from mal.run import folder as run_folder
from mal.run.windows import FILE as WINDOWS
from sweeps.plan import ChainPlan

# Images per second that one GPU of today trains on at 224 pixels: assumed until rounds tell better.
IMAGES_PER_S = {"resnet18": 3000.0, "vgg16_bn": 500.0, "drn_d_22": 400.0}
MOST_PER_S = 30_000.0  # of small images, whose steps are bound by launching kernels
SCAN = 3  # a pass without gradients is so much faster
MOST_CHAINS = 20  # that are read for their rates


@dataclass(frozen=True)
class Rates:
    """Images per second of one GPU. measured: by phase, in so many `chains`; assumed: of the table, None without."""

    measured: Mapping[str, float]
    chains: int
    assumed: float | None

    def of(self, phase: str) -> float | None:
        """That of a phase, as `steps_of_round` names it; None where nothing is known."""
        return self.measured.get(TRAINED_AS.get(phase, phase), self.assumed)

    def __str__(self) -> str:
        if not self.chains:
            return "" if self.assumed is None else f"{self.assumed:,.0f} images/s, which is assumed"
        told = ", ".join(f"{rate:,.0f} in {phase}" for phase, rate in sorted(self.measured.items()))
        return f"images/s per GPU as in {self.chains} earlier chains: {told}"


def rates_of(runs: Path, config: Chain) -> Rates:
    """What chains of this data set and backbone under a runs folder trained at, and what is assumed."""
    found: dict[str, list[float]] = defaultdict(list)
    chains = 0
    for path in sorted(runs.glob(f"*/*/seed-*/{WINDOWS}")):
        rates = _measured(path, config.dataset.name, str(config.backbone["name"]))
        for phase, rate in rates.items():
            found[phase].append(rate)
        chains += bool(rates)
        if chains == MOST_CHAINS:
            break
    return Rates({phase: statistics.median(each) for phase, each in found.items()}, chains, images_per_second(config))


def _measured(path: Path, dataset: str, backbone: str) -> dict[str, float]:
    """By phase, in the last committed round of a chain; empty where it is of something else, or not on a GPU."""
    committed = [folder for folder in run_folder.round_folders(path.parent) if run_folder.is_committed(folder)]
    if not committed:
        return {}
    metrics = run_folder.read_json(committed[-1] / run_folder.METRICS)
    if (metrics.get("dataset"), metrics.get("backbone")) != (dataset, backbone) or not metrics.get("gpus"):
        return {}
    rates = {}
    for line in path.read_text().splitlines():
        window = json.loads(line)
        if window["round"] == metrics["round"]:
            rates[window["phase"]] = window["images_per_s"] / metrics["gpus"]
    return rates


def images_per_second(config: Chain) -> float | None:
    """What is assumed of one GPU; None for a backbone that nothing is known of."""
    side = config.dataset.crop or config.dataset.size
    rate = IMAGES_PER_S.get(str(config.backbone["name"]))
    return None if rate is None else min(MOST_PER_S, rate * (224 / side) ** 2)


def images_of(plans: Sequence[ChainPlan], pool: int) -> dict[str, float]:
    """Images of the rounds to do, by phase; those of `scans` as many as cost so much training.

    What chains take from an earlier one of the plans (share=true) is not counted again.
    """
    total: dict[str, float] = defaultdict(float)
    seen: set[tuple[int, str]] = set()
    for plan in plans:
        names = cache(partial(signatures, plan.config))  # those of round 1 are those of all after it
        for number in range(plan.committed, plan.target):
            for phase, (steps, images) in steps_of_round(plan.config, number, pool).items():
                total[phase] += steps * images
            total["scans"] += (pool + plan.config.dataset.test) / SCAN
            for phase, (steps, images) in shared_phases(plan.config, number, pool).items() if plan.config.share else ():
                own, *others = ((number, each) for each in names(phase, min(number, 1)))
                total[phase] -= steps * images * (not seen.isdisjoint((own, *others)))
                seen.add(own)
    return total


def hours(images: Mapping[str, float], rates: Rates) -> dict[str, float] | None:
    """GPU-hours by phase; None where the rate of one is not known. Scans go by M's rate."""
    found = {}
    for phase, count in images.items():
        rate = rates.of("M" if phase == "scans" else phase)
        if rate is None:
            return None
        found[phase] = count / rate / 3600
    return found


def unshared(plans: Sequence[ChainPlan]) -> list[ChainPlan]:
    """The same plans where each chain trains its rounds itself."""
    return [replace(plan, config=replace(plan.config, share=False)) for plan in plans]


def by_labelled(plans: Sequence[ChainPlan]) -> list[ChainPlan]:
    """The same plans with epochs of the labelled images, in every phase that has them."""
    return [replace(plan, config=_by_labelled(plan.config)) for plan in plans]


def _by_labelled(config: Chain) -> Chain:
    config = deepcopy(config)
    config.minimax.epoch_of = config.task.epoch_of = "labelled"
    if "epoch_of" in config.method:
        config.method["epoch_of"] = "labelled"
    return config
