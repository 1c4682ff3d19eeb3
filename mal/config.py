"""The configuration: composed by Hydra from mal/conf, checked as a whole on the login node, frozen for each chain.

Importing this module does not import torch. `compose_sweep` turns command-line overrides into a `Sweep` of `Chain`
configurations; a job reads its own back with `load_chain`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mal.method_keys import check_method
from mal.registry import nearest

CONF = Path(__file__).parent / "conf"
GROUPS = ("dataset", "backbone", "method", "cluster", "experiment")
# What the paper compares for each task, in its order (Section 4, Baselines), as far as a YAML is there.
PAPER_METHODS = {
    "classification": ("mal", "vaal", "coreset", "entropy", "bald", "random"),
    "segmentation": ("mal", "vaal", "entropy", "random"),
}
OPEN_KEYS = ("cluster.time.", "cluster.sbatch.")  # a cluster profile's sections that take any key
SWEEP_KEYS = ("methods", "seeds", "cluster", "dry_run", "retry")
# Where and how a chain runs, not what it computes: left out of the fingerprint, free to differ between launches.
PLACE_KEYS = (
    *("name", "runs", "data", "rounds", "threads", "device", "keep_model", "keep_features"),
    *("checkpoint_minutes", "collective_minutes"),
)


@dataclass
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
    resize: int | None = None
    crop: int | None = None
    pad_crop: int = 0
    flip: bool = True


@dataclass
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


@dataclass
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


@dataclass
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
    dataset: Dataset
    backbone: dict[str, Any]
    method: dict[str, Any]
    minimax: Minimax
    task: Task

    def fingerprint(self) -> str:
        """SHA-256 of what decides the chain's results: all but the place it runs at and its number of rounds."""
        return hashlib.sha256(json.dumps(self.science(), sort_keys=True).encode()).hexdigest()

    def science(self) -> dict[str, Any]:
        """The part of the configuration under the fingerprint."""
        return {key: value for key, value in asdict(self).items() if key not in PLACE_KEYS}


@dataclass
class Sweep:
    """What one launch asks for: the chains, and how to run them."""

    name: str
    runs: Path
    methods: list[str]
    seeds: list[int]
    cluster: dict[str, Any]
    dry_run: bool
    retry: bool
    chains: list[Chain] = field(default_factory=list)


def compose_sweep(overrides: Sequence[str]) -> Sweep:
    """The sweep that command-line overrides ask for, checked.

    Raises ValueError that names the value, what is allowed and the key to change.
    """
    overrides = [_opened(override) for override in overrides]
    base = _compose([o for o in overrides if not o.startswith("method.")], check=overrides)
    seeds = _seeds(base.seeds)
    methods = _methods(base)
    _check_method_overrides(overrides, methods)
    sweep = Sweep(
        name=_file_name("name", base.name or base.dataset.name),
        runs=Path(str(base.runs)),
        methods=methods,
        seeds=seeds,
        cluster=OmegaConf.to_container(base.cluster, resolve=True),  # type: ignore[arg-type]
        dry_run=_boolean("dry_run", base.dry_run),
        retry=_boolean("retry", base.retry),
    )
    for method in methods:
        composed = _compose([*_overrides_for(method, overrides), f"method={method}"])
        composed.name = sweep.name
        for seed in seeds:
            chain = _chain(composed, seed)
            validate(chain)
            sweep.chains.append(chain)
    return sweep


def choices(group: str) -> list[str]:
    """The names that a group of mal/conf offers, e.g. the datasets."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def save_chain(chain: Chain) -> str:
    """The YAML of a chain's configuration."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(chain)))


def load_chain(path: Path) -> Chain:
    """The configuration that a chain was launched with; ValueError where the file is not one."""
    try:
        chain = _structured(OmegaConf.load(path), str(path))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: launch the chain with sweeps/launch.py first.") from None
    except YAMLError as error:
        raise ValueError(f"{path} is not YAML ({str(error).splitlines()[0]}); it was cut or edited.") from None
    validate(chain)
    return chain


