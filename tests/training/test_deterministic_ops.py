"""No step and no scan uses an operation that raises on a GPU where torch must be deterministic, as a chain has it.

The operations that are traced on the CPU are those of a GPU, except inside of libraries.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mal.acquisition.uncertainty import PassAccumulator, least_confidence, margin
from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.methods.bald import predict
from mal.methods.common import predictive_entropy
from mal.methods.vaal import HIDDEN_UNITS, VAALObjective
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import Discriminator, TaskModel, pooled
from mal.models.vae import VAE
from mal.process.device import Device
from mal.task import Supervised
from mal.training.objective import Inputs
from tests.chains import made_up_images, plain_augmentation

# Of torch.use_deterministic_algorithms' documentation (2.15), by the names that the dispatcher has for them.
RAISING = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
    *("upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward"),
    *("_upsample_bicubic2d_aa_backward", "reflection_pad1d_backward", "reflection_pad2d_backward"),
    *("reflection_pad3d_backward", "nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward"),
    *("put_", "put", "histc", "median", "nanmedian", "kthvalue", "grid_sampler_2d_backward"),
    *("grid_sampler_3d_backward", "scatter_reduce", "scatter_reduce_", "bincount", "_embedding_bag_backward"),
}
CASES = [
    ("cifar100", "small_cnn", 32, 3),
    ("cifar100", "resnet18", 32, 3),
    ("cifar100", "vgg16_bn", 32, 3),
    ("bdd100k", "drn_d_22", 64, 3),
    ("digit_scenes", "small_drn", 48, 1),
    ("digits", "small_cnn", 8, 1),
]


class Traced(TorchDispatchMode):
    """Notes the names of all operations, of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.name().removeprefix("aten::").partition(".")[0])
        return function(*args, **(kwargs or {}))


def chain(*words: str, method: str = "mal") -> Chain:
    return compose_sweep([f"methods=[{method}]", "seeds=1", *words]).chains[0]


@pytest.mark.parametrize("module", [nn.AdaptiveAvgPool2d(3), nn.Upsample(scale_factor=2, mode="bilinear")])
def test_the_trace_sees_what_raises(module: nn.Module) -> None:
    with Traced() as traced:
        module(torch.rand(1, 2, 8, 8, requires_grad=True)).sum().backward()
    assert len(traced.names & RAISING) == 1
    with Traced() as traced:
        F.cross_entropy(torch.rand(1, 3, 4, 4, requires_grad=True), torch.zeros(1, 4, 4, dtype=torch.int64)).backward()
    assert traced.names >= {"nll_loss2d_forward", "nll_loss2d_backward"}


def scanned(model: TaskModel, images: Tensor) -> None:
    """What the methods ask of M."""
    logits = model(images)
    rows = logits.movedim(1, -1).flatten(0, -2)
    for score in (predictive_entropy(logits), margin(rows, from_logits=True), least_confidence(rows, from_logits=True)):
        assert torch.isfinite(score).all()
    passes = PassAccumulator()
    for drawn in predict(model, images, torch.ones(2, model.head.in_features)):
        passes.update(drawn.movedim(1, -1), from_logits=True)
    passes.bald()
    pooled(model.backbone(images)).float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]}-{case[2]}")
def test_no_operation_of_steps_and_scans_raises(case: tuple[Any, ...], precision: str) -> None:
    dataset, backbone, size, channels = case
    keys = [f"dataset={dataset}", f"backbone={backbone}", f"precision={precision}"]
    config = chain(*keys, *(["dataset.crop=null"] if dataset == "bdd100k" else []))
    device, classes = Device(torch.device("cpu"), bf16=precision == "bf16"), config.dataset.classes
    augmentation, pixels = (
        plain_augmentation(flip=True, pad_crop=2),
        torch.from_numpy(made_up_images(2, channels, size)),
    )
    maps = config.dataset.task == "segmentation"
    labels = torch.zeros((2, size, size), dtype=torch.uint8) if maps else torch.arange(2)
    game = MinimaxObjective(build_networks(config, device), config.minimax, device)
    model = device.place(TaskModel(build_backbone(config.backbone, channels), classes, 0.5))
    supervised = Supervised(model, config.task, device)
    with Traced() as traced:
        model.eval()  # before the step, which on two images leads some networks out of what bf16 can hold
        with torch.inference_mode(), device.autocast():
            scanned(model, augmentation.evaluate(pixels))
        model.train()
        moved = augmentation.train_maps(labels, ("a key",)) if maps else labels
        inputs = Inputs(augmentation.train(pixels, ("a key",)), moved)
        game.step({"labelled": inputs, "unlabelled": inputs}, 0.0)
        supervised.step({"labelled": inputs}, 0.0)
    assert traced.names & RAISING == set()
    assert traced.names >= {"convolution_backward", "native_batch_norm_backward"}, "the backward passes were seen"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 96)])
def test_no_operation_of_vaal_raises(channels: int, side: int, precision: str) -> None:
    config = chain("dataset=digits", f"precision={precision}", method="vaal")
    device = Device(torch.device("cpu"), bf16=precision == "bf16")
    vae = device.place(VAE(channels, side, 16, 8), channels_last=False)
    discriminator = device.place(Discriminator(16, HIDDEN_UNITS))
    objective = VAALObjective(vae, discriminator, config.method, device)
    inputs = Inputs(torch.rand(2, channels, side, side), torch.arange(2))
    turns = range(config.method["vae_steps"])
    with Traced() as traced:
        objective.step({f"{pool}_{turn}": inputs for pool in ("labelled", "unlabelled") for turn in turns}, 0.0)
    assert traced.names & RAISING == set()
    assert "convolution_backward" in traced.names
