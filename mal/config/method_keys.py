"""What the keys of a method's configuration may be: checked on the login node, without torch.

The YAML named as the acquisition lists the keys that it takes, with an example of each. Its section `ranges` says what
they may be:

    ranges:
      passes: {low: 1, whole: true}       # numbers from 1, integers alone
      dropout: {above: 0, below: 1}       # between 0 and 1, without both
      delta: {above: 0, optional: true}   # or null
      kind: [power, softmax, softrank]    # one of these

A key without a range takes any value of its example's kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mal.config.registry import nearest


@dataclass(frozen=True)
class Number:
    """Numbers from `low` to `high`, or above `above` and below `below`; whole: integers alone; optional: or null."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False
    optional: bool = False

    def allows(self, value: Any) -> bool:
        """Whether it is one of these numbers."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.whole and value != int(value):
            return False
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        words = "null or " if self.optional else ""
        words += "a whole number" if self.whole else "a number"
        bounds = {"from": self.low, "above": self.above, "to": self.high, "to below": self.below}
        return words + "".join(f" {word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))


Range = Number | tuple[Any, ...]


def read_ranges(section: Mapping[str, Any], file: str) -> dict[str, Range]:
    """The section `ranges` of a method's YAML; ValueError, naming the file and the key, where it is not one."""
    known = [each.name for each in fields(Number)]
    ranges: dict[str, Range] = {}
    for key, allowed in section.items():
        if isinstance(allowed, list):
            ranges[key] = tuple(allowed)
        elif isinstance(allowed, dict) and allowed and allowed.keys() <= set(known):
            ranges[key] = Number(**allowed)
        else:
            raise ValueError(f"{file}: ranges.{key}={allowed} must be a list of values, or some of {', '.join(known)}.")
    return ranges


def check_method(method: Mapping[str, Any], expected: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """ValueError, naming the key, for one that is missing, unknown or out of its range.

    expected, ranges: the sections `method` and `ranges` of the YAML of that acquisition.
    """
    for key in expected:
        if key not in method:
            raise ValueError(f"method.{key} is missing: {method['acquisition']} needs it, e.g. {key}: {expected[key]}.")
    for key, value in method.items():
        if key not in expected:
            hint = nearest(key, expected) or "."
            raise ValueError(f"method.{key} is unknown{hint} Keys of {method['acquisition']}: {', '.join(expected)}.")
        allowed = ranges.get(key)
        if isinstance(allowed, tuple):
            if value not in allowed:
                hint = nearest(str(value), [str(name) for name in allowed]) or "."
                raise ValueError(f"method.{key}={value} is unknown{hint} Allowed: {', '.join(map(str, allowed))}.")
        elif allowed is not None:
            if not allowed.allows(value):
                raise ValueError(f"method.{key}={value} is out of range: it must be {allowed}.")
        elif expected[key] is not None and _kind(value) is not _kind(expected[key]):
            raise ValueError(f"method.{key}={value} must be of the kind of the method's own value, {expected[key]}.")


def _kind(value: Any) -> type:
    """Numbers are of one kind, whole or not."""
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