def differences(old: Chain, new: Chain) -> list[str]:
    """The keys on which two chains' results depend and that differ, as `task.lr: 0.01 -> 0.1`."""
    before, after = _flat(old.science()), _flat(new.science())
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


# ---------------------------------------------------------------------------------------------- composing


def _compose(overrides: Sequence[str], check: Sequence[str] = ()) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        if check:
            _check_keys(check)
        try:
            return compose("config", overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(f"The overrides {' '.join(overrides)} do not compose: {reason}") from error


def _check_keys(overrides: Sequence[str]) -> None:
    """Refuse unknown keys and choices by name, with the nearest known ones."""
    from hydra import compose

    chosen, values = [], []
    for override in overrides:
        key, value = _split(override)
        if key == "method":
            raise ValueError(f"{override!r}: methods are chosen by the key `methods`, e.g. methods=[{value}].")
        if key in GROUPS:
            if value not in choices(key):
                hint = nearest(value, choices(key)) or "."
                raise ValueError(f"{key}={value} is unknown{hint} Known: {', '.join(choices(key))}.")
            chosen.append(override)
        else:
            values.append(key)
    if not values:
        return
    known = set(_keys(compose("config", overrides=chosen)))
    known |= {f"method.{key}" for method in choices("method") for key in _method_section(method)}
    for key in values:
        if _is_open(key) and "cluster.time.default" in known:
            continue  # any data set, any option of sbatch: slurm/profile.py checks them
        if key not in known:
            hint = nearest(key, [*known, *GROUPS]) or "."
            raise ValueError(f"The key {key!r} is unknown{hint} `--help` lists every key.")


def _is_open(key: str) -> bool:
    return key.lstrip("+").startswith(OPEN_KEYS) or key in ("cluster.time", "cluster.sbatch")


def _opened(override: str) -> str:
    """An override of an open section as Hydra adds a key: `cluster.time.digits=10` -> `++cluster.time.digits=10`."""
    key = override.partition("=")[0]
    return f"++{override.lstrip('+')}" if key.lstrip("+").startswith(OPEN_KEYS) else override


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is not of the form key=value, e.g. dataset=digits.")
    return key.strip(), value.strip()


def _overrides_for(method: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that reach one method: `method.KEY=VALUE` is for those of the sweep that have KEY."""
    own = {f"method.{key}" for key in _method_section(method)}
    return [o for o in overrides if not (key := _split(o)[0]).startswith("method.") or key in own]


def _check_method_overrides(overrides: Sequence[str], methods: Sequence[str]) -> None:
    """Refuse `method.KEY=VALUE` where no method of the sweep has KEY, and one name for several methods."""
    own = {f"method.{key}" for method in methods for key in _method_section(method)}
    for override in overrides:
        if override.startswith("method.") and (key := _split(override)[0]) not in own:
            hint = nearest(key, own) or "."
            raise ValueError(f"{key}: none of methods=[{','.join(methods)}] has this key{hint}")
        if override.startswith("method.name=") and len(methods) > 1:
            raise ValueError(f"{override} would name {len(methods)} methods alike: use it with one method.")


@cache
def _method_section(method: str) -> dict[str, Any]:
    """The section `method` of a method's YAML over those it starts from; jobs read it too, so without Hydra."""
    path = CONF / "method" / f"{method}.yaml"
    file: Any = OmegaConf.to_container(OmegaConf.load(path))
    section: dict[str, Any] = {}
    for parent in file.get("defaults", []):
        section |= _method_section(parent) if parent != "_self_" else {}
    section |= file.get("method", {})
    if "acquisition" not in section:
        raise ValueError(f"{path} has no method.acquisition, the name that the method is registered by in mal/methods.")
    return section


def _keys(config: DictConfig) -> list[str]:
    return list(_flat(OmegaConf.to_container(config)))  # type: ignore[arg-type]


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = value
    return flat


def _chain(composed: DictConfig, seed: int) -> Chain:
    section = {k: v for k, v in composed.items() if k not in SWEEP_KEYS} | {"seed": seed}
    chain = _structured(OmegaConf.create(section | {"initial": 1, "budget": 1}), "The configuration")
    _check_numbers(chain)
    pool = pool_size(chain.dataset)
    initial, budget = (_count(key, section[key], pool) for key in ("initial", "budget"))
    return replace(chain, initial=initial, budget=budget)


def _structured(config: Any, what: str) -> Chain:
    try:
        chain = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Chain), config))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} is not valid{f' at {key}' if key else ''}: {reason}") from None
    assert isinstance(chain, Chain)
    return chain


