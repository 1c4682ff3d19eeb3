"""Training against its floors: MAL's step, the task model's step in the training loop, the cost of checkpoints.

python -m benchmarks.training [--threads 1 --clock cpu]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import bare
from benchmarks.measure import CLOCKS, HEAD, Pair, arguments, chain, interleaved, noise, paired, row
from mal.config.schema import Chain
from mal.data.augment import build_augmentation
from mal.data.loader import MemoryLoader
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.process.device import Device, prepare_device
from mal.process.interrupt import Interrupt
from mal.run import checkpoint
from mal.run.heartbeat import Progress
from mal.task import Supervised
from mal.training.loop import Trainer
from mal.training.objective import Inputs, Objective
from mal.training.optimizers import Adam

BATCH = 128
SETTINGS = {"resnet18 32x32": ("cifar100", "resnet18", 32), "small_cnn 28x28": ("fashion_mnist", "small_cnn", 28)}


def configured(name: str, precision: str, threads: int) -> tuple[Chain, Device]:
    dataset, backbone, _ = SETTINGS[name]
    options = f"precision={precision}", f"threads={threads}", "task.optimizer=adam"
    config = chain(f"dataset={dataset}", f"backbone={backbone}", *options)
    return config, prepare_device(config)


def task_model(config: Chain, device: Device) -> TaskModel:
    return device.place(TaskModel(build_backbone(config.backbone, config.dataset.channels), config.dataset.classes))


def inputs(config: Chain, size: int, count: int, device: Device) -> Inputs:
    images = torch.randn(count, config.dataset.channels, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(config.dataset.classes, (count,))
    return Inputs(images.to(device.torch), labels.to(device.torch))


def minimax_against_supervised(name: str, precision: str, threads: int, repeats: int, clock: str) -> Pair:
    """A MAL step on 128 + 128 images against a supervised step on 256, the same options and optimiser."""
    config, device = configured(name, precision, threads)
    size = SETTINGS[name][2]
    minimax = MinimaxObjective(build_networks(config, device), config.minimax, device)
    supervised = Supervised(task_model(config, device), config.task, device)
    labelled, unlabelled = (inputs(config, size, BATCH, device) for _ in range(2))
    both = inputs(config, size, 2 * BATCH, device)
    parts = {"labelled": labelled, "unlabelled": unlabelled}
    return interleaved(
        lambda: finish(minimax.step(parts, 0.0)),
        lambda: finish(supervised.step({"labelled": both}, 0.0)),
        repeats,
        clock,
    )


def finish(losses: Mapping[str, Tensor]) -> None:
    """Until the device is done."""
    for loss in losses.values():
        loss.item()


class Clocked(Objective):
    """An objective that notes when each of its steps began."""

    def __init__(self, objective: Objective, clock: str) -> None:
        self.objective, self.now = objective, CLOCKS[clock]
        self.modules, self.optimizers = objective.modules, objective.optimizers
        self.began: list[float] = []

    def step(self, parts: Mapping[str, Inputs], progress: float) -> dict[str, Tensor]:
        """One step of the objective."""
        self.began.append(self.now())
        return self.objective.step(parts, progress)

    def seconds(self) -> float:
        """The median from the begin of a step to that of the next."""
        return float(np.median(np.diff(self.began[2:])))


def trainer_in(folder: Path, config: Chain, device: Device, images: np.ndarray, labels: np.ndarray) -> Trainer:
    half = np.full(config.dataset.channels, 0.5)
    return Trainer(
        folder=folder,
        identity="benchmark",
        key=(0, 0),
        loader=MemoryLoader(images, labels, device.torch),
        augmentation=build_augmentation(config.dataset, half, half, device.torch),
        device=device,
        progress=Progress(folder, 0, Interrupt()),
        checkpoint_seconds=60 * config.checkpoint_minutes,
    )


def loop_against_bare(name: str, threads: int, repeats: int, clock: str, steps: int = 24) -> Pair:
    """A step of M in the training loop, from one to the next, against that of a bare loop of the same network."""
    config, device = configured(name, "fp32", threads)
    spec = config.dataset
    images = noise(4096, spec.channels, SETTINGS[name][2])
    labels = np.random.default_rng(0).integers(0, spec.classes, len(images))
    model = task_model(config, device)
    tensors, targets = torch.from_numpy(images).to(device.torch), torch.from_numpy(labels).to(device.torch)

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_in(Path(folder), config, device, images, labels)
            objective = Clocked(Supervised(task_model(config, device), config.task, device), clock)
            trainer.run("task", objective, {"labelled": np.arange(len(images))}, BATCH, steps)
            return objective.seconds()

    def plain() -> float:
        optimizer, began, stream = (
            Adam(model.parameters(), lr=0.001, fused=True),
            [],
            bare.batches(len(images), BATCH, device.torch),
        )
        mean = std = torch.full((1, spec.channels, 1, 1), 0.5, device=device.torch)
        for _ in range(steps):
            began.append(CLOCKS[clock]())
            at = next(stream)
            batch = bare.normalised(bare.flipped(tensors[at]), mean, std)
            bare.supervised_step(model, optimizer, batch, targets[at], bf16=False)
        return float(np.median(np.diff(began[2:])))

    return paired([(ours(), plain()) for _ in range(max(3, repeats // 2))])


def checkpoints(name: str, threads: int) -> None:
    """Size, seconds that training waits, seconds of the thread, and their share of the time at the default interval."""
    config, device = configured(name, "fp32", threads)
    minimax = MinimaxObjective(build_networks(config, device), config.minimax, device)
    part = inputs(config, SETTINGS[name][2], 4, device)
    minimax.step({"labelled": part, "unlabelled": part}, 0.0)  # Adam's moments are there
    state = {
        "identity": "benchmark",
        "modules": {key: module.state_dict() for key, module in minimax.modules.items()},
        "optimizers": {key: optimizer.state_dict() for key, optimizer in minimax.optimizers.items()},
    }
    waits, writes = [], []
    with tempfile.TemporaryDirectory() as folder, checkpoint.Writer() as writer:
        path = Path(folder, "minimax.ckpt")
        for _ in range(4):
            began = time.perf_counter()
            writer.begin(path, state)
            waits.append(time.perf_counter() - began)
            writer.wait()
            writes.append(time.perf_counter() - began)
        size = path.stat().st_size / 1e6
    wait, write = float(np.median(waits)), float(np.median(writes))
    share = 100 * write / (60 * config.checkpoint_minutes)
    rest = f"<= 1% {'met' if share <= 1 else 'MISSED'}"
    print(f"{f'checkpoint, {name}: {size:.1f} MB':<48} copy {1e3 * wait:.0f} ms, with the thread {write:.2f} s")
    print(f"{f'  share of {config.checkpoint_minutes:g} minutes, nothing overlapped':<48} {share:>28.3f}%  {rest}")


def main() -> None:
    given = arguments(__doc__)
    print(HEAD)
    for name in SETTINGS:
        repeats = given.repeats if name.startswith("resnet") else 3 * given.repeats
        for precision in ("fp32", "bf16"):
            pair = minimax_against_supervised(name, precision, given.threads, repeats, given.clock)
            row(f"MAL step / supervised step, {name} {precision}", pair, 1.15)
    for name in SETTINGS:
        row(f"task step / bare loop, {name}", loop_against_bare(name, given.threads, given.repeats, given.clock), 1.05)
    for name in SETTINGS:
        checkpoints(name, given.threads)


if __name__ == "__main__":
    main()
