"""BADGE: k-means++ over the gradients that the likeliest labels would give M's last layer (Ash et al. 2020)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mal.acquisition.badge import badge
from mal.methods.base import METHODS, Method, Scores
from mal.methods.common import count_picks, feature_size, require_memory
from mal.models.heads import TaskModel


@METHODS.register("badge")
class BADGE(Method):
    """Images whose gradients are long and unlike each other; method.mode: rejection | exact, of the same law."""

    def fit(self) -> None:
        """Nothing to train; refuses a pool whose features and probabilities do not fit."""
        config = self.setting.config
        name = "badge_exact" if config.method["mode"] == "exact" else "badge"
        require_memory(self.setting, name, dimensions=feature_size(config), classes=config.dataset.classes)

    def score(self, model: TaskModel) -> Scores:
        """probabilities: of M, (N, K); features: what its last layer saw, (N, d). The gradients are never built."""

        def both(images: Tensor) -> dict[str, Tensor]:
            features = model.backbone(images)
            return {"features": features, "probabilities": model.head(features).float().softmax(dim=1)}

        return self.setting.scan(both, model)

    def select(self, scores: Scores, budget: int) -> np.ndarray:
        """First the longest gradient, then draws in proportion to the squared distance from the chosen."""
        return badge(
            scores["probabilities"],
            scores["features"],
            budget,
            self.setting.random("query"),
            mode=self.setting.config.method["mode"],
            progress=count_picks(self.setting, budget),
        )
