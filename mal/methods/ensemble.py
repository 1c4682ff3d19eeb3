"""Deep ensemble: where independently trained task models disagree (Beluch et al. 2018).

M is one of method.members; the others are trained in the same way, from another initialisation and in another order of
batches, each its own phase. Under task.init=from_f all start from F; under continue the others start anew.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mal.acquisition.ranking import top_b
from mal.acquisition.uncertainty import PassAccumulator, variation_ratio
from mal.methods.base import METHODS, Method, Query, Scores
from mal.models.heads import TaskModel


@METHODS.register("ensemble")
class Ensemble(Method):
    """The b images of highest method.measure: variation_ratio | entropy | mutual_information."""

    members: list[TaskModel]

    def fit(self) -> None:
        """Train the other members, unless the round is the last and asks nothing of them."""
        count = self.setting.config.method["members"] - 1 if self.setting.has_query else 0
        self.members = [self.setting.train_task_model(f"ensemble-{number}") for number in range(1, count + 1)]

    def score(self, model: TaskModel) -> Scores:
        """entropy and mutual_information: of the members' predictions, nats, (N,); votes: their classes, (N, S)."""
        members = [model, *self.members]

        def disagreement(images: Tensor) -> dict[str, Tensor]:
            predictions, votes = PassAccumulator(), []
            for member in members:
                logits = member(images)
                predictions.update(logits, from_logits=True)
                votes.append(logits.argmax(dim=1).int())
            bald = predictions.bald()
            return {"entropy": predictions.entropy(), "mutual_information": bald, "votes": torch.stack(votes, dim=1)}

        return self.setting.scan(disagreement, *members)

    def select(self, scores: Scores, budget: int) -> Query:
        """Highest first; few votes tie often: then by the entropy, then by lowest index."""
        measure = self.setting.config.method["measure"]
        if measure != "variation_ratio":
            return self.setting.query(positions=top_b(scores[measure], budget))
        order = np.lexsort((-scores["entropy"], -variation_ratio(scores["votes"].T)))
        return self.setting.query(positions=order[:budget])
