"""Margin sampling: where the task model's two likeliest classes are closest (Scheffer et al. 2001)."""

from __future__ import annotations

import numpy as np

from mal.acquisition import uncertainty
from mal.acquisition.ranking import top_b
from mal.methods.base import METHODS, Method, Scores
from mal.models.heads import TaskModel


@METHODS.register("margin")
class Margin(Method):
    """The b images of smallest difference between the two highest probabilities."""

    def score(self, model: TaskModel) -> Scores:
        """margin: the difference, negated, (N,)."""
        return self.setting.scan(lambda images: {"margin": uncertainty.margin(model(images), from_logits=True)}, model)

    def select(self, scores: Scores, budget: int) -> np.ndarray:
        """Smallest difference first, ties by lowest index."""
        return top_b(scores["margin"], budget)
