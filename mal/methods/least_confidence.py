"""Least confidence: where the task model's likeliest class is least likely (Lewis and Gale 1994)."""

from __future__ import annotations

from functools import partial

import numpy as np

from mal.acquisition import uncertainty
from mal.acquisition.ranking import top_b
from mal.methods.base import METHODS, Method, Scores
from mal.methods.common import of_images
from mal.models.heads import TaskModel


@METHODS.register("least_confidence")
class LeastConfidence(Method):
    """The b images of lowest highest probability."""

    def score(self, model: TaskModel) -> Scores:
        """doubt: 1 - the highest probability, (N,); of maps, its mean over the pixels."""
        doubt = partial(uncertainty.least_confidence, from_logits=True)
        return self.setting.scan(lambda images: {"doubt": of_images(doubt, model(images))}, model)

    def select(self, scores: Scores, budget: int) -> np.ndarray:
        """Least confident first, ties by lowest index."""
        return top_b(scores["doubt"], budget)
