"""Entropy sampling: where the task model is least certain (Wang and Shang 2014; Section 4, Baselines)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mal.acquisition.ranking import top_b
from mal.methods.base import METHODS, Method, Scores
from mal.models.heads import TaskModel


def predictive_entropy(logits: Tensor) -> Tensor:
    """H of the softmax of logits (B, K), in nats: float32 (B,); of (B, K, H, W), the mean over the pixels."""
    h = pixel_entropy(logits)
    return h.mean(dim=(1, 2)) if h.ndim == 3 else h


def pixel_entropy(logits: Tensor) -> Tensor:
    """H of each prediction, in nats: (B, K, ...) to float32 (B, ...)."""
    log_p = logits.float().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


@METHODS.register("entropy")
class Entropy(Method):
    """The b images of highest predictive entropy."""

    def score(self, model: TaskModel) -> Scores:
        """entropy: nats, (N,)."""
        return self.setting.scan(lambda images: {"entropy": predictive_entropy(model(images))}, model)

    def select(self, scores: Scores, budget: int) -> np.ndarray:
        """Highest first, ties by lowest index."""
        return top_b(scores["entropy"], budget)
