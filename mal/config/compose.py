"""From command-line overrides to a sweep: composed by Hydra from mal/conf, checked before anything is started.

Importing this module imports neither torch nor Hydra.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mal.config.as_written import as_written
from mal.config.checks import check_numbers, file_name, method_section, pool_size, validate
from mal.config.choices import CHOICES
from mal.config.conf_folders import CONF, DEFAULT, GROUPS, TEMPLATE, choices, own_folder
from mal.config.counting import count_images
from mal.config.feature_sets import as_features
from mal.config.frozen import structured
from mal.config.people import one_seed
from mal.config.registry import nearest
from mal.config.schema import START, Chain, Dataset, flat
from mal.config.sizes import image_bytes, memory_limit
from mal.config.tuning import Variants, check_seeds, check_variant, draw_trials

# What the paper compares for each task, in its order (Section 4, Baselines), as far as a YAML is there.
PAPER_METHODS = {
    "classification": ("mal", "vaal", "coreset", "entropy", "bald", "random"),
    "segmentation": ("mal", "vaal", "entropy", "random"),
}
CHECKS = ("full", "headers", "none")
MAPPINGS = ("variants", "tuning")  # to which any name may be added, also where a preset has some
OPEN_KEYS = ("cluster.time.", "cluster.sbatch.")  # a cluster profile's sections that take any key
# Names and paths, taken as they are written.
TEXT_KEYS = {
    prefix + each.name
    for prefix, section in (("", Chain), ("dataset.", Dataset))
    for each in fields(section)
    if str(each.type) in ("str", "str | None")
}
SWEEP_KEYS = (
    *("conf", "methods", "variants", "tune", "tuning", "seeds", "cluster", "check", "dry_run", "retry", "prepare"),
    *("oracle", "watch"),
    "features",
    *("tasks", "ranges"),  # of a method's file
)


@dataclass
class Sweep:
    """What one launch asks for: the chains, and how to run them.

    variants: what each method is, by its name; prepare: whether a prepared copy may be made; loader: as asked for;
    chains have `auto` only where the data set is too large for memory; watch: whether to go on as labels come in.
    tuning: the grids of the preset by method.
    """

    name: str
    runs: Path
    methods: list[str]
    variants: Variants
    seeds: list[int]
    cluster: dict[str, Any]
    dry_run: bool
    retry: bool
    check: str = "headers"
    prepare: bool = True
    loader: str = "auto"
    watch: bool = False
    tuning: dict[str, Any] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)


def compose_sweep(overrides: Sequence[str]) -> Sweep:
    """The sweep that command-line overrides ask for, checked.

    Raises ValueError that names the value, what is allowed and the key to change.
    """
    own, others = own_folder(overrides)
    overrides = [_as_meant(override) for override in others]
    if any(o.startswith("features=") for o in overrides) and not any(o.startswith("backbone=") for o in overrides):
        overrides = ["backbone=mlp", *overrides]
    base = _compose([o for o in overrides if not o.startswith("method.")], own, check=overrides)
    if base.conf is not None:
        raise ValueError(f"conf={base.conf} is set by a file: give it on the command line.")
    if base.oracle not in (known := CHOICES["dataset.oracle"]):
        raise ValueError(f"oracle={base.oracle} is unknown. Allowed: {', '.join(map(str, known))}.")
    seeds = one_seed(_seeds(base.seeds), overrides) if base.oracle == "files" else _seeds(base.seeds)
    variants = _variants(base, own)
    name = base.name or base.dataset.name
    if base.tune:
        variants, name = _trials(base, variants, seeds, own), f"{name}-tuning"
    if base.check not in CHECKS:
        hint = nearest(str(base.check), CHECKS) or "."
        raise ValueError(f"check={base.check} is unknown{hint} Allowed: {', '.join(CHECKS)}.")
    methods = list(variants)
    section: Any = OmegaConf.to_container(base.dataset, resolve=True)
    if base.features is None and section["source"] == "features":
        raise ValueError(
            f"dataset={section['name']} is of a frozen encoder's features: give their folder, features=DIR."
        )
    dataset = as_features(section, str(base.features)) if base.features is not None else count_images(section)
    _check_method_overrides(overrides, [variant["method"] for variant in variants.values()], own)
    sweep = Sweep(
        name=file_name("name", name),
        runs=Path(str(base.runs)),
        methods=methods,
        variants=variants,
        seeds=seeds,
        cluster=_cluster(base.cluster, overrides, own),
        check=str(base.check),
        dry_run=_boolean("dry_run", base.dry_run),
        retry=_boolean("retry", base.retry),
        prepare=_prepare(base.prepare),
        loader=str(base.loader),
        watch=_watch(base),
        tuning=_section(base, "tuning"),
    )
    for method, variant in variants.items():
        composed = _compose_variant(method, variant, overrides, own)
        composed.name, composed.dataset = sweep.name, dataset
        chain = _chain(composed, seeds[0])  # the others differ by their seed alone
        validate(chain)
        sweep.chains += [replace(deepcopy(chain), seed=seed) for seed in seeds]
    return sweep


def _cluster(section: DictConfig, overrides: Sequence[str], own: Path | None) -> dict[str, Any]:
    """The section `cluster`, its words and times as the profile's file has them."""
    plain: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    chosen = [value for key, value in map(_split, overrides) if key == "cluster"]
    return as_written(plain, chosen[-1] if chosen else str(plain.get("name")), own)


