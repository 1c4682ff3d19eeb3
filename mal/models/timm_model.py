"""Any network of timm as a feature encoder F: backbone=timm backbone.name=NAME, where timm is installed."""

from __future__ import annotations

from typing import Any

from torch import nn

from mal.models.backbones import BACKBONES, ThreeChannels


@BACKBONES.register("timm")
def timm_model(config: dict[str, Any], channels: int) -> nn.Module:
    """timm's network without its last layer, pooled as it does, initialised as there.

    Raises ValueError where timm has no such network.
    """
    import timm

    name, size = str(config["name"]), config["image_size"]
    if not timm.is_model(name):
        some = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:10])
        raise ValueError(
            f"backbone.name={name} is not a network of timm {timm.__version__}{f'; it has {some}' if some else ''}."
        )
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
    except TypeError:  # most take images of any size, and no such argument
        network = timm.create_model(name, pretrained=False, num_classes=0)
    return ThreeChannels(network, network.num_features)