# ---------------------------------------------------------------------------------------------- checking


def validate(chain: Chain) -> None:
    """Refuse what cannot run, with a ValueError that names the key; the datasets' files are checked later."""
    _check_choices(chain)
    _check_numbers(chain)
    _file_name("name", chain.name)
    _check_method(chain.method)
    pool, needed = pool_size(chain.dataset), chain.initial + (chain.rounds - 1) * chain.budget
    if needed > pool:
        raise ValueError(
            f"rounds={chain.rounds} with initial={chain.initial} and budget={chain.budget} needs {needed} labels, but "
            f"the pool of {chain.dataset.name} has {pool} images: lower rounds, initial or budget."
        )
    if chain.method.get("query") == "discriminator" and not chain.minimax.discriminator:
        raise ValueError("method.query=discriminator needs D: set minimax.discriminator=true or another query rule.")


def _check_method(method: dict[str, Any]) -> None:
    _file_name("method.name", str(method.get("name")))
    acquisition, known = method.get("acquisition"), choices("method")
    if acquisition not in known or _method_section(str(acquisition))["acquisition"] != acquisition:
        own = [name for name in known if _method_section(name)["acquisition"] == name]
        hint = nearest(str(acquisition), own) or "."
        raise ValueError(f"method.acquisition={acquisition} is unknown{hint} Known: {', '.join(own)}.")
    check_method(method, _method_section(acquisition))


def _check_choices(chain: Chain) -> None:
    allowed = {
        "loader": ("memory",),
        "device": ("auto", "cpu", "cuda"),
        "precision": ("fp32", "bf16"),
        "dataset.task": tuple(PAPER_METHODS),
        "minimax.epoch_of": ("pool", "labelled"),
        "task.epoch_of": ("pool", "labelled"),
        "task.init": ("scratch", "from_f", "continue"),
        "task.optimizer": ("sgd", "adam"),
        "task.schedule": ("quarters", "cosine", "constant"),
    }
    values = _flat(asdict(chain))
    for key, names in allowed.items():
        if values[key] not in names:
            hint = nearest(str(values[key]), names) or "."
            raise ValueError(f"{key}={values[key]} is unknown{hint} Allowed: {', '.join(names)}.")


