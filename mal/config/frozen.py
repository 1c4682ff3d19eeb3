"""A chain's configuration as its config.yaml: written at launch, read back by its jobs, compared at the next launch."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mal.config.checks import validate
from mal.config.schema import Chain, deciding, flat, newer

# Chains of a sweep differ in the seed, thousands of times: what is read or written once holds for all seeds.
_SEED = re.compile(r"^seed: (\d+)$", re.MULTILINE)
_written: dict[str, str] = {}
_read: dict[str, Chain] = {}


def save_chain(chain: Chain) -> str:
    """The YAML of a chain's configuration."""
    key = repr(replace(chain, seed=0))
    if key not in _written:
        _written[key] = OmegaConf.to_yaml(OmegaConf.create(asdict(chain)))
    return _SEED.sub(f"seed: {chain.seed}", _written[key])


def amended(path: Path, chain: Chain) -> str:
    """The YAML of a chain that was launched before, with the values that are others now and nothing else changed.

    Its jobs in the queue may run older code, which knows neither keys added since nor another spelling.
    """
    frozen = OmegaConf.load(path)
    before, now = flat(asdict(load_chain(path))), flat(asdict(chain))
    for key in now:
        if before.get(key) != now[key]:
            OmegaConf.update(frozen, key, now[key], force_add=True)
    return OmegaConf.to_yaml(frozen)


def load_chain(path: Path) -> Chain:
    """The configuration that a chain was launched with; ValueError where the file is not one."""
    try:
        text = path.read_text()
        seeds, key = _SEED.findall(text), _SEED.sub("seed: 0", text)
        if len(seeds) == 1 and key in _read:
            return replace(copy.deepcopy(_read[key]), seed=int(seeds[0]))
        chain = structured(OmegaConf.load(io.StringIO(text)), str(path))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: launch the chain with sweeps/launch.py first.") from None
    except YAMLError as error:
        raise ValueError(f"{path} is not YAML ({str(error).splitlines()[0]}); it was cut or edited.") from None
    validate(chain)
    _read[key] = copy.deepcopy(chain)
    return chain


def plain(path: Path) -> dict[str, Any]:
    """A configuration as it stands in its file, of any version; the seed is not looked at. Errors: YAMLError."""
    return _plain(_SEED.sub("seed: 0", path.read_text()))


@cache
def _plain(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def differences(old: Chain, new: Chain) -> list[str]:
    """The keys on which two chains' results depend and that differ, as `task.lr: 0.01 -> 0.1`."""
    before, after = flat(asdict(old)), flat(asdict(new))
    if new.loader in old.loaders():
        before["loader"] = new.loader
    keys = [key for key in deciding(before) | deciding(after) if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def structured(config: Any, what: str) -> Chain:
    """A configuration with its types checked, or ValueError naming the key; what: whose it is, for the message."""
    try:
        chain = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Chain), config))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} is not valid{f' at {key}' if key else ''}: {reason}") from None
    assert isinstance(chain, Chain)
    chain.method = newer("method", chain.method)
    return chain
