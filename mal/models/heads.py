"""The heads on F's features: classifier C, discriminator D, and the task model M.

Layer sizes follow the parameter counts of the paper's appendix B. Segmentation has heads of its own (Section 3.2), on
maps of features (B, d, h, w): the encoder says which ones fit it, by having a `stride`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mal.models.backbones import without_autocast, xavier


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(features: Tensor, factor: float) -> Tensor:
    """The identity forward, the gradient times `factor` backward."""
    return cast(Tensor, _ScaleGradient.apply(features, factor))


def reverse_gradient(features: Tensor) -> Tensor:
    """The identity forward, the negated gradient backward (Ganin and Lempitsky 2015; Section 3.1)."""
    return scale_gradient(features, -1.0)


@contextlib.contextmanager
def exact(module: nn.Module, features: Tensor) -> Iterator[Tensor]:
    """The features that a head computes with: when it is asked, float32 whatever the precision of training.

    In bf16 the scores of a large pool have some thousand values, and ties would go by index, which is often by class.
    """
    if module.training:
        yield features
    else:
        with torch.autocast(features.device.type, enabled=False):
            yield features.float() if features.dtype == torch.bfloat16 else features


class Upsampling(nn.Module):
    """Fixed bilinear enlargement by a whole factor s: DRN's transposed convolution (kernel 2 s, stride s, padding s/2).

    As two matrix products, because the CUDA backward of F.interpolate is not deterministic. Beyond the border it sees
    zeros, as the transposed convolution does.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: Tensor) -> Tensor:
        """(B, K, h, w) to (B, K, s h, s w), channels_last; float32 for bf16, which cannot hold positions of pixels."""
        with without_autocast(maps):
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
            rows, columns = (self._weights(length, maps) for length in maps.shape[-2:])
            wide_BhWK = columns @ maps.permute(0, 2, 3, 1)
            tall_BHWK = (rows @ wide_BhWK.flatten(2)).unflatten(2, wide_BhWK.shape[2:])
            return tall_BHWK.permute(0, 3, 1, 2)

    def _weights(self, length: int, like: Tensor) -> Tensor:
        large = (torch.arange(self.factor * length, dtype=like.dtype, device=like.device) + 0.5) / self.factor
        small = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
        return (1 - (large[:, None] - small).abs()).clamp_(min=0)


class CosineClassifier(nn.Module):
    """C: a bottleneck, L2 normalisation, and K prototypes; logits are the products divided by T (Eq. 1)."""

    def __init__(
        self, features: int, bottleneck: int, classes: int, temperature: float, prototypes: str = "xavier"
    ) -> None:
        """prototypes: their initialisation, xavier (the paper's), or uniform (torch's own, which MME's code has)."""
        super().__init__()
        self.bottleneck = nn.Linear(features, bottleneck)
        self.prototypes = nn.Linear(bottleneck, classes, bias=False)
        self.temperature = temperature
        xavier(self.bottleneck if prototypes == "uniform" else self)

    def forward(self, features: Tensor, reverse: bool = False) -> Tensor:
        """(B, d) to logits (B, K).

        reverse: negate the gradient between the prototypes and the bottleneck, so that one backward pass moves the
        prototypes against everything below them, which the bottleneck belongs to (as in MME).
        """
        with exact(self, features) as features:
            hidden = self.bottleneck(features)
            if reverse:
                hidden = reverse_gradient(hidden)
            return cast(Tensor, self.prototypes(F.normalize(hidden, dim=1))) / self.temperature