def _check_numbers(chain: Chain) -> None:
    values = _flat(asdict(chain))
    at_least = {"seed": 0, "rounds": 1, "initial": 1, "budget": 1, "threads": 0, "minimax.batch": 2, "task.batch": 2}
    at_least |= {"dataset.classes": 2, "dataset.minimum": 1, "dataset.pad_crop": 0}
    above: tuple[str, ...] = ("minimax.epochs", "minimax.temperature", "minimax.lr_f", "minimax.lr_c", "minimax.lr_d")
    above += ("task.epochs", "task.lr", "checkpoint_minutes", "collective_minutes")
    not_negative = ("minimax.entropy_weight", "minimax.weight_decay", "task.weight_decay", "task.momentum")
    for key, low in at_least.items():
        if values[key] < low:
            raise ValueError(f"{key}={values[key]} is too small: it must be at least {low}.")
    for key in above:
        if not 0 < values[key] < math.inf:
            raise ValueError(f"{key}={values[key]} is out of range: it must be above 0.")
    for key in not_negative:
        if not 0 <= values[key] < math.inf:
            raise ValueError(f"{key}={values[key]} is out of range: it must be 0 or above.")
    if len(chain.minimax.betas) != 2 or not all(0 <= beta < 1 for beta in chain.minimax.betas):
        raise ValueError(f"minimax.betas={chain.minimax.betas} must be two numbers from 0 to below 1.")
    if not all(0 < ratio <= 1 for ratio in chain.dataset.imbalance or []):
        raise ValueError(
            f"dataset.imbalance={chain.dataset.imbalance} must be fractions of a class above 0, at most 1."
        )
    if chain.dataset.pool is not None and not chain.dataset.classes <= chain.dataset.pool <= chain.dataset.train:
        raise ValueError(
            f"dataset.pool={chain.dataset.pool} is out of range: {chain.dataset.name} has {chain.dataset.train} "
            f"training images of {chain.dataset.classes} classes."
        )


def pool_size(dataset: Dataset) -> int:
    """Images in the pool, from the specification alone; an upper bound where classes are of unequal size."""
    images = dataset.pool or dataset.train
    if not dataset.imbalance:
        return images
    per_class, share = images / dataset.classes, dataset.classes / len(dataset.imbalance)
    return math.ceil(share * sum(max(dataset.minimum, ratio * per_class) + 1 for ratio in dataset.imbalance))


def _count(key: str, value: Any, pool: int) -> int:
    """A number of labels: as given, or a fraction of the pool where below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(
            f"{key}={value} is not a number of labels: give one above 0, or a fraction of the pool below 1."
        )
    if value < 1:
        return max(1, int(value * pool + 1e-9))  # 0.29 of 100 are 29, whatever floating point makes of them
    if value != int(value):
        raise ValueError(f"{key}={value} is neither a whole number of labels nor a fraction below 1.")
    if value > pool:
        raise ValueError(f"{key}={int(value)} is more than the {pool} images of the pool.")
    return int(value)


def _seeds(value: Any) -> list[int]:
    seeds = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    if not OmegaConf.is_list(seeds) and not isinstance(seeds, list):
        raise ValueError(f"seeds={value} is neither a number of seeds nor a list: e.g. seeds=3 or seeds=[0,4,7].")
    seeds = list(seeds)
    if not seeds:
        raise ValueError(f"seeds={value} asks for no seed: give at least 1, e.g. seeds=3.")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seeds={value}: {seed!r} is not a seed, which is a whole number from 0.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={value} names a seed twice.")
    return seeds


def _methods(base: DictConfig) -> list[str]:
    known = choices("method")
    if base.methods is None:
        return [name for name in PAPER_METHODS[base.dataset.task] if name in known]
    if not isinstance(base.methods, str) and not OmegaConf.is_list(base.methods):
        raise ValueError(f"methods={base.methods} is no list of names: e.g. methods=[mal,random].")
    methods = [base.methods] if isinstance(base.methods, str) else list(base.methods)
    if not methods:
        raise ValueError("methods=[] asks for no method: e.g. methods=[mal,random].")
    for name in methods:
        if name not in known:
            hint = nearest(str(name), known) or "."
            raise ValueError(f"methods: {name!r} is unknown{hint} Known: {', '.join(known)}.")
    if len(set(methods)) < len(methods):
        raise ValueError(f"methods=[{','.join(methods)}] names a method twice.")
    return methods


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value} is neither true nor false.")
    return value


def _file_name(key: str, value: Any) -> str:
    text = str(value)
    if not text or text[0] in ".-" or not all(c.isalnum() or c in "._-" for c in text):
        raise ValueError(f"{key}={text!r} cannot be the name of a folder: use letters, digits, '.', '_' and '-'.")
    return text
