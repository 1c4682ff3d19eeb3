"""Whether a GPU computes what a CPU does, and the same bits twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.checks import Bench, Data, Found, digest, placed
from mal.acquisition import kcenter_greedy
from mal.chain import out_of_memory
from mal.config.schema import Chain
from mal.data.augment import build_augmentation
from mal.data.image_set import Arrays
from mal.data.loader import build_loader
from mal.methods.vaal import HIDDEN_UNITS, VAALObjective
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import Discriminator, PixelHead, TaskModel
from mal.models.vae import VAE
from mal.process.device import Device, gpu_versions
from mal.process.interrupt import Interrupt
from mal.run.heartbeat import Progress
from mal.task import Supervised
from mal.training.objective import Objective
from mal.training.scan import Scanner

# Data set, backbone, batch: the paper's shapes; what a CPU rehearses.
PAPER = [("cifar100", "resnet18", 128), ("cifar100", "vgg16_bn", 128), ("bdd100k", "drn_d_22", 8)]
SMALL = [("digits", "small_cnn", 32), ("digit_scenes", "small_drn", 8)]


def stack(bench: Bench) -> Found:
    """Versions and the card."""
    told: Found = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if bench.cuda:
        free, total = torch.cuda.mem_get_info()
        told |= {"gpu": torch.cuda.get_device_name(), "free_GiB": free / 2**30, "total_GiB": total / 2**30}
        told |= gpu_versions()
    return told


def objective(kind: str, config: Chain, device: Device, bench: Bench) -> Objective:
    """What a phase trains: Algorithm 1, M, or VAAL's networks."""
    spec = config.dataset
    if kind == "minimax":
        return MinimaxObjective(build_networks(config, device), config.minimax, device)
    if kind == "vaal":
        place = partial(device.place, channels_last=False)
        vae, judge = VAE(spec.channels, spec.crop or spec.size, 32, 32), Discriminator(32, HIDDEN_UNITS)
        return VAALObjective(place(vae), place(judge), bench.chain(method="vaal").method, device)
    backbone = build_backbone(config.backbone, spec.channels)
    return Supervised(device.place(TaskModel(backbone, spec.classes, 0.25)), config.task, device)


def stepped(bench: Bench, words: tuple[str, ...], kind: str, batch: int, steps: int = 4) -> tuple[str, list[float]]:
    """The hash of networks and losses after some steps from a seed, and the losses."""
    config, device = placed(bench, *words)
    data = Data(config.dataset, 2 * batch, device)
    device.seed(7)
    trained = objective(kind, config, device, bench)
    losses: list[Tensor] = []
    for t in range(steps):
        device.seed(100 + t)
        pools = (("labelled", 0), ("unlabelled", batch))
        inputs = {name: data.inputs(first, first + batch, (t, name)) for name, first in pools}
        if isinstance(trained, VAALObjective):
            turns = range(trained.method["vae_steps"])
            inputs = {f"{name}_{turn}": part for name, part in inputs.items() for turn in turns}
        losses += list(trained.step(inputs, t / steps).values())
    assert all(torch.isfinite(loss).all() for loss in losses), "a loss is not finite"
    together = torch.stack([loss.float() for loss in losses])
    return digest(*trained.modules.values(), together), together.tolist()


def steps_repeat_bit_for_bit(bench: Bench) -> Found:
    """Every network, in fp32 and bf16: no operation refuses to be deterministic, and twice gives the same bits."""
    wrong, count = [], 0
    for dataset, backbone, batch in PAPER + SMALL if bench.cuda else SMALL:
        for precision in ("fp32", "bf16"):
            for kind in ("minimax", "task", "vaal"):
                words = (f"dataset={dataset}", f"backbone={backbone}", f"precision={precision}")
                count += 1
                try:
                    first, second = (stepped(bench, words, kind, batch)[0] for _ in range(2))
                except RuntimeError as error:
                    wrong.append(f"{backbone} {precision} {kind}: {str(error)[:200]}")
                    continue
                if first != second:
                    wrong.append(f"{backbone} {precision} {kind}: other bits")
    assert not wrong, wrong
    return {"cases": count}


def first_losses_are_those_of_the_cpu(bench: Bench) -> Found:
    """The first step's losses in float32 and, with TF32 convolutions, to three digits."""
    told = bench.told
    for tf32, allowed in (("false", 1e-3), ("true", 2e-2)):
        for dataset, backbone, batch in (("cifar100", "resnet18", 16), ("digit_scenes", "small_drn", 8)):
            words = (f"dataset={dataset}", f"backbone={backbone}", f"tf32={tf32}")
            here = stepped(bench, words, "minimax", batch, 1)[1]
            there = stepped(Bench("cpu", bench.work), words, "minimax", batch, 1)[1]
            far = max(abs(a - b) / max(abs(b), 1e-3) for a, b in zip(here, there, strict=True))
            told[f"{backbone} tf32={tf32}"] = far
            assert far < allowed, told
    return {}


