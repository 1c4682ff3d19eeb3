"""Steps, scans and the benchmarks' bare loops on tensors that say they are on a GPU: operands on two devices raise.

No GPU is needed. Backward passes are left out: they run where the forward pass ran. The optimisers' steps are not.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mal.methods.vaal
import mal.minimax
import mal.task
from benchmarks import bare
from mal.acquisition.uncertainty import PassAccumulator
from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.data.augment import Augmentation
from mal.methods.bald import predict
from mal.methods.common import predictive_entropy
from mal.methods.vaal import HIDDEN_UNITS, VAALObjective
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import Discriminator, TaskModel
from mal.models.vae import VAE
from mal.process.device import Device
from mal.process.distributed import World
from mal.task import FixMatch, Supervised
from mal.training import graphed
from mal.training.objective import Inputs, Objective

CUDA = torch.device("cuda")
CASES = [
    ("cifar100", "small_cnn", 32, 3, 16),
    ("cifar100", "resnet18", 32, 3, 8),
    ("cifar100", "vgg16_bn", 32, 3, 8),
    ("bdd100k", "drn_d_22", 96, 3, 2),
    ("digit_scenes", "small_drn", 48, 1, 4),
    ("digits", "small_cnn", 8, 1, 16),
]


def placed(self: Device, module: nn.Module, channels_last: bool = True) -> nn.Module:
    """The module with fake parameters and buffers on the device: `Module.to` would swap data, which fakes refuse."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                last = parameter.dim() == 4 and channels_last
                layout = torch.channels_last if last else torch.preserve_format
                part._parameters[name] = nn.Parameter(parameter.detach().to(CUDA, memory_format=layout))
        for name, buffer in list(part._buffers.items()):
            part._buffers[name] = None if buffer is None else buffer.to(CUDA)
    return module


def descended(optimizer: torch.optim.Optimizer, loss: Tensor, world: World) -> None:
    """A step with gradients of zeros: autograd's own threads do not know fakes."""
    assert (loss.device.type, loss.requires_grad, loss.dim()) == ("cuda", True, 0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    if isinstance(rate := optimizer.param_groups[0]["lr"], Tensor):
        assert rate.device.type == "cuda"  # fakes have no such step
    elif not isinstance(optimizer, torch.optim.SGD):
        optimizer.step()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (mal.minimax, mal.task, mal.methods.vaal):
        monkeypatch.setattr(module, "descend", descended)
    monkeypatch.setattr(Device, "seed", lambda self, seed: None)
    monkeypatch.setattr(Device, "place", placed)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def chain(*words: str, method: str = "mal") -> Chain:
    return compose_sweep([f"methods=[{method}]", "seeds=1", *words]).chains[0]


def augmented(config: Chain, size: int, channels: int, batch: int) -> tuple[Inputs, Tensor]:
    """A training batch, and the same images without augmentation."""
    spec = config.dataset
    half = torch.full((1, channels, 1, 1), 0.5, device=CUDA)
    pad = 4 if spec.crop is None else 0
    augmentation = Augmentation(flip=True, crop=spec.crop, pad_crop=pad, mean=half, std=half)
    images = torch.zeros(batch, channels, size, size, dtype=torch.uint8, device=CUDA)
    key = (0, 1, "a")
    if spec.task == "segmentation":
        maps = torch.zeros(batch, size, size, dtype=torch.uint8, device=CUDA)
        labels = augmentation.train_maps(maps, key)
    else:
        labels = torch.zeros(batch, dtype=torch.int64, device=CUDA)
    return Inputs(augmentation.train(images, key), labels), augmentation.evaluate(images)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]}-{case[2]}")
def test_steps_and_scans_stay_on_the_device(fake: None, case: tuple[Any, ...]) -> None:
    dataset, backbone, size, channels, batch = case
    keys = [f"dataset={dataset}", f"backbone={backbone}"]
    config = chain(*keys, *(["dataset.crop=null"] if dataset == "bdd100k" else []))
    device = Device(CUDA, bf16=False)  # torch has no autocast for a GPU that is not there
    inputs, images = augmented(config, size, channels, batch)
    assert inputs.images.device.type == "cuda"
    objective = MinimaxObjective(build_networks(config, device), config.minimax, device)
    model = device.place(TaskModel(build_backbone(config.backbone, channels), config.dataset.classes, 0.5))
    supervised = Supervised(model, config.task, device)
    for _ in range(2):
        losses = objective.step({"labelled": inputs, "unlabelled": inputs}, 0.0)
        losses |= supervised.step({"labelled": inputs}, 0.0)
        assert {loss.device.type for loss in losses.values()} == {"cuda"}
    model.eval()
    with torch.no_grad(), device.autocast():
        assert predictive_entropy(model(images)).device.type == "cuda"
        passes = PassAccumulator()
        for logits in predict(model, images, torch.ones(3, model.head.in_features, device=CUDA)):
            passes.update(logits.movedim(1, -1), from_logits=True)


