"""ConvNeXt-T, a feature encoder F (Liu et al. 2022)."""

from __future__ import annotations

from typing import Any

from torch import nn

from mal.models.backbones import BACKBONES, ThreeChannels


@BACKBONES.register("convnext_tiny")
def convnext_tiny(config: dict[str, Any], channels: int) -> nn.Module:
    """torchvision's ConvNeXt-T up to the layer norm before its last layer, initialised as there; d = 768."""
    from torchvision.models import convnext_tiny as build

    network = build(weights=None, stochastic_depth_prob=float(config["stochastic_depth"]))
    network.classifier[2] = nn.Identity()
    return ThreeChannels(network, 768)
