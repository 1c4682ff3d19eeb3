"""What methods that compare images with each other share: entropies, M's features, and what they need."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mal.acquisition.estimate import estimate
from mal.config.schema import Chain
from mal.methods.base import Scores, Setting
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel, pooled
from mal.process.memory import available_memory
from mal.training.evaluate import pixel_entropy

log = logging.getLogger(__name__)


def feature_size(config: Chain) -> int:
    """d of the backbone's features, without its weights."""
    with torch.device("meta"):
        return int(build_backbone(config.backbone, config.dataset.channels).features)  # type: ignore[arg-type]


def require_memory(setting: Setting, name: str, **sizes: int) -> None:
    """Log what acquisition `name` will need in this round; ValueError, naming another, where that is not there.

    sizes: those of `mal.acquisition.estimate` besides the candidates, the labelled and the budget.
    """
    if not setting.has_query:
        return
    sizes = {"candidates": len(setting.unlabelled), "labelled": len(setting.labelled)} | sizes
    needs = estimate(name, budget=setting.config.budget, **sizes)
    log.info("%s", needs)
    needs.require(available_memory(), inputs_loaded=False)


def scan_features(setting: Setting, model: TaskModel, unit: bool = False) -> Scores:
    """What M's last layer sees: `features` (N, d) of the unlabelled, `centres` (M, d) of the labelled, float32.

    Of maps of features the mean over positions. unit: scaled to length 1. One pass over each, without augmentation
    or dropout.
    """

    def features(images: Tensor) -> dict[str, Tensor]:
        values = pooled(model.backbone(images).float())
        return {"features": F.normalize(values, dim=1) if unit else values}

    centres = setting.scan_labelled(features, model)["features"]
    return {"features": setting.scan(features, model)["features"], "centres": centres}


def mean_over_pixels(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """A score of predictions, for each image: of (B, K) as it is, of (B, K, H, W) its mean over the pixels. (B,).

    function: logits (rows, K) to scores (rows,).
    """
    rows = logits.movedim(1, -1).flatten(0, -2)
    return function(rows).view(len(logits), -1).mean(dim=1)


def random_state(setting: Setting, purpose: str) -> int:
    """A seed below 2^31 of this (seed, round, purpose), for libraries that take a number."""
    return int(setting.random(purpose).integers(2**31))


def without(scores: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Scores (N,) with those at `positions` below all others."""
    rest = scores.astype(np.float64)
    rest[positions] = -np.inf
    return rest


def predictive_entropy(logits: Tensor) -> Tensor:
    """H of the softmax of logits (B, K), in nats: float32 (B,); of (B, K, H, W), the mean over the pixels."""
    h = pixel_entropy(logits)
    return h.mean(dim=(1, 2)) if h.ndim == 3 else h
