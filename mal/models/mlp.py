"""A perceptron as F on the features of a frozen encoder, where every round trains heads alone."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from mal.models.backbones import BACKBONES, xavier


class Perceptron(nn.Module):
    """Linear, layer norm, ReLU, several times: its rows do not depend on each other."""

    def __init__(self, inputs: int, width: int, layers: int) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.Linear(n, width), nn.LayerNorm(width), nn.ReLU()) for n in [inputs, *[width] * layers][:-1]
        ]
        self.layers = nn.Sequential(*blocks)
        self.features = width

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, inputs, 1, 1) to (B, width)."""
        return cast(Tensor, self.layers(vectors.flatten(1)))


@BACKBONES.register("mlp")
def mlp(config: dict[str, Any], channels: int) -> nn.Module:
    """Not in the paper; channels: the encoder's features."""
    return xavier(Perceptron(channels, int(config["width"]), int(config["layers"])))
