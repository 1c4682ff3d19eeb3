"""ViT-B/16, a feature encoder F (Dosovitskiy et al. 2021), at the images' own size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mal.models.backbones import BACKBONES, ThreeChannels

POSITIONS = "encoder.pos_embedding"


class ViT(ThreeChannels):
    """The class token after the last layer norm, (B, 768)."""

    def __init__(self, layers: nn.Module, features: int, image: int, patch: int) -> None:
        super().__init__(layers, features)
        self.image, self.patch = image, patch

    def resize(self, name: str, tensor: Tensor) -> Tensor | None:
        """A checkpoint's embedding of positions, bicubic, for the number of patches here; None for another tensor."""
        from torchvision.models.vision_transformer import interpolate_embeddings

        if name.removeprefix("layers.") != POSITIONS or tensor.ndim != 3 or tensor.shape[-1] != self.features:
            return None
        found = interpolate_embeddings(self.image, self.patch, {POSITIONS: tensor})
        return found[POSITIONS]


@BACKBONES.register("vit_b_16")
def vit_b_16(config: dict[str, Any], channels: int) -> nn.Module:
    """torchvision's ViT-B/16 without its last layer: 85,798,656 parameters at 224 pixels, initialised as there."""
    from torchvision.models.vision_transformer import VisionTransformer

    image, patch = int(config["image_size"]), int(config["multiple"])
    network = VisionTransformer(image, patch, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072)
    network.heads = nn.Identity()
    return ViT(network, 768, image, patch)