def _compose(overrides: Sequence[str], own: Path | None, check: Sequence[str] = ()) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException, OverrideParseException

    search = [f"hydra.searchpath=[{_quoted(f'file://{own}')}]"] if own else []
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        try:
            if check:
                _check_keys(check, own, search)
            return compose("config", overrides=[*search, *overrides])
        except OverrideParseException as error:
            raise ValueError(_unreadable(error.override)) from None
        except (HydraException, OmegaConfBaseException) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(f"The overrides {' '.join(overrides)} do not compose: {reason}") from error
        except YAMLError as error:
            raise ValueError(f"A file is not YAML: {' '.join(str(error).split())}.") from None


def _quoted(text: str) -> str:
    """A text with any characters as a value of an override."""
    # Hydra reads a backslash as one where no quote follows.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"


def _compose_variant(name: str, variant: dict[str, Any], overrides: Sequence[str], own: Path | None) -> DictConfig:
    """The configuration of one method; what the command line says goes before what its variant does."""
    method = variant["method"]
    check_variant(name, variant, ("dataset", "name", "runs", *SWEEP_KEYS))
    keys = [f"{key}={_text(value)}" for key, value in variant.items() if key != "method"]
    _check_method_overrides(keys, [method], own)
    groups = [o for o in overrides if _split(o)[0] in GROUPS]
    composed = _compose(variant_overrides(variant, overrides, own), own, check=[*groups, *keys] if keys else ())
    if name != method:
        composed.method.name = file_name("variants", name)
    return composed


def variant_overrides(variant: dict[str, Any], overrides: Sequence[str], own: Path | None) -> list[str]:
    """Hydra's overrides for one method, in the order in which they act; own: the user's folder of files."""
    method = variant["method"]
    given = _overrides_for(method, overrides, own)
    keys = [f"{key}={_text(value)}" for key, value in variant.items() if key != "method"]
    groups = [o for o in given if _split(o)[0] in GROUPS]
    return [*groups, f"method={method}", *keys, *(o for o in given if o not in groups)]


def _unreadable(override: str) -> str:
    """What to say of an override that Hydra's grammar does not take."""
    key, _, value = override.partition("=")
    quoted = "" if "'" in value else f" Put the value in quotes within quotes: \"{key}='{value}'\"."
    return f"{override!r} cannot be read.{quoted}"


