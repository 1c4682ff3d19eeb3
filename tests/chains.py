"""What several test modules need: small configurations, tiny data, and commands run as a person runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mal.chain import run_chain
from mal.config.compose import compose_sweep
from mal.config.frozen import save_chain
from mal.config.schema import Chain
from mal.data.augment import Augmentation
from mal.data.loader import MemoryLoader
from mal.files import write_atomic
from mal.process.device import Device
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.run.heartbeat import Progress
from mal.run.windows import FILE
from mal.training.loop import Trainer

ROOT = Path(__file__).resolve().parent.parent
CPU = Device(torch.device("cpu"), bf16=False)
# A second of work a round: small images, a narrow network, few steps.
SMALL = (
    "dataset=digits",
    "backbone=small_cnn",
    "backbone.width=4",
    "backbone.bottleneck=16",
    "backbone.discriminator=16",
    "threads=1",
)
SHORT = (*SMALL, "rounds=2", "initial=20", "budget=20", "minimax.epochs=0.5", "task.epochs=0.5", "device=cpu")
# Not the recipe of the data set, which may change: golden losses are those of these settings.
SHORT = (*SHORT, "dataset.pad_crop=0", "minimax.lr_c=0.001", "minimax.weight_decay=0.0", "task.lr=0.001")
SHORT = (*SHORT, "floor=off")  # importing scikit-learn takes longer than such a round

torch.set_num_threads(1)


class StopsAt(Interrupt):
    """Asked to stop at the n-th time that somebody looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    @property
    def requested(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.cause = "a test"
        return self.cause is not None


@cache
def _composed(overrides: tuple[str, ...]) -> tuple[Chain, ...]:
    return tuple(compose_sweep(overrides).chains)


def chain_config(*overrides: str, method: str = "mal", seed: int = 0) -> Chain:
    """One chain's configuration: digits, short, with `overrides` on top."""
    (chain,) = _composed((*SHORT, f"methods=[{method}]", f"seeds=[{seed}]", *overrides))
    return chain


def write_chain(runs: Path, config: Chain) -> Path:
    """Put a configuration where a job reads it; the chain's folder."""
    folder = run_folder.chain_folder(runs, config.name, config.method["name"], config.seed)
    write_atomic(folder / run_folder.CONFIG, save_chain(config).encode())
    return folder


def has_trained(folder: Path, phase: str) -> bool:
    """Whether a chain has done a step of a phase; a stop before the first has nothing to save."""
    windows = folder / FILE
    return windows.exists() and f'"phase": "{phase}"' in windows.read_text()


def plain_augmentation(**changes: Any) -> Augmentation:
    """No flip, no crop, pixels divided by 255."""
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    return Augmentation(**({"flip": False, "crop": None, "pad_crop": 0, "mean": zero, "std": one} | changes))


def made_up_images(count: int, channels: int = 1, size: int = 8, seed: int = 0) -> np.ndarray:
    """uint8 (count, channels, size, size), noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def trainer_in(folder: Path, loader: MemoryLoader, interrupt: Interrupt | None = None, **changes: Any) -> Trainer:
    """A trainer of round 0 that keeps its state under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(folder, 0, interrupt or Interrupt())
    arguments: dict[str, Any] = {
        "folder": folder / run_folder.CHECKPOINT,
        "identity": "a configuration",
        "key": (0, 0),
        "loader": loader,
        "augmentation": plain_augmentation(),
        "device": CPU,
        "progress": progress,
        "checkpoint_seconds": 3600.0,
    }
    return Trainer(**(arguments | changes))


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: one thread, nothing left over from a launcher around the tests."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MAL_LAUNCHER", "CUDA_VISIBLE_DEVICES")}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | changes


def python(*arguments: str | Path, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python with `arguments` and wait for it."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, **options)


def run_chain_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m mal.chain FOLDER`, to its end."""
    return python("-m", "mal.chain", folder, *arguments)


def launch(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python sweeps/launch.py ...`, to its end."""
    return python(ROOT / "sweeps" / "launch.py", *arguments, cwd=cwd)


def outcome(folder: Path) -> dict[str, Any]:
    """What a chain arrived at and an interruption must not change: every round's indices (bytes) and metric values."""
    found: dict[str, Any] = {}
    for round_folder in run_folder.round_folders(folder):
        committed = run_folder.read_round(round_folder)
        found[round_folder.name] = {
            "labeled": (round_folder / run_folder.LABELED).read_bytes(),
            "query": (round_folder / run_folder.QUERY).read_bytes() if committed.query is not None else None,
            "value": committed.metrics["value"],
            "per_class": committed.metrics["per_class"],
            "query_classes": committed.metrics.get("query_classes"),
            "history": (round_folder / run_folder.HISTORY).read_bytes(),
        }
    return found


def losses(folder: Path) -> dict[str, list[float]]:
    """Every loss of every round and phase, by name."""
    found = {}
    for round_folder in run_folder.round_folders(folder):
        for phase, history in json.loads((round_folder / run_folder.HISTORY).read_text()).items():
            for name, curve in history["losses"].items():
                found[f"{round_folder.name} {phase} {name}"] = curve
    return found


def assert_same_where_interrupted(config: Chain, place: Path) -> Path:
    """Round 0 of a chain that was stopped twice, bit for bit that of one that was not, whose folder is returned."""
    whole, broken = write_chain(place / "a", config), write_chain(place / "b", config)
    run_chain(whole, 1, Interrupt())
    for looks in (6, 9):
        with pytest.raises(Interrupted):
            run_chain(broken, 1, StopsAt(looks))
    run_chain(broken, 1, Interrupt())
    for name in (run_folder.QUERY, run_folder.HISTORY):
        assert (whole / "round-0" / name).read_bytes() == (broken / "round-0" / name).read_bytes()
    return whole


def assert_same_science(folder: Path, other: Path) -> None:
    """The same labels bought in the same order; losses equal to 1e-5.

    Sums in another order differ in the last bit, and a step of Adam where a gradient is nearly 0 turns that into a
    step the other way: over thousands of steps training is chaotic, and runs on another number of processes part as
    runs on another GPU do. So these chains are short: 4 phases of at most 36 steps; 3e-6 was seen.
    """
    expected, found = losses(folder), losses(other)
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert found[name] == pytest.approx(curve, rel=1e-5), name
    for name, round_outcome in outcome(folder).items():
        assert outcome(other)[name]["labeled"] == round_outcome["labeled"]
        assert outcome(other)[name]["query"] == round_outcome["query"]
