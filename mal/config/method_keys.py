"""What the keys of a method's configuration may be: checked on the login node, without torch.

The YAML named as the acquisition lists the keys that it takes; a key that is not described here takes anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mal.config.registry import nearest


@dataclass(frozen=True)
class Number:
    """Numbers from `low` to `high`; whole: integers alone; above, below: without low, without high; null: or none."""

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    null: bool = False

    def allows(self, value: Any) -> bool:
        """Whether it is one of these numbers."""
        if value is None:
            return self.null
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.whole and value != int(value)):
            return False
        too_low = value <= self.low if self.above else value < self.low
        too_high = value >= self.high if self.below or self.high == math.inf else value > self.high
        return not (too_low or too_high or math.isnan(value))

    def __str__(self) -> str:
        words = "a whole number" if self.whole else "a number"
        words += f" above {self.low:g}" if self.above else f" from {self.low:g}"
        if self.high < math.inf:
            words += f" to below {self.high:g}" if self.below else f" to {self.high:g}"
        return f"null or {words}" if self.null else words


CHOICES: dict[str, tuple[str, ...]] = {
    "query": ("intersection", "entropy_of_unlabelled", "rank_sum", "entropy", "discriminator", "random"),
    "epoch_of": ("pool", "labelled"),
    "measure": ("variation_ratio", "entropy", "mutual_information"),
    "mode": ("rejection", "exact"),
    "kind": ("power", "softmax", "softrank"),
}
COUNT, POSITIVE, WEIGHT = Number(1, whole=True), Number(0, above=True), Number(0)
NUMBERS: dict[str, Number] = {
    **dict.fromkeys(("passes", "candidates", "configurations", "width", "vae_steps"), COUNT),
    **dict.fromkeys(("max_clusters", "neighbours", "smallest"), COUNT),
    "members": Number(2, whole=True),
    "batch": Number(2, whole=True),
    "latent": Number(1, whole=True, null=True),
    "epochs": POSITIVE,
    "lr": POSITIVE,
    "delta": Number(0, above=True, null=True),
    "purity": Number(0, 1, above=True),
    "dropout": Number(0, 1, above=True, below=True),
    "beta": WEIGHT,
    "adversarial_weight": WEIGHT,
}


def check_method(method: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """ValueError, naming the key, for one that is missing, unknown or out of its range.

    expected: the section `method` of the YAML of that acquisition.
    """
    for key in expected:
        if key not in method:
            raise ValueError(f"method.{key} is missing: {method['acquisition']} needs it, e.g. {key}: {expected[key]}.")
    for key, value in method.items():
        if key not in expected:
            hint = nearest(key, expected) or "."
            raise ValueError(f"method.{key} is unknown{hint} Keys of {method['acquisition']}: {', '.join(expected)}.")
        if key in CHOICES and value not in CHOICES[key]:
            hint = nearest(str(value), CHOICES[key]) or "."
            raise ValueError(f"method.{key}={value} is unknown{hint} Allowed: {', '.join(CHOICES[key])}.")
        if key in NUMBERS and not NUMBERS[key].allows(value):
            raise ValueError(f"method.{key}={value} is out of range: it must be {NUMBERS[key]}.")
