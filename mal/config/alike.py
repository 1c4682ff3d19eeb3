"""Which chains of a sweep train the same in a round, by their configurations.

Before anything is bought, much is alike: random, entropy and coreset of one seed have the same task model in round 0,
MAL's variants the same F, C and D. Later only chains are that buy the same: those that differ in no more than their
names and in whether D is trained, where D reaches neither F nor the choice (mal_entropy_query, mal_no_discriminator).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mal.config.schema import Chain, Minimax
from mal.config.sizes import steps_of_round

# The phases of a plan that several methods have, and their names in training.
TRAINED_AS = {"Algorithm 1": "minimax", "M": "task"}
_CHOICE = ("budget", "method", "task", "minimax")  # what round 0 may not depend on


def with_discriminator(minimax: Minimax) -> Minimax | None:
    """The recipe that trains the same F and C, and D besides; None where D is trained already or F would differ.

    D changes F by its loss, and by a pass through F that is only for D, which draws dropout before F's own passes.
    """
    changes_f = minimax.d_to_f or not minimax.entropy_weight or minimax.first == "discriminator"
    return None if minimax.discriminator or changes_f else replace(minimax, discriminator=True)


def signatures(config: Chain, phase: str, number: int) -> tuple[str, ...]:
    """Hashes of what decides a phase of the chain's round `number`, named as in a plan (`TRAINED_AS`).

    First the chain's own, then that of chains from which it can take the phase too, as they train more besides.
    """
    fuller = with_discriminator(config.minimax)
    if fuller is None:
        return (_signature(config, phase, number),)
    other = _signature(replace(config, minimax=fuller), phase, number)
    return (other,) if phase == "M" else (_signature(config, phase, number), other)


def _signature(config: Chain, phase: str, number: int) -> str:
    science = config.science()
    decides: dict[str, Any]
    if number > 0:  # on labels that the chain has bought: all of it decides
        method = {key: value for key, value in config.method.items() if key != "name"}
        return _hash(science | {"method": method, "phase": phase})
    decides = {key: value for key, value in science.items() if key not in _CHOICE}
    starts_from_f = config.task.init.startswith("from_f")
    if phase == "Algorithm 1" or starts_from_f:
        decides["minimax"] = science["minimax"]
    if phase == "M":
        # In round 0 there is no round before to go on from.
        decides["task"] = science["task"] | {"init": "from_f" if starts_from_f else "scratch"}
        decides["dropout"] = config.method.get("dropout", 0.0)
    return _hash(decides)


def _hash(decides: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def shared_phases(config: Chain, number: int, pool: int) -> dict[str, tuple[int, int]]:
    """The phases of round `number` that other chains may train as well, as in a plan -> (steps, images per step)."""
    steps = {name: count for name, count in steps_of_round(config, number, pool).items() if name in TRAINED_AS}
    own = int(config.method.get("members", 1))  # further members of an ensemble are the method's own
    return steps | {"M": (steps["M"][0] // own, steps["M"][1])}


def leaders(configs: Sequence[Chain], committed: Sequence[int], pool: int) -> dict[int, dict[int, int]]:
    """Place of a chain -> places of the earlier ones that train phases of its rounds too -> up to how many rounds.

    committed: rounds that each has behind it.
    """
    first: dict[str, int] = {}
    found: dict[int, dict[int, int]] = {}
    for place, (config, done) in enumerate(zip(configs, committed, strict=True)):
        for number in range(min(1, done), min(2, config.rounds)):  # what is alike in round 1 is in all after it
            for phase in shared_phases(config, number, pool):
                own, *others = signatures(config, phase, number)
                leader = next((first[each] for each in (own, *others) if each in first), None)
                first.setdefault(own, place)
                if leader is not None:
                    found.setdefault(place, {})[leader] = config.rounds if number else 1
    return found
