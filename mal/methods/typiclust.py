"""TypiClust: a typical image of each cluster that has few labels (Hacohen et al. 2022); made for small budgets.

The source clusters features of self-supervised training; here they are M's, scaled to length 1. With task.init=from_f M
starts from MAL's F, which has seen the unlabelled images too.
"""

from __future__ import annotations

from mal.acquisition.typiclust import typiclust
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import feature_size, random_state, require_memory, scan_features
from mal.models.heads import TaskModel


@METHODS.register("typiclust")
class TypiClust(Method):
    """The densest image of the largest cluster without labels, cluster after cluster."""

    def fit(self) -> None:
        """Nothing to train; refuses a pool whose features do not fit."""
        require_memory(self.setting, "typiclust", dimensions=feature_size(self.setting.config))

    def score(self, model: TaskModel) -> Scores:
        """features: of M, of length 1, (N, d); centres: of the labelled, (M, d)."""
        return scan_features(self.setting, model, unit=True)

    def select(self, scores: Scores, budget: int) -> Query:
        """By method.max_clusters, method.neighbours and method.smallest, the size below which clusters come last."""
        method = self.setting.config.method
        return self.setting.query(
            positions=typiclust(
                scores["features"],
                scores["centres"],
                budget,
                seed=random_state(self.setting, "clusters"),
                max_clusters=method["max_clusters"],
                neighbours=method["neighbours"],
                smallest=method["smallest"],
                progress=self.setting.count_picks(budget),
            )
        )
