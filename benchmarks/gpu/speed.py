"""How fast: ratios of our steps, loop and scans to bare ones on the same card, beside the targets."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import bare
from benchmarks.gpu.checks import Bench, Data, Found, placed
from benchmarks.measure import CLOCKS
from mal.config.schema import Chain
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.process.device import Device
from mal.process.interrupt import Interrupt
from mal.run import checkpoint
from mal.run.heartbeat import Progress
from mal.task import Supervised
from mal.training.loop import Trainer
from mal.training.optimizers import Adam
from mal.training.scan import Scanner

now = CLOCKS["wall"]  # waits for the GPU
# Name, data set, backbone, size, labelled images of a step, further keys.
STEPS = [
    ("resnet18 32x32", "cifar100", "resnet18", 128, ()),
    ("resnet18 224x224", "imagenet", "resnet18", 128, ()),
    ("vgg16_bn 32x32", "cifar100", "vgg16_bn", 128, ()),
    ("drn_d_22", "bdd100k", "drn_d_22", 8, ()),
]
REHEARSED = [("small_cnn 8x8", "digits", "small_cnn", 32, ())]
ROUND_STEPS, ROUND_SECONDS = 39_062, 90.0  # of a round of MAL on CIFAR100, 128 + 128 images per step


def milliseconds(function: Callable[[], object], count: int = 20, turns: int = 3) -> float:
    """Of one call, the median over turns of so many."""
    for _ in range(4):
        function()
    seconds = []
    for _ in range(turns):
        began = now()
        for _ in range(count):
            function()
        seconds.append((now() - began) / count)
    return 1e3 * statistics.median(seconds)


def task_model(config: Chain, device: Device) -> TaskModel:
    """M with the configuration's backbone, on the device."""
    return device.place(TaskModel(build_backbone(config.backbone, config.dataset.channels), config.dataset.classes))


def steps_against_supervised_ones(bench: Bench) -> Found:
    """A MAL step on n + n images against a supervised one on 2 n; with loading; a checkpoint's copy."""
    told = bench.told
    for name, dataset, backbone, batch, more in STEPS if bench.cuda else REHEARSED:
        for precision in ("fp32", "bf16"):
            keys = (f"dataset={dataset}", f"backbone={backbone}", f"precision={precision}")
            config, device = placed(bench, *keys, "task.optimizer=adam", "task.lr=0.001", *more)
            data = Data(config.dataset, 2 * batch, device)
            game = MinimaxObjective(build_networks(config, device), config.minimax, device)
            task = Supervised(task_model(config, device), config.task, device)
            halves = {"labelled": data.inputs(0, batch), "unlabelled": data.inputs(batch, 2 * batch)}
            whole = {"labelled": data.inputs(0, 2 * batch)}
            ours = milliseconds(lambda game=game, parts=halves: game.step(parts, 0.0))
            theirs = milliseconds(lambda task=task, parts=whole: task.step(parts, 0.0))
            loaded = milliseconds(
                lambda game=game, data=data, n=batch: game.step(
                    {"labelled": data.inputs(0, n), "unlabelled": data.inputs(n, 2 * n)}, 0.0
                )
            )
            began = now()
            checkpoint.copied({name: module.state_dict() for name, module in game.modules.items()})
            copied = 1e3 * (now() - began)
            row = {
                "mal_ms": ours,
                "supervised_ms": theirs,
                "mal/supervised": ours / theirs,
                "loaded/ready": loaded / ours,
            }
            told[f"{name} {precision}"] = {key: round(value, 3) for key, value in (row | {"copy_ms": copied}).items()}
    if bench.cuda:
        ratios = {name: told[f"{name} bf16"]["mal/supervised"] for name in ("resnet18 32x32", "resnet18 224x224")}
        told["target mal/supervised <= 1.10"] = ratios
        seconds = told["resnet18 32x32 bf16"]["mal_ms"] * ROUND_STEPS / 1e3
        told[f"target round of CIFAR100 <= {ROUND_SECONDS:g} s, by its steps"] = round(seconds, 1)
    return {}


