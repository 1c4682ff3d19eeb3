"""Training by CUDA graphs: the bits of ordinary training, and the time of a step of both."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu.arithmetic import objective
from benchmarks.gpu.checks import Bench, Data, Found, digest, placed
from benchmarks.measure import CLOCKS
from mal.config.schema import Chain
from mal.methods.vaal import VAALObjective
from mal.process.device import Device
from mal.process.interrupt import Interrupt
from mal.run.heartbeat import Progress
from mal.task import Supervised
from mal.training import graphed
from mal.training.loop import Trainer
from mal.training.objective import Objective
from tests.training.replaying import replay_on_the_cpu

now = CLOCKS["wall"]  # waits for the GPU
EXACT = 2.0**-9  # a rate that is the same number in float32
KINDS = {"minimax": "mal", "task": "mal", "vaal": "vaal"}


def configured(bench: Bench, dataset: str, backbone: str, precision: str, *words: str) -> tuple[Chain, Device]:
    """Adam with exact rates and no schedule."""
    if not bench.cuda:
        replay_on_the_cpu()
    rates = [f"minimax.lr_{name}={EXACT}" for name in "fcd"]
    rates += [f"task.lr={EXACT}", "task.optimizer=adam", "task.schedule=constant"]
    return placed(bench, f"dataset={dataset}", f"backbone={backbone}", f"precision={precision}", *rates, *words)


def phase(
    bench: Bench, data: Data, device: Device, make: Callable[[], Objective], batch: int, counts: tuple[int, ...]
) -> tuple[Objective, list[float]]:
    """An objective trained in the loop from one seed, one phase after the other: seconds of each phase's steps."""
    device.seed(7)
    trained, seconds, half = make(), [], len(data.images) // 2
    with tempfile.TemporaryDirectory(dir=bench.work) as folder:
        progress = Progress(Path(folder), 0, Interrupt())
        trainer = Trainer(Path(folder), "a check", (0, 0), data.loader, data.augmentation, device, progress, 3600.0)
        parts = {"labelled": np.arange(half), "unlabelled": np.arange(half, 2 * half)}
        if isinstance(trained, VAALObjective):
            for group in (*trained.coder.param_groups, *trained.judge.param_groups):
                group["lr"] = EXACT
            parts = {f"{name}_{t}": i for name, i in parts.items() for t in range(trained.method["vae_steps"])}
        if isinstance(trained, Supervised):
            parts = {"labelled": np.arange(2 * half)}
        for number, count in enumerate(counts):
            began = now()
            trainer.run(f"phase {number}", trained, parts, batch, count)
            seconds.append(now() - began)
    return trained, seconds


def steps_of_graphs_are_ordinary_ones(bench: Bench) -> Found:
    """Networks after some steps of Algorithm 1, of M with dropout and of VAAL: the same bits, replayed or not."""
    shapes = [("cifar100", "vgg16_bn", 64), ("cifar100", "resnet18", 64), ("bdd100k", "drn_d_22", 4)]
    shapes = shapes if bench.cuda else []
    for dataset, backbone, batch in [*shapes, ("digits", "small_cnn", 32)]:
        for precision in ("fp32", "bf16"):
            for kind in KINDS:
                config, device = configured(bench, dataset, backbone, precision)
                data = Data(config.dataset, 4 * batch, device)
                make = partial(objective, kind, config, device, bench)
                found = {}
                for graphs in (False, True):
                    trained, _ = phase(bench, data, replace(device, graphs=graphs), make, batch, (8,))
                    found[graphs] = digest(*trained.modules.values())
                bench.told[f"{backbone} {precision} {kind}"] = "the same" if found[True] == found[False] else "others"
    assert set(bench.told.values()) == {"the same"}, "other bits"
    return {}


def steps_of_graphs_against_ordinary_ones(bench: Bench) -> Found:
    """Milliseconds of a step in the loop, augmentation and all: ordinary, replayed, and the replay by itself.

    supervised: a step of M of as many images as one of Algorithm 1 has of both kinds.
    """
    shapes = (
        [
            ("cifar100", "resnet18", 128, 60),
            ("fashion_mnist", "small_cnn_28", 128, 60),
            ("imagenet", "resnet18", 128, 30),
        ]
        if bench.cuda
        else [("digits", "small_cnn", 32, 10)]
    )
    for dataset, backbone, batch, steps in shapes:
        for kind, images in (("minimax", batch), ("supervised", 2 * batch)):
            config, device = configured(bench, dataset, backbone, "bf16")
            data = Data(config.dataset, 2048 if bench.cuda else 128, device)
            make, ms = partial(objective, kind, config, device, bench), {}
            for graphs in (False, True):
                # The difference of a long and a short phase: without what a phase takes to begin.
                counts = (steps // 10, steps) * 3
                seconds = phase(bench, data, replace(device, graphs=graphs), make, images, counts)[1]
                pairs = zip(seconds[::2], seconds[1::2], strict=True)
                ms[graphs] = 1e3 * statistics.median(b - a for a, b in pairs) / (steps - steps // 10)
            bench.told[f"{backbone} on {dataset}, bf16 {kind}"] = {
                "ordinary_ms": round(ms[False], 3),
                "graphs_ms": round(ms[True], 3),
                "graphs/ordinary": round(ms[True] / ms[False], 3),
                "replay_alone_ms": round(replay_alone(make(), data, device, images, steps), 3),
            }
        pair = [bench.told[f"{backbone} on {dataset}, bf16 {kind}"] for kind in ("minimax", "supervised")]
        for key in ("graphs_ms", "replay_alone_ms"):
            bench.told[f"{backbone} on {dataset}, mal/supervised by {key}"] = round(pair[0][key] / pair[1][key], 3)
    if bench.cuda:
        row = bench.told["resnet18 on cifar100, bf16 minimax"]
        bench.told["target round of CIFAR100 <= 90 s, by its 39,062 steps"] = round(row["graphs_ms"] * 39.062, 1)
    return {}


def replay_alone(trained: Objective, data: Data, device: Device, batch: int, steps: int) -> float:
    """Milliseconds of a replay on the same batch again and again: what the device itself needs."""
    step = graphed.Graphed(trained, device)
    inputs = {"labelled": data.inputs(0, batch)}
    if not isinstance(trained, Supervised):
        inputs["unlabelled"] = data.inputs(batch, 2 * batch)
    step.step(inputs, 0.0)
    began = now()
    for _ in range(steps):
        step.step(inputs, 0.0)
    return 1e3 * (now() - began) / steps
