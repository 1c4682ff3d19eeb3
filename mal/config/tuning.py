"""Trials of a tuning: for each method as many settings as for every other, drawn without replacement from its grid.

What is tried of every method, such as the task model's learning rate, has in a trial the same values for all of them:
no method wins by having drawn the better ones.

A preset says what is tried (mal/conf/experiment/study_*.yaml):

    tuning:
      all: {task.lr: [0.0003, 0.001, 0.003]}          # of every method, random included
      mal: {minimax.entropy_weight: [0.1, 0.3, 1.0]}  # of mal besides

and `tune=N` makes the sweep NAME-tuning of it, variants mal_t00, mal_t01 ... of each method; the first is the preset
itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import lcm
from typing import Any

from mal.rng import generator

FIRST_SEED = 100  # those below are for results


Variants = dict[str, dict[str, Any]]  # by name: {"method": the method that it is one of, KEY: VALUE, ...}


def draw_trials(space: Mapping[str, Mapping[str, list[Any]]], methods: Variants, trials: int) -> Variants:
    """The variants METHOD_tNN of each method, the same on every machine.

    space: the values to try by method and key, those under `all` for each; methods: as they are untuned. Raises
    ValueError where a grid has fewer settings than `trials`.
    """
    variants: Variants = {}
    shared = _shuffled(space.get("all", {}), "all")
    for method, untuned in methods.items():
        own = _shuffled(space.get(method, {}), method)
        if len(shared) * len(own) < trials - 1:
            raise ValueError(
                f"tune={trials}: {method} has {len(shared) * len(own)} settings under `tuning`; add some, or lower it."
            )
        chosen: list[dict[str, Any]] = [{}]
        for i in range(trials - 1):  # along the diagonals of (shared, own), so that no pair comes twice
            chosen.append(shared[i % len(shared)] | own[(i + i // lcm(len(shared), len(own))) % len(own)])
        variants |= {f"{method}_t{t:02d}": {**untuned, **setting} for t, setting in enumerate(chosen)}
    return variants


def _shuffled(grid: Mapping[str, list[Any]], name: str) -> list[dict[str, Any]]:
    """All settings of a grid in an order that follows from its name."""
    settings = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return [settings[i] for i in generator("tuning", name).permutation(len(settings))]


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse to tune on seeds that results are reported on."""
    if low := [seed for seed in seeds if seed < FIRST_SEED]:
        raise ValueError(f"tune: seeds={low} are for results; tune on seeds from {FIRST_SEED}, e.g. seeds=[100,101].")


def check_variant(name: str, variant: Mapping[str, Any], shared: Sequence[str]) -> None:
    """Refuse a variant's key that all methods of a sweep have in common; shared: those keys, or their sections."""
    for key in variant:
        if key.partition(".")[0] in shared:
            raise ValueError(
                f"{key} of the variant {name}: that is the same for all methods of a sweep. Leave it out here and give "
                f"it to the sweep, or launch two sweeps and draw both with analysis/curves.py name=[A,B]."
            )
