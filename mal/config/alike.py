"""Which chains of a sweep train the same in round 0, by their configurations: before anything is bought, much is.

Random, entropy and coreset of one seed have the same task model in round 0, and MAL's variants the same F, C and D.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mal.config.schema import Chain
from mal.config.sizes import steps_of_round

# The phases of a plan that several methods have, and their names in training.
TRAINED_AS = {"Algorithm 1": "minimax", "M": "task"}
_CHOICE = ("budget", "method", "task", "minimax")  # what round 0 may not depend on


def signature(config: Chain, phase: str) -> str:
    """A hash of what decides a phase of the chain's round 0, named as in a plan (`TRAINED_AS`)."""
    science = config.science()
    decides: dict[str, Any] = {key: value for key, value in science.items() if key not in _CHOICE}
    starts_from_f = config.task.init.startswith("from_f")
    if phase == "Algorithm 1" or starts_from_f:
        decides["minimax"] = science["minimax"]
    if phase == "M":
        # In round 0 there is no round before to go on from.
        decides["task"] = science["task"] | {"init": "from_f" if starts_from_f else "scratch"}
        decides["dropout"] = config.method.get("dropout", 0.0)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def shared_phases(config: Chain, pool: int) -> dict[str, tuple[int, int]]:
    """The phases of round 0 that other chains may train as well, as in a plan -> (steps, images per step)."""
    steps = {name: count for name, count in steps_of_round(config, 0, pool).items() if name in TRAINED_AS}
    own = int(config.method.get("members", 1))  # further members of an ensemble are the method's own
    return steps | {"M": (steps["M"][0] // own, steps["M"][1])}


def leaders(configs: Sequence[Chain], pool: int) -> dict[int, set[int]]:
    """Place of a chain -> places of the earlier ones that train phases of its round 0 too, where there are any."""
    first: dict[str, int] = {}
    found: dict[int, set[int]] = {}
    for place, config in enumerate(configs):
        for phase in shared_phases(config, pool):
            leader = first.setdefault(signature(config, phase), place)
            if leader != place:
                found.setdefault(place, set()).add(leader)
    return found
