"""Margin sampling: where the task model's two likeliest classes are closest (Scheffer et al. 2001)."""

from __future__ import annotations

from functools import partial

from mal.acquisition import uncertainty
from mal.acquisition.ranking import top_b
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import mean_over_pixels
from mal.models.heads import TaskModel


@METHODS.register("margin")
class Margin(Method):
    """The b images of smallest difference between the two highest probabilities."""

    def score(self, model: TaskModel) -> Scores:
        """margin: the difference, negated, (N,); of maps, its mean over the pixels."""
        margin = partial(uncertainty.margin, from_logits=True)
        return self.setting.scan(lambda images: {"margin": mean_over_pixels(margin, model(images))}, model)

    def select(self, scores: Scores, budget: int) -> Query:
        """Smallest difference first, ties by lowest index."""
        return self.setting.query(positions=top_b(scores["margin"], budget))
