"""Entropy sampling: where the task model is least certain (Wang and Shang 2014; Section 4, Baselines)."""

from __future__ import annotations

from mal.acquisition.ranking import top_b
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import predictive_entropy
from mal.models.heads import TaskModel


@METHODS.register("entropy")
class Entropy(Method):
    """The b images of highest predictive entropy."""

    def score(self, model: TaskModel) -> Scores:
        """entropy: nats, (N,)."""
        return self.setting.scan(lambda images: {"entropy": predictive_entropy(model(images))}, model)

    def select(self, scores: Scores, budget: int) -> Query:
        """Highest first, ties by lowest index."""
        return self.setting.query(positions=top_b(scores["entropy"], budget))