def trained(bench: Bench, config: Chain, device: Device, data: Data, batch: int, steps: int) -> float:
    """Milliseconds of a step in the training loop."""
    with tempfile.TemporaryDirectory(dir=bench.work) as folder:
        trainer = Trainer(
            folder=Path(folder),
            identity="a benchmark",
            key=(0, 0),
            loader=data.loader,
            augmentation=data.augmentation,
            device=device,
            progress=Progress(Path(folder), 0, Interrupt()),
            checkpoint_seconds=3600.0,
        )
        objective = Supervised(task_model(config, device), config.task, device)
        everything = {"labelled": np.arange(len(data.images))}
        trainer.run("warm", objective, everything, batch, 5)
        began = now()
        trainer.run("task", objective, everything, batch, steps)
        return 1e3 * (now() - began) / steps


def bare_step(config: Chain, device: Device, data: Data, batch: int) -> Callable[[], object]:
    """A step of a bare loop on resident data, as one writes it."""
    model, spec = task_model(config, device).train(), config.dataset
    optimizer = Adam(model.parameters(), lr=0.001, fused=True)
    images = torch.from_numpy(data.images).to(device.torch)
    labels = torch.from_numpy(data.labels).to(device.torch)
    stream, half = bare.batches(len(images), batch, device.torch), torch.full((1, spec.channels, 1, 1), 0.5)
    half = half.to(device.torch)

    def step() -> None:
        at = next(stream)
        shown = bare.normalised(bare.flipped(images[at]), half, half)
        bare.supervised_step(model, optimizer, shown, labels[at], device.bf16)

    return step


def the_training_loop_against_a_bare_one(bench: Bench) -> Found:
    """Steps of M in our loop with resident data against a bare loop without checkpoints, seeds or progress."""
    dataset, backbone, batch, steps = (
        ("cifar100", "resnet18", 128, 300) if bench.cuda else ("digits", "small_cnn", 32, 20)
    )
    told = bench.told
    for precision in ("fp32", "bf16"):
        keys = (f"dataset={dataset}", f"backbone={backbone}", f"precision={precision}")
        config, device = placed(bench, *keys, "task.optimizer=adam", "task.lr=0.001")
        data = Data(config.dataset, 4096, device)
        ours = trained(bench, config, device, data, batch, steps)
        theirs = milliseconds(bare_step(config, device, data, batch), steps, 1)
        told[precision] = {"ours_ms": round(ours, 3), "bare_ms": round(theirs, 3), "bare/ours": round(theirs / ours, 3)}
    return {}


def confidence(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return {"p": model(images).float().amax(1)}


def _bare_scan(model: nn.Module, data: Data, device: Device, resident: Tensor) -> list[Tensor]:
    with torch.inference_mode(), device.autocast():
        return [confidence(model, data.augmentation.evaluate(part))["p"].cpu() for part in resident.split(512)]


def scans_against_bare_inference(bench: Bench) -> Found:
    """Confidences of every image by a scan and by a bare loop, images per second."""
    shapes = (
        [("cifar100", "resnet18", 4096), ("imagenet", "resnet18", 2048)]
        if bench.cuda
        else [("digits", "small_cnn", 512)]
    )
    told = bench.told
    for dataset, backbone, count in shapes:
        config, device = placed(bench, f"dataset={dataset}", f"backbone={backbone}", "precision=bf16")
        data, model = Data(config.dataset, count, device), task_model(config, device).eval()
        resident = torch.from_numpy(data.images).to(device.torch)

        scanner = Scanner(data.augmentation, device, Progress(bench.work / "scan", 0, Interrupt()))
        score = partial(confidence, model)
        scan = partial(scanner.scan, "score", data.loader, np.arange(count), score, model)
        plain = partial(_bare_scan, model, data, device, resident)
        ours, theirs = milliseconds(scan, 4), milliseconds(plain, 4)
        told[f"{backbone} on {dataset}"] = {
            "scan_images_per_s": round(1e3 * count / ours),
            "bare_images_per_s": round(1e3 * count / theirs),
            "scan/bare": round(ours / theirs, 3),
        }
    return {}
