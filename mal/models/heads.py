"""The heads on F's features: classifier C, discriminator D, and the task model M.

Layer sizes follow the parameter counts of the paper's appendix B.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mal.models.backbones import xavier


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reverse_gradient(features: Tensor) -> Tensor:
    """The identity forward, the negated gradient backward (Ganin and Lempitsky 2015; Section 3.1)."""
    return cast(Tensor, _ReverseGradient.apply(features))


class CosineClassifier(nn.Module):
    """C: a bottleneck, L2 normalisation, and K prototypes; logits are the products divided by T (Eq. 1)."""

    def __init__(self, features: int, bottleneck: int, classes: int, temperature: float) -> None:
        super().__init__()
        self.bottleneck = nn.Linear(features, bottleneck)
        self.prototypes = nn.Linear(bottleneck, classes, bias=False)
        self.temperature = temperature
        xavier(self)

    def forward(self, features: Tensor, reverse: bool = False) -> Tensor:
        """(B, d) to logits (B, K).

        reverse: negate the gradient between the prototypes and the bottleneck, so that one backward pass moves the
        prototypes against everything below them, which the bottleneck belongs to (as in MME).
        """
        hidden = self.bottleneck(features)
        if reverse:
            hidden = reverse_gradient(hidden)
        return cast(Tensor, self.prototypes(F.normalize(hidden, dim=1))) / self.temperature


class Discriminator(nn.Module):
    """D: a perceptron of three layers with ReLU on F's features; its logit is positive for labelled (Section 4.1)."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        xavier(self)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) to logits (B,)."""
        return cast(Tensor, self.layers(features)).squeeze(1)


class TaskModel(nn.Module):
    """M: a backbone and one linear layer (Algorithm 3; the appendix's T).

    dropout: the share of features dropped before that layer in training, for the methods that ask for it (BALD).
    """

    def __init__(self, backbone: nn.Module, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(cast(int, backbone.features), classes)
        xavier(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        return cast(Tensor, self.head(self.dropout(self.backbone(images))))
