"""Dilated residual networks, feature encoders F for segmentation (Yu, Koltun and Funkhouser 2017).

They give a feature for every `stride` x `stride` pixels: past that stride, layers are dilated instead of strided.
Initialisation is that of the source: convolutions normal with variance 2 / (k^2 outputs) (He et al. 2015, by outputs).
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from mal.models.backbones import BACKBONES, Network


def he_normal(module: Network) -> Network:
    """The module, every convolution drawn anew by its fan-out; batch norm starts at weight 1, bias 0 already."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (but for its stride), batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where the size changes (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride=stride, dilation=dilation)
        self.second = convolution(outputs, outputs, dilation=dilation)[:2]
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else convolution(inputs, outputs, 1, stride)[:2]

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        return F.relu(self.second(self.first(features)) + self.shortcut(features), inplace=True)


class DenseEncoder(nn.Module):
    """Layers that give a map of features; grey images are repeated to the channels that the first layer takes."""

    def __init__(self, layers: nn.Sequential, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.layers = layers
        self.channels, self.features, self.stride = channels, features, stride

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1 or channels, H, W) to (B, d, H / stride, W / stride)."""
        return cast(Tensor, self.layers(images.expand(-1, self.channels, -1, -1)))


def pair(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Two basic blocks, the first of which strides."""
    return nn.Sequential(BasicBlock(inputs, outputs, stride, dilation), BasicBlock(outputs, outputs, 1, dilation))


@BACKBONES.register("drn_d_22")
def drn_d_22(config: dict[str, Any], channels: int) -> nn.Module:
    """DRN-D-22 without its classifier: 15,880,752 parameters, d = 512, stride 8."""
    layers = nn.Sequential(
        convolution(3, 16, kernel=7),
        convolution(16, 16),
        convolution(16, 32, stride=2),
        pair(32, 64, stride=2),
        pair(64, 128, stride=2),
        pair(128, 256, dilation=2),
        pair(256, 512, dilation=4),
        # No shortcuts here, and falling dilation: what takes DRN-C's gridding away in DRN-D.
        convolution(512, 512, dilation=2),
        convolution(512, 512),
    )
    return he_normal(DenseEncoder(layers, channels=3, features=512, stride=8))


@BACKBONES.register("small_drn")
def small_drn(config: dict[str, Any], channels: int) -> nn.Module:
    """Not in the paper: DRN's plan (stride, then dilation, then none) in six convolutions, for a CPU; stride 4."""
    width = int(config["width"])
    layers = nn.Sequential(
        convolution(channels, width),
        convolution(width, 2 * width, stride=2),
        convolution(2 * width, 4 * width, stride=2),
        convolution(4 * width, 4 * width, dilation=2),
        convolution(4 * width, 4 * width, dilation=2),
        convolution(4 * width, 4 * width),
    )
    return he_normal(DenseEncoder(layers, channels=channels, features=4 * width, stride=4))
