"""Least confidence: where the task model's likeliest class is least likely (Lewis and Gale 1994)."""

from __future__ import annotations

from functools import partial

from mal.acquisition import uncertainty
from mal.acquisition.ranking import top_b
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import mean_over_pixels
from mal.models.heads import TaskModel


@METHODS.register("least_confidence")
class LeastConfidence(Method):
    """The b images of lowest highest probability."""

    def score(self, model: TaskModel) -> Scores:
        """doubt: 1 - the highest probability, (N,); of maps, its mean over the pixels."""
        doubt = partial(uncertainty.least_confidence, from_logits=True)
        return self.setting.scan(lambda images: {"doubt": mean_over_pixels(doubt, model(images))}, model)

    def select(self, scores: Scores, budget: int) -> Query:
        """Least confident first, ties by lowest index."""
        return self.setting.query(positions=top_b(scores["doubt"], budget))
