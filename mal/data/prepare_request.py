"""What `python -m mal.data.prepare` is asked for: a data set's specification, where, and how its images are stored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mal.config.compose import compose_sweep
from mal.config.conf_folders import choices, own_folder
from mal.config.frozen import load_chain
from mal.config.options import parse_boolean, parse_options
from mal.config.registry import nearest
from mal.config.schema import Chain
from mal.config.schema import Dataset as Spec
from mal.data.ffcv.beton import Compression
from mal.data.ffcv.prepared import MODES
from mal.run.folder import CONFIG

DEFAULTS = {
    "dataset": "",
    "chain": "",
    "source": "",
    "data": "data",
    "mode": "raw",
    "quality": "90",
    "share": "0.5",
    "workers": "0",
    "verify": "false",
    "skip_corrupt": "false",
    "replace": "false",
}
OF_A_CHAIN = ("chain", "workers", "verify")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    spec: Spec
    data: Path
    compression: Compression
    workers: int
    verify: bool
    skip_corrupt: bool
    replace: bool


def read_request(arguments: Sequence[str]) -> Request:
    """The request that the arguments give; ValueError naming the key that is wrong."""
    own, arguments = own_folder(arguments)
    of_dataset = [argument for argument in arguments if argument.startswith("dataset.")]
    options = parse_options([argument for argument in arguments if argument not in of_dataset], DEFAULTS)
    if options["chain"]:
        if strange := [key for key, value in options.items() if value != DEFAULTS[key] and key not in OF_A_CHAIN]:
            raise ValueError(f"{strange[0]}= does not go with chain=, whose config.yaml says it.")
        workers = int(_number(options, "workers", 0, 4096, whole=True))
        request = request_for(load_chain(Path(options["chain"]) / CONFIG), workers or len(os.sched_getaffinity(0)))
        return replace(request, verify=parse_boolean("verify", options["verify"]))
    if not options["dataset"]:
        raise ValueError(f"dataset= is not given. Known: {', '.join(choices('dataset', own))}.")
    if options["mode"] not in MODES:
        hint = nearest(options["mode"], MODES) or "."
        raise ValueError(f"mode={options['mode']} is unknown{hint} Allowed: {', '.join(MODES)}.")
    if options["source"]:
        of_dataset.append(f"dataset.root={options['source']}")
    of_dataset += [f"conf={own}"] if own else []
    fixed = ["methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1"]
    spec = compose_sweep([f"dataset={options['dataset']}", *of_dataset, *fixed]).chains[0].dataset
    if spec.train_images and options["source"]:
        raise ValueError("source= is for one folder: this dataset has dataset.train_images and dataset.test_images.")
    compression = Compression(
        options["mode"], int(_number(options, "quality", 1, 100, whole=True)), _number(options, "share", 0, 1)
    )
    if spec.channels != 3 and compression.mode != "raw":
        raise ValueError(f"mode={compression.mode}: images of {spec.name} are grey, which FFCV stores raw only.")
    workers = int(_number(options, "workers", 0, 4096, whole=True)) or len(os.sched_getaffinity(0))
    switches = {key: parse_boolean(key, options[key]) for key in ("verify", "skip_corrupt", "replace")}
    switches["skip_corrupt"] |= spec.skip_corrupt
    return Request(spec, Path(options["data"]), compression, workers, **switches)


def request_for(config: Chain, workers: int) -> Request:
    """The copy that a chain reads."""
    quality, share = int(DEFAULTS["quality"]), float(DEFAULTS["share"])
    compression = Compression(config.dataset.prepared, quality, share)
    return Request(config.dataset, Path(config.data), compression, workers, False, False, False)


def _number(options: dict[str, str], key: str, low: float, high: float, whole: bool = False) -> float:
    try:
        value = float(options[key])
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (whole and value != int(value)):
        kind = "whole number" if whole else "number"
        raise ValueError(f"{key}={options[key]} must be a {kind} from {low:g} to {high:g}.")
    return value
