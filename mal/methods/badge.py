"""BADGE: k-means++ over the gradients that the likeliest labels would give M's last layer (Ash et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from mal.acquisition.badge import badge
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import feature_size, require_memory
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

    def select(self, scores: Scores, budget: int) -> Query:
        """First the longest gradient, then draws in proportion to the squared distance from the chosen."""
        return self.setting.query(
            positions=badge(
                scores["probabilities"],
                scores["features"],
                budget,
                self.setting.random("query"),
                mode=self.setting.config.method["mode"],
                progress=self.setting.count_picks(budget),
            )
        )
