"""What `show_config=METHOD` prints: all that a method's chains would run with, and where each value comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from mal.config.compose import compose_sweep, variant_overrides
from mal.config.conf_folders import CONF, own_folder, yaml_path
from mal.config.registry import nearest
from mal.config.schema import flat

KEY = "show_config"
COMMAND_LINE = "the command line"


def asked(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The method to show ("" where none is asked for), and the other arguments."""
    shown = [a.partition("=")[2] for a in arguments if a.partition("=")[0] == KEY]
    return (shown[-1] or "?") if shown else "", [a for a in arguments if a.partition("=")[0] != KEY]


def show(method: str, arguments: Sequence[str]) -> str:
    """The configuration of the method's chains as YAML, the source of each value behind it.

    Raises ValueError where the sweep has no such method.
    """
    sweep = compose_sweep(arguments)
    if method not in sweep.variants:
        hint = nearest(method, sweep.methods) or "."
        raise ValueError(f"{KEY}={method}: the sweep has no such method{hint} It has: {', '.join(sweep.methods)}.")
    values = asdict(sweep.chains[sweep.methods.index(method) * len(sweep.seeds)])  # the chains of its seeds are alike
    sources = _sources(method, sweep.variants[method], arguments)
    sources |= {"seed": sources["seeds"]}
    counted = {f"dataset.{key}" for key in ("classes", "train", "test") if values["dataset"]["train_images"]}
    told = {key: sources.get(key, "its default in mal/config") for key in flat(values)}
    told |= {key: "counted in its folders" for key in counted if sources.get(key) != COMMAND_LINE}
    return _beside(OmegaConf.to_yaml(OmegaConf.create(values)).splitlines(), told)


def _sources(method: str, variant: dict[str, object], arguments: Sequence[str]) -> dict[str, str]:
    """Key -> the file that sets it last, `variants` or the command line."""
    from hydra import initialize_config_dir
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    own, others = own_folder(arguments)
    given = variant_overrides(variant, others, own)
    found: dict[str, str] = {}
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if own:
            assert isinstance(loader, ConfigLoaderImpl)
            loader.get_search_path().append("conf=", f"file://{own}")
            loader.repository.initialize_sources(loader.get_search_path())
        order = loader.compute_defaults_list("config", given, RunMode.RUN).defaults
        for default in order:
            group, _, name = (default.config_path or "").rpartition("/")
            path = yaml_path(group, name, own)
            if default.config_path is None or not path.is_file():
                continue  # Hydra's own
            section: Any = OmegaConf.to_container(OmegaConf.load(path))
            prefix = f"{default.package}." if default.package else ""
            keys = flat({key: value for key, value in section.items() if key != "defaults"}, prefix)
            found |= dict.fromkeys(keys, f"conf/{default.config_path}.yaml")
    found |= {key: f"variants.{method}" for key in variant if key != "method"}
    return found | {a.partition("=")[0].lstrip("+"): COMMAND_LINE for a in arguments}


def _beside(lines: Sequence[str], sources: dict[str, str]) -> str:
    """YAML with a comment behind the line of each key."""
    path: list[str] = []
    shown = []
    width = min(60, max(len(line) for line in lines) + 2)
    for line in lines:
        key, colon, _ = line.strip().partition(":")
        depth = (len(line) - len(line.lstrip())) // 2
        if line.lstrip().startswith("- ") or not colon:
            shown.append(line)
            continue
        path = [*path[:depth], key]
        source = sources.get(".".join(path))
        shown.append(f"{line:<{width}}# {source}" if source else line)
    return "\n".join(shown)