class Recording(TorchDispatchMode):
    """Refuses what a CUDA graph cannot record: copies from the host to the device, and numbers read from the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "a number is read from the device"
        given = function(*args, **(kwargs or {}))
        read, written = ([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in ((args, kwargs), given))
        copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        from_host = any(x.device.type == "cpu" and (copies or x.dim()) for x in read)
        assert not (from_host and any(x.device.type == "cuda" for x in written)), f"{function} copies from the host"
        return given


def recorded(update: Any) -> tuple[Any, Any]:
    with Recording():
        losses = update()
    return update, losses


@pytest.fixture
def recording(fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "warm_up", lambda update: update())
    monkeypatch.setattr(graphed, "record", recorded)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())


def take_two_steps(objective: Objective, device: Device, parts: dict[str, Inputs]) -> None:
    step = graphed.Graphed(objective, device)
    for t in range(2):
        losses = step.step(parts, t / 2)
    assert {loss.device.type for loss in losses.values()} == {"cuda"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]}-{case[2]}")
def test_steps_that_are_recorded_stay_on_the_device(recording: None, case: tuple[Any, ...]) -> None:
    dataset, backbone, size, channels, batch = case
    keys = [f"dataset={dataset}", f"backbone={backbone}", "minimax.schedule=cosine", "task.optimizer=adam"]
    config = chain(*keys, *(["dataset.crop=null"] if dataset == "bdd100k" else []))
    device = Device(CUDA, bf16=False, graphs=True)
    inputs, _ = augmented(config, size, channels, batch)
    model = device.place(TaskModel(build_backbone(config.backbone, channels), config.dataset.classes, 0.5))
    for objective in (
        Supervised(model, config.task, device),
        MinimaxObjective(build_networks(config, device), config.minimax, device),
    ):
        take_two_steps(objective, device, {"labelled": inputs, "unlabelled": inputs})


def test_recorded_steps_of_fixmatch_stay_on_the_device(recording: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = chain("dataset=cifar100", "backbone=vgg16_bn", "task.semi=fixmatch", "task.semi_ratio=2")
    device = Device(CUDA, bf16=False, graphs=True)
    inputs, _ = augmented(config, 32, 3, 4)
    weak = replace(inputs, strong=inputs.images)
    model, average = (
        device.place(TaskModel(build_backbone(config.backbone, 3), config.dataset.classes)) for _ in range(2)
    )
    monkeypatch.setattr(mal.task, "copy", SimpleNamespace(deepcopy=lambda model: average))  # fakes are not copied so
    objective = FixMatch(model, config.task, device)
    take_two_steps(objective, device, {"labelled": inputs, "unlabelled_0": weak, "unlabelled_1": weak})


def test_a_copy_from_the_host_cannot_be_recorded(recording: None) -> None:
    for copy in (lambda: torch.ones(2).to(CUDA), lambda: torch.zeros(2, device=CUDA).copy_(torch.ones(2))):
        with pytest.raises(AssertionError, match="copies from the host"):
            graphed.record(copy)
    with pytest.raises(AssertionError, match="copies from the host"):
        graphed.record(lambda: torch.tensor([1.0], device=CUDA))
    graphed.record(lambda: torch.zeros(2, device=CUDA) + 1)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 32), (3, 224)])
def test_vaal_stays_on_the_device(recording: None, channels: int, side: int) -> None:
    config = chain("dataset=digits", method="vaal")
    device = Device(CUDA, bf16=False)
    vae = device.place(VAE(channels, side, 32, 32), channels_last=False)
    discriminator = device.place(Discriminator(32, HIDDEN_UNITS), channels_last=False)
    objective = VAALObjective(vae, discriminator, config.method, device)
    images = torch.zeros(4, channels, side, side, device=CUDA).to(memory_format=torch.channels_last)
    inputs = Inputs(images, torch.zeros(4, dtype=torch.int64, device=CUDA))
    turns = range(config.method["vae_steps"])
    parts = {f"{pool}_{turn}": inputs for pool in ("labelled", "unlabelled") for turn in turns}
    for _ in range(2):
        objective.step(parts, 0.0)
    take_two_steps(objective, device, parts)


def test_the_bare_loops_stay_on_the_device(fake: None) -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device=CUDA)
    mean = std = torch.full((1, 3, 1, 1), 0.5, device=CUDA)
    assert bare.normalised(bare.flipped(images), mean, std).device.type == "cuda"
    assert images[next(bare.batches(4, 2, CUDA))].device.type == "cuda"