def _text(value: Any) -> str:
    """A value as an override writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_keys(overrides: Sequence[str], own: Path | None, search: Sequence[str]) -> None:
    """Refuse unknown keys and choices by name, with the nearest known ones."""
    from hydra import compose

    chosen, values = [], []
    for override in overrides:
        key, value = _split(override)
        if key == "method":
            raise ValueError(f"{override!r}: methods are chosen by the key `methods`, e.g. methods=[{value}].")
        if key in GROUPS:
            _refuse_template(key, value, own)
            if value not in (known := choices(key, own)):
                hint = nearest(value, known) or "."
                raise ValueError(f"{key}={value} is unknown{hint} Known: {', '.join(known)}.")
            chosen.append(override)
        else:
            values.append(key)
    if not values:
        return
    keys = set(_keys(compose("config", overrides=[*search, *chosen])))
    keys |= {f"method.{key}" for method in choices("method", own) for key in method_section(method, own)}
    for key in values:
        if key.lstrip("+") in MAPPINGS:
            continue
        if _is_open(key) and "cluster.time.default" in keys:
            continue  # any data set, any option of sbatch: slurm/profile.py checks them
        if key not in keys:
            ends_so = [name for name in sorted(keys, reverse=True) if name.rpartition(".")[2] == key]
            hint = f"; did you mean {' or '.join(ends_so)}?" if ends_so else nearest(key, [*keys, *GROUPS]) or "."
            raise ValueError(f"The key {key!r} is unknown{hint} `--help` lists every key.")


def _refuse_template(group: str, value: str, own: Path | None) -> None:
    path, copy = CONF / group / f"{TEMPLATE}.yaml", (own or DEFAULT) / group / "MINE.yaml"
    if value == TEMPLATE and path.is_file():
        raise ValueError(
            f"{group}={value} is a file to copy, not a choice: copy {path} to {copy}, keep the keys you need, and "
            f"launch with {group}=MINE."
        )


def _is_open(key: str) -> bool:
    return key.lstrip("+").startswith(OPEN_KEYS) or key in ("cluster.time", "cluster.sbatch")


def _as_meant(override: str) -> str:
    """An override in Hydra's grammar: `cluster.time.digits=10` adds a key, and `name=007` or `data=/a=b` is text."""
    key, _, value = override.partition("=")
    if key.lstrip("+").startswith(OPEN_KEYS) or key in MAPPINGS:
        return f"++{override.lstrip('+')}"
    plain = value not in ("", "null") and value[0] not in "'\"[{"
    return f"{key}={_quoted(value)}" if key in TEXT_KEYS and plain else override


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is not of the form key=value, e.g. dataset=digits.")
    return key.strip(), value.strip()


def _overrides_for(method: str, overrides: Sequence[str], own: Path | None) -> list[str]:
    """The overrides that reach one method: `method.KEY=VALUE` is for those of the sweep that have KEY."""
    keys = {f"method.{key}" for key in method_section(method, own)}
    return [o for o in overrides if not (key := _split(o)[0]).startswith("method.") or key in keys]


def _check_method_overrides(overrides: Sequence[str], methods: Sequence[str], own: Path | None) -> None:
    """Refuse `method.KEY=VALUE` where no method of the sweep has KEY, and one name for several methods."""
    keys = {f"method.{key}" for method in methods for key in method_section(method, own)}
    for override in overrides:
        if override.startswith("method.") and (key := _split(override)[0]) not in keys:
            hint = nearest(key, keys) or "."
            raise ValueError(f"{key}: none of methods=[{','.join(methods)}] has this key{hint}")
        if override.startswith("method.name=") and len(methods) > 1:
            raise ValueError(f"{override} would name {len(methods)} methods alike: use it with one method.")


def _keys(config: DictConfig) -> list[str]:
    sections = {key: value for key, value in config.items() if key not in ("tasks", "ranges")}  # of a method's YAML
    return list(flat(OmegaConf.to_container(OmegaConf.create(sections))))  # type: ignore[arg-type]