class PixelClassifier(nn.Module):
    """C for segmentation: K prototypes as a 1x1 convolution on L2-normalised pixels, over T, then enlarged (3.2)."""

    def __init__(
        self, features: int, classes: int, temperature: float, stride: int, prototypes: str = "xavier"
    ) -> None:
        """prototypes: as of CosineClassifier."""
        super().__init__()
        self.prototypes = nn.Conv2d(features, classes, 1, bias=False)
        self.upsampling = Upsampling(stride)
        self.temperature = temperature
        if prototypes == "xavier":
            xavier(self)

    def forward(self, features: Tensor, reverse: bool = False) -> Tensor:
        """(B, d, h, w) to logits (B, K, H, W); reverse: negate the gradient between the prototypes and F."""
        with exact(self, features) as features:
            if reverse:
                features = reverse_gradient(features)
            return cast(Tensor, self.upsampling(self.prototypes(F.normalize(features, dim=1)) / self.temperature))


class Discriminator(nn.Module):
    """D: a perceptron of three layers with ReLU on F's features; its logit is positive for labelled (Section 4.1)."""

    def __init__(self, features: int, hidden: int, temperature: float | None = None) -> None:
        """temperature: T where D sees F / ||F|| / T, as Eq. 3 writes it; None: F's features as they are."""
        super().__init__()
        self.temperature = temperature
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        xavier(self)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) to logits (B,)."""
        with exact(self, features) as features:
            return cast(Tensor, self.layers(_over_t(features, self.temperature))).squeeze(1)


class MapDiscriminator(nn.Module):
    """D for segmentation: three convolutions, each halving the map, and a small linear layer (Section 4.2).

    Paper: sizes unspecified; here kernel 3, stride 2, ReLU, and the mean over positions before the linear layer.
    """

    def __init__(self, features: int, hidden: int, temperature: float | None = None) -> None:
        """temperature: as of Discriminator; the length is that of each position's features."""
        super().__init__()
        self.temperature = temperature
        layers: list[nn.Module] = []
        for inputs in (features, hidden, hidden):
            layers += [nn.Conv2d(inputs, hidden, 3, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(hidden, 1)
        xavier(self)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d, h, w) to logits (B,)."""
        with exact(self, features) as features:
            return cast(Tensor, self.linear(pooled(self.layers(_over_t(features, self.temperature))))).squeeze(1)


class LinearHead(nn.Linear):
    """M's last layer for classification."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) to logits (B, K)."""
        with exact(self, features) as features:
            return super().forward(features)


def _over_t(features: Tensor, temperature: float | None) -> Tensor:
    return features if temperature is None else F.normalize(features, dim=1) / temperature


class PixelHead(nn.Module):
    """M's last layer for segmentation, as DRN's: a 1x1 convolution with bias, then fixed bilinear enlargement."""

    def __init__(self, features: int, classes: int, stride: int) -> None:
        super().__init__()
        self.in_features = features
        self.convolution = nn.Conv2d(features, classes, 1)
        self.upsampling = Upsampling(stride)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d, h, w) to logits (B, K, H, W)."""
        with exact(self, features) as features:
            return cast(Tensor, self.upsampling(self.convolution(features)))


class TaskModel(nn.Module):
    """M: a backbone and one linear layer (Algorithm 3; the appendix's T), for segmentation at every pixel.

    dropout: the share of features dropped before that layer in training, for the methods that ask for it (BALD); of a
    map of features, whole channels.
    """

    head: LinearHead | PixelHead

    def __init__(self, backbone: nn.Module, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        features, stride = cast(int, backbone.features), stride_of(backbone)
        self.backbone = backbone
        self.dropout = nn.Dropout2d(dropout) if stride else nn.Dropout(dropout)
        self.head = PixelHead(features, classes, stride) if stride else LinearHead(features, classes)
        xavier(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K), for segmentation (B, K, H, W)."""
        return cast(Tensor, self.head(self.dropout(self.backbone(images))))


def stride_of(backbone: nn.Module) -> int:
    """Image pixels to a feature; 0 for a backbone that gives one feature vector per image."""
    return int(getattr(backbone, "stride", 0))


def pooled(features: Tensor) -> Tensor:
    """An image's features (B, d): as they are, or of a map (B, d, h, w) their mean over its positions."""
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features
