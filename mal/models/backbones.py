"""Feature encoders F: (B, C, H, W) normalised images to (B, d) features.

A backbone is a module with an attribute `features`, its d. One for segmentation gives (B, d, h, w) and has an attribute
`stride` too, the image pixels to a feature (drn.py). Grey images are repeated to the three channels that the ImageNet
architectures take. Initialisation is Xavier's, as the paper's (Section 4.1, Implementation details).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from mal.config.registry import Registry
from mal.models import pretrained


class BuildBackbone(Protocol):
    """Builds and initialises a backbone from its configuration and the number of image channels."""

    def __call__(self, config: dict[str, Any], channels: int) -> nn.Module:
        """config: the section `backbone`."""
        ...


Network = TypeVar("Network", bound=nn.Module)
BACKBONES: Registry[BuildBackbone] = Registry("backbone")


def build_backbone(config: dict[str, Any], channels: int) -> nn.Module:
    """The backbone that a configuration names: its pretrained weights, else drawn from torch's random state."""
    backbone = BACKBONES[config.get("library", config["name"])](config, channels)
    pretrained.start(backbone, config)
    return backbone


def describe_start(config: dict[str, Any], channels: int) -> pretrained.Start | None:
    """What the weights of a configuration give its backbone; None where it has none. Computes nothing."""
    if not config.get("weights"):
        return None
    with torch.device("meta"):
        backbone = build_backbone(config, channels)  # names of frozen layers are checked too
    return pretrained.fit(backbone, config)


def xavier(module: Network) -> Network:
    """The module, every convolution and linear layer with Xavier-uniform weights, zero biases (Glorot, Bengio 2010)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Computes in the tensors' own precision, also where a chain computes in bf16; a meta tensor has no autocast."""
    kind = tensor.device.type
    return torch.autocast(kind, torch.bfloat16, enabled=False) if is_autocast_available(kind) else nullcontext()


class SmallCNN(nn.Module):
    """Five 3x3 convolutions of these strides, then the global average."""

    def __init__(self, channels: int, width: int, strides: Sequence[int] = (1, 2, 1, 2, 1)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for outputs, stride in zip((width, width, 2 * width, 2 * width, 4 * width), strides, strict=True):
            layers += [
                nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            channels = outputs
        self.layers = nn.Sequential(*layers)
        self.features = channels

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, d)."""
        return cast(Tensor, self.layers(images)).mean(dim=(2, 3))


class ThreeChannels(nn.Module):
    """A network for colour images that also takes grey ones, repeated to three channels."""

    def __init__(self, layers: nn.Module, features: int, published: tuple[str, str] = ("layers.", "")) -> None:
        """published: how names begin here, and in the checkpoints of those who published the network."""
        super().__init__()
        self.layers = layers
        self.features = features
        self.published = published

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) to (B, d)."""
        features = self.layers(images.expand(-1, 3, -1, -1))
        return torch.flatten(features, 1)


class AveragePool(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products, because that one's CUDA backward is not deterministic."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        """(B, d, h, w) to (B, d, size, size)."""
        with without_autocast(features):  # a third has 8 bits in bf16
            rows, columns = (self._weights(features.shape[axis], features) for axis in (-2, -1))
            return (rows @ features.to(rows.dtype) @ columns.T).to(features.dtype)

    def _weights(self, length: int, like: Tensor) -> Tensor:
        """(size, length), made where it is needed: a CUDA graph records no copy from the host."""
        positions = torch.arange(length, device=like.device)
        cells = torch.arange(self.size, device=like.device)[:, None]
        first, last = cells * length // self.size, ((cells + 1) * length + self.size - 1) // self.size
        inside = (positions >= first) & (positions < last)
        return inside.to(torch.promote_types(like.dtype, torch.float32)) / (last - first)


@BACKBONES.register("small_cnn_32")
@BACKBONES.register("small_cnn")
def small_cnn(config: dict[str, Any], channels: int) -> nn.Module:
    """Not in the paper: a network that a CPU trains in seconds."""
    return xavier(SmallCNN(channels, int(config["width"])))


@BACKBONES.register("small_cnn_28")
def small_cnn_28(config: dict[str, Any], channels: int) -> nn.Module:
    """Not in the paper: small_cnn that halves the image at once, a quarter of the work for images of 28 pixels."""
    return xavier(SmallCNN(channels, int(config["width"]), strides=(2, 1, 2, 1, 1)))


@BACKBONES.register("resnet18")
def resnet18(config: dict[str, Any], channels: int) -> nn.Module:
    """torchvision's ResNet18 without its last layer: 11,176,512 parameters, d = 512 (appendix B: 11.18M)."""
    from torchvision.models import resnet18 as build

    network = build(weights=None)
    network.fc = nn.Identity()
    return xavier(ThreeChannels(network, 512))


@BACKBONES.register("vgg16_bn")
def vgg16_bn(config: dict[str, Any], channels: int) -> nn.Module:
    """torchvision's VGG16-BN convolutions, pooled to 7x7: 14,723,136 parameters, d = 25,088 (appendix B: 14.72M)."""
    from torchvision.models import vgg16_bn as build

    layers = nn.Sequential(build(weights=None).features, AveragePool(7))
    return xavier(ThreeChannels(layers, 512 * 7 * 7, published=("layers.0.", "features.")))