def bf16_upsampling_is_bilinear(bench: Bench) -> Found:
    """Logits of maps in bf16 against float32."""
    device, worst = torch.device(bench.kind), {}
    for side in (12, 28, 64):
        torch.manual_seed(0)
        head, features = PixelHead(16, 5, 8).to(device), torch.randn(2, 16, side, side, device=device)
        with torch.no_grad():
            exact = head(features)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                rounded = head(features).float()
        worst[side * 8] = float((rounded - exact).abs().mean() / exact.abs().mean())
    assert max(worst.values()) < 0.01, worst
    return {"relative_difference": worst}


def k_center_picks_are_those_of_the_cpu(bench: Bench) -> Found:
    """The same candidates in the same order, with products on either device."""
    count, budget = (200_000, 2000) if bench.cuda else (5000, 100)
    random = np.random.default_rng(0)
    features = random.standard_normal((count, 512), dtype=np.float32)
    centres = random.standard_normal((1000, 512), dtype=np.float32)
    kcenter_greedy(features[:5000], centres, 10)  # compiles
    seconds, picks = {}, {}
    for device in ("cpu", bench.kind):
        began = time.perf_counter()
        picks[device] = kcenter_greedy(features, centres, budget, device=device)
        seconds[device] = time.perf_counter() - began
    assert np.array_equal(picks["cpu"], picks[bench.kind]), "other picks"
    return {"candidates": count, "budget": budget, "seconds_by_device": seconds}


def loaders_give_the_same_bytes_beside_other_work(bench: Bench) -> Found:
    """Copies to the device race with products that it computes meanwhile."""
    images = np.random.default_rng(0).integers(0, 256, (512, 3, 32, 32), dtype=np.uint8)
    labels, device = np.arange(512) % 100, torch.device(bench.kind)
    stream = [np.random.default_rng(t).permutation(512)[:100] for t in range(30)]
    for kind in ("memory", "torch"):
        loader = build_loader(kind, Arrays(images, labels), labels, device, 2)
        for _ in range(2):  # a second stream of the same reader
            for indices, got in zip(stream, loader.batches(iter(stream)), strict=True):
                torch.randn(1024, 1024, device=device) @ torch.randn(1024, 1024, device=device)
                assert np.array_equal(got.images.cpu().numpy(), images[indices]), kind
                assert got.labels.cpu().tolist() == labels[indices].tolist(), kind
    return {}


def augmentation_is_that_of_the_cpu(bench: Bench) -> Found:
    """Flips and crops with and without padding."""
    spec, half = bench.chain("dataset=cifar100").dataset, np.full(3, 0.5)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8))
    for crop, pad in ((None, 0), (24, 4), (28, 0)):
        changed = type(spec)(**{**vars(spec), "crop": crop, "pad_crop": pad})
        here, there = (
            build_augmentation(changed, half, half, device).train(images.to(device), ("a key", 3)).cpu()
            for device in (torch.device("cpu"), torch.device(bench.kind))
        )
        assert torch.allclose(here, there, atol=1e-6), (crop, pad)
    return {}


def scan_of(bench: Bench) -> Callable[[], tuple[Scanner, np.ndarray]]:
    """A scan of 4,096 images in one batch, again and again: the scanner and what it found."""
    config, device = placed(bench, "dataset=cifar100", "backbone=resnet18")
    data = Data(config.dataset, 4096, device)
    model = device.place(TaskModel(build_backbone(config.backbone, 3), 100))

    def scan() -> tuple[Scanner, np.ndarray]:
        scanner = Scanner(data.augmentation, device, Progress(bench.work / "oom", 0, Interrupt()), batch=4096)
        found = scanner.scan("score", data.loader, np.arange(4096), lambda x: {"p": model(x).softmax(1)}, model)
        return scanner, found["p"]

    return scan


def too_little_memory_halves_a_scan(bench: Bench) -> Found:
    """A scan that does not fit is halved until it does; other allocations are told as what they are."""
    if not bench.cuda:
        return {"rehearsed": False}
    scan = scan_of(bench)
    whole = scan()[1]
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 400 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        halved, got = scan()
        assert halved.part < 4096, "it was not too little"
        assert np.allclose(whole, got, atol=1e-3), np.abs(whole - got).max()
        said = ""
        try:
            torch.empty(2**33, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            said = "" if out_of_memory(error) else f"not told as one of the memory: {error}"
        assert not said, said
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"images_at_a_time": halved.part}
