"""Runs the checks one by one and notes what each found; what they share: a device, configurations, made-up batches."""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.config.schema import Dataset as Spec
from mal.data.augment import Augmentation, build_augmentation
from mal.data.loader import MemoryLoader
from mal.process.device import Device, prepare_device
from mal.training.objective import Inputs

Found = dict[str, Any]
Check = tuple[float, Callable[["Bench"], Found]]
"""Seconds that must be left for it, and what it does: what it found, or AssertionError saying what does not hold."""


@dataclass(frozen=True)
class Bench:
    """What the checks run on. kind: cuda or cpu; work: a folder of theirs."""

    kind: str
    work: Path

    @property
    def cuda(self) -> bool:
        """Whether this is no rehearsal."""
        return self.kind == "cuda"

    def chain(self, *words: str, method: str = "mal", seed: int = 0) -> Chain:
        """A configuration for the device."""
        fixed = [f"methods=[{method}]", f"seeds=[{seed}]", f"device={self.kind}"]
        return compose_sweep([*fixed, *words]).chains[0]

    def environment(self, **changes: str) -> dict[str, str]:
        """Of processes that a check starts."""
        return {**os.environ, "PYTHONUNBUFFERED": "1", **changes}


class Data:
    """Noise of a data set's shapes, with a loader and the augmentation of training."""

    def __init__(self, spec: Spec, count: int, device: Device) -> None:
        random, maps = np.random.default_rng(0), spec.task == "segmentation"
        self.images = random.integers(0, 256, (count, spec.channels, spec.size, spec.size), dtype=np.uint8)
        labels = random.integers(0, spec.classes, (count, spec.size, spec.size) if maps else count)
        self.labels = labels.astype(np.uint8 if maps else np.int64)
        if maps:
            self.labels[:, :5] = 255
        half = np.full(spec.channels, 0.5)
        self.augmentation: Augmentation = build_augmentation(spec, half, half, device.torch)
        self.loader = MemoryLoader(self.images, self.labels, device.torch)

    def inputs(self, first: int, last: int, key: tuple[int | str, ...] = (0,)) -> Inputs:
        """Those from `first` to before `last`, augmented as the key says."""
        got = self.loader.load(np.arange(first, last))
        maps = got.labels.ndim == 3
        labels = self.augmentation.train_maps(got.labels, key) if maps else got.labels
        return Inputs(self.augmentation.train(got.images, key), labels)


def placed(bench: Bench, *words: str, method: str = "mal") -> tuple[Chain, Device]:
    """A configuration and its device, made repeatable."""
    config = bench.chain(*words, method=method)
    return config, prepare_device(config)


def digest(*things: nn.Module | torch.Tensor) -> str:
    """A hash of networks' states and of tensors."""
    sha = hashlib.sha256()
    for thing in things:
        for value in thing.state_dict().values() if isinstance(thing, nn.Module) else [thing]:
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def run_all(checks: Sequence[Check], bench: Bench, out: Path, seconds: float, only: Sequence[str]) -> int:
    """Run them within so many seconds; the number of those that failed."""
    out.mkdir(parents=True, exist_ok=True)
    began, found = time.monotonic(), {}
    for needed, function in checks:
        name = function.__name__
        if only and name not in only:
            continue
        left = seconds - (time.monotonic() - began)
        found[name] = _run(function, bench) if left >= needed else {"verdict": "NO TIME"}
        told = {key: value for key, value in found[name].items() if key != "at"}
        print(name, json.dumps(told), flush=True)
        device = torch.cuda.get_device_name() if bench.cuda and torch.cuda.is_available() else bench.kind
        text = json.dumps({"device": device, "torch": torch.__version__, "checks": found}, indent=1)
        (out / "gpu.json").write_text(text + "\n")
    verdicts = [each["verdict"] for each in found.values()]
    failed = [name for name, each in found.items() if each["verdict"] == "FAIL"]
    print(f"{verdicts.count('PASS')} passed, {len(failed)} failed {failed}, {verdicts.count('NO TIME')} left out")
    return len(failed)


def _run(function: Callable[[Bench], Found], bench: Bench) -> Found:
    began = time.monotonic()
    try:
        told = {"verdict": "PASS", **function(bench)}
    except Exception as error:  # the others tell something all the same
        why = f"{type(error).__name__}: {error}"[:1500]
        told = {"verdict": "FAIL", "why": why, "at": traceback.format_exc()[-1500:]}
    if bench.cuda and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return told | {"seconds": round(time.monotonic() - began, 1)}