def _chain(composed: DictConfig, seed: int) -> Chain:
    section = {k: v for k, v in composed.items() if k not in SWEEP_KEYS} | {"seed": seed}
    if isinstance(section["tracker"], str):
        section["tracker"] = [section["tracker"]]
    chain = structured(OmegaConf.create(section | {"initial": 1, "budget": 1}), "The configuration")
    chain.backbone = {k: v for k, v in chain.backbone.items() if k not in START or v != START[k]}
    if "image_size" in chain.backbone:
        chain.backbone["image_size"] = chain.backbone["image_size"] or chain.dataset.crop or chain.dataset.size
    check_numbers(chain)
    pool = pool_size(chain.dataset)
    initial, budget = (_count(key, section[key], pool) for key in ("initial", "budget"))
    small = chain.loader == "auto" and image_bytes(chain.dataset) <= memory_limit(chain.dataset)
    return replace(chain, initial=initial, budget=budget, loader="memory" if small else chain.loader)


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


def _methods(base: DictConfig, known: Sequence[str]) -> list[str]:
    if base.methods is None:
        return [name for name in PAPER_METHODS[base.dataset.task] if name in known]
    if not isinstance(base.methods, str) and not OmegaConf.is_list(base.methods):
        raise ValueError(f"methods={base.methods} is not a list of names: e.g. methods=[mal,random].")
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


def _variants(base: DictConfig, own: Path | None) -> Variants:
    """The sweep's methods by name, each with what sets it apart: nothing, or the keys under `variants`."""
    known = choices("method", own)
    variants = _section(base, "variants")
    for name, variant in variants.items():
        method = variant.get("method") if isinstance(variant, dict) else None
        if method not in known:
            raise ValueError(
                f"variants.{name}={variant} names no method: e.g. variants={{mal_1:{{method:mal,task.lr:1}}}}."
            )
    plain = {method: {"method": method} for method in known}
    return {name: variants.get(name) or plain[name] for name in _methods(base, [*known, *(set(variants) - set(known))])}


def _trials(base: DictConfig, methods: Variants, seeds: list[int], own: Path | None) -> Variants:
    if isinstance(base.tune, bool) or not isinstance(base.tune, int) or base.tune < 0:
        raise ValueError(f"tune={base.tune} is not a number of trials for each method: e.g. tune=8, 0 for none.")
    space, known = _section(base, "tuning"), ["all", *choices("method", own), *_section(base, "variants")]
    for name, grid in space.items():
        if name not in known:
            raise ValueError(f"tuning.{name}: there is no such method{nearest(name, known) or '.'}")
        if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
            raise ValueError(f"tuning.{name}={grid} is not a grid: give each key a list, e.g. {{task.lr:[0.01,0.1]}}.")
    if not space:
        raise ValueError(
            "tune needs a grid under `tuning`: choose a preset that has one, e.g. experiment=study_digits."
        )
    check_seeds(seeds)
    return draw_trials(space, methods, base.tune)


def _section(base: DictConfig, key: str) -> dict[str, Any]:
    if base[key] is not None and not OmegaConf.is_dict(base[key]):
        raise ValueError(f"{key}={base[key]} is not a section: it holds names, and keys with their values under each.")
    section = OmegaConf.to_container(base[key]) if base[key] is not None else {}
    return {str(name): value for name, value in section.items()}  # type: ignore[union-attr]


def _prepare(value: Any) -> bool:
    if value not in ("auto", True, False):
        raise ValueError(f"prepare={value} is unknown. Allowed: auto, false.")
    return value is not False


def _watch(base: DictConfig) -> bool:
    if (watch := _boolean("watch", base.watch)) and base.oracle != "files":
        raise ValueError("watch=true waits for labels from people: set oracle=files, or leave it out.")
    return watch


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value} is neither true nor false.")
    return value
