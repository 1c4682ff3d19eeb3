"""Random sampling: uniform, without replacement (Section 4, Baselines)."""

from __future__ import annotations

from mal.methods.base import METHODS, Method, Query, Scores
from mal.models.heads import TaskModel


@METHODS.register("random")
class Random(Method):
    """Looks at nothing."""

    def score(self, model: TaskModel) -> Scores:
        """No pass over the pool is needed."""
        return {}

    def select(self, scores: Scores, budget: int) -> Query:
        """A uniform draw."""
        return self.setting.random_query(budget)
