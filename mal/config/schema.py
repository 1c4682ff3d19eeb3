"""The configuration of a chain: typed, checked as a whole, frozen in its config.yaml, read back by its jobs.

Importing this module does not import torch. mal/config/compose.py makes it from the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

# Where and how a chain runs, not what it computes: left out of the fingerprint, free to differ between launches.
PLACE_KEYS = (
    *("name", "runs", "data", "rounds", "threads", "device", "keep_model", "keep_features", "keep_queries", "floor"),
    *("share",),
    *("checkpoint_minutes", "collective_minutes", "workers", "tracker"),
    *("dataset.root", "dataset.train_images", "dataset.test_images", "dataset.train_list", "dataset.test_list"),
    *("dataset.val_labels", "dataset.max_pixels", "dataset.skip_corrupt", "dataset.skip_unpaired"),
    *("dataset.class_list", "dataset.image_suffix", "dataset.mask_suffix"),
    *("dataset.train_shards", "dataset.test_shards", "dataset.features", "labels.enough", "backbone.weights"),
)
# Values, by their key, that older chains spell otherwise: both are read, and the older one stays in the fingerprint.
OLDER_SPELLINGS = {"method.query": {"entropy_of_unlabelled": "entropy_of_unlabeled"}}


# Keys of the section `backbone` that every backbone takes; at these values they are left out of a chain.
START: dict[str, Any] = {"weights": None, "weights_prefix": None, "freeze": False, "normalise": None}


def added(neutral: Any) -> Any:
    """A key that chains before it did not have, and the value that is as if it were not there, which never changes.

    At that value it stays out of the fingerprint, so chains launched before it go on.
    """
    return field(default=neutral, metadata={"added": True})


@dataclass(kw_only=True)
class Dataset:
    """A pool and its test set; `source` names the reader in mal/data that gives the images."""

    name: str
    source: str
    task: str
    classes: int
    channels: int
    size: int
    train: int
    test: int
    pool: int | None = None
    imbalance: list[float] | None = None
    minimum: int = 1
    crop: int | None = None
    pad_crop: int = 0
    flip: bool = True
    resize: str | None = added(None)
    prepared: str = added("raw")
    prepared_as: str | None = added(None)
    root: str | None = added(None)
    train_images: str | None = added(None)
    test_images: str | None = added(None)
    class_names: list[str] | None = added(None)  # noqa: RUF009
    train_list: str | None = added(None)
    test_list: str | None = added(None)
    val_labels: str | None = added(None)
    class_list: str | None = added(None)
    image_suffix: str | None = added(None)
    mask_suffix: str | None = added(None)
    train_shards: str | None = added(None)
    test_shards: str | None = added(None)
    features: str | None = added(None)
    encoder: str | None = added(None)
    exif: str | None = added("ignore")
    max_pixels: int = added(178_956_970)
    skip_corrupt: bool = added(False)
    skip_unpaired: bool = added(False)
    left_out: list[str] | None = added(None)  # noqa: RUF009
    oracle: str = added("truth")


@dataclass(kw_only=True)
class Minimax:
    """Algorithm 1."""

    epochs: float
    epoch_of: str
    batch: int
    temperature: float
    entropy_weight: float
    discriminator: bool
    lr_f: float
    lr_c: float
    lr_d: float
    betas: list[float]
    weight_decay: float
    optimizer: str = added("adam")
    schedule: str = added("constant")
    prototypes: str = added("xavier")
    d_input: str = added("features")
    d_features: str = added("train")
    d_to_f: float = added(0.0)
    first: str = added("cross_entropy")
    average: float = added(0.0)
    held_out: float = added(0.0)


@dataclass(kw_only=True)
class Task:
    """Algorithm 3 and the baselines' training of M."""

    init: str
    epochs: float
    epoch_of: str
    batch: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    lr_backbone: float | None = added(None)
    semi: str | None = added(None)
    semi_threshold: float = added(0.95)
    semi_weight: float = added(1.0)
    semi_ratio: int = added(7)
    semi_average: float = added(0.999)


@dataclass(kw_only=True)
class Labels:
    """What a chain asks of people, where dataset.oracle=files."""

    enough: float = added(1.0)


@dataclass(kw_only=True)
class Chain:
    """Everything that one (dataset, method, seed) needs; written to the chain's config.yaml."""

    name: str
    runs: str
    data: str
    seed: int
    rounds: int
    initial: int
    budget: int
    loader: str
    device: str
    precision: str
    sync_batch_norm: bool
    threads: int
    checkpoint_minutes: float
    collective_minutes: float
    keep_model: bool
    keep_features: bool
    keep_queries: int = 0
    floor: str = added("auto")
    workers: int = added(0)
    tf32: bool = added(True)
    cuda_graphs: bool = added(False)
    share: bool = added(True)
    tracker: list[str] | None = added(None)  # noqa: RUF009
    dataset: Dataset
    backbone: dict[str, Any]
    method: dict[str, Any]
    minimax: Minimax
    task: Task
    labels: Labels = field(default_factory=Labels)

    def fingerprint(self) -> str:
        """SHA-256 of what decides the chain's results: all but the place it runs at and its number of rounds."""
        return hashlib.sha256(json.dumps(self.science(), sort_keys=True).encode()).hexdigest()

    def loaders(self) -> tuple[str, ...]:
        """The loaders that give the chain the same bytes, so that it may go on with another one of them."""
        alike = ("memory", "torch", *(("ffcv",) if self.dataset.prepared == "raw" else ()))
        return alike if self.loader in alike else (self.loader,)

    def fingerprints(self) -> frozenset[str]:
        """Those of the chain by each loader that gives the same bytes, its own among them."""
        return frozenset(replace(self, loader=loader).fingerprint() for loader in self.loaders())

    def science(self) -> dict[str, Any]:
        """The part of the configuration under the fingerprint."""
        return _deciding(self)


def _deciding(section: Any, prefix: str = "") -> dict[str, Any]:
    """A section as nested dicts, without places and without the keys added later that are at their neutral value.

    A section of which nothing is left, as one that was added later, is left out.
    """
    values = {}
    for each in fields(section):
        value, key = getattr(section, each.name), prefix + each.name
        if key not in PLACE_KEYS and not (each.metadata.get("added") and value == each.default):
            values[each.name] = _deciding(value, f"{key}.") if is_dataclass(value) else _older(key, value)
    return {name: value for name, value in values.items() if value != {} or not is_dataclass(getattr(section, name))}


def _older(key: str, value: Any) -> Any:
    """A value as older chains have it in their fingerprint."""
    if isinstance(value, dict):
        return {n: _older(f"{key}.{n}", each) for n, each in value.items() if f"{key}.{n}" not in PLACE_KEYS}
    return OLDER_SPELLINGS.get(key, {}).get(value, value) if isinstance(value, str) else value


def newer(key: str, value: Any) -> Any:
    """A value, or a section of them, in the spelling of today."""
    if isinstance(value, dict):
        return {name: newer(f"{key}.{name}", each) for name, each in value.items()}
    return next((new for new, old in OLDER_SPELLINGS.get(key, {}).items() if old == value), value)


# The keys added later, each with its neutral value.
NEUTRAL = {
    prefix + each.name: each.default
    for prefix, section in (
        *(("", Chain), ("dataset.", Dataset), ("minimax.", Minimax), ("task.", Task), ("labels.", Labels)),
    )
    for each in fields(section)
    if each.metadata.get("added")
}


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """What results depend on in the configuration of a chain of any age, by dotted keys as in its config.yaml."""
    kept = {key: newer(key, value) for key, value in values.items() if key not in PLACE_KEYS}
    return {key: value for key, value in kept.items() if key not in NEUTRAL or value != NEUTRAL[key]}


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested section by dotted keys."""
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + str(key): value}
    return values
