"""BatchBALD: the batch whose labels together would tell most about the network (Kirsch et al. 2019).

It needs every pass's prediction, so it looks at the method.candidates images of highest BALD alone, in bounded memory;
a budget above that is filled by BALD.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mal.acquisition.batchbald import batchbald
from mal.acquisition.ranking import top_b
from mal.methods.bald import BALD, predict
from mal.methods.base import METHODS, Query, Scores
from mal.methods.common import require_memory, without
from mal.models.heads import TaskModel


@METHODS.register("batchbald")
class BatchBALD(BALD):
    """Greedily the image that adds most to the joint mutual information."""

    def fit(self) -> None:
        """Nothing to train; refuses candidates whose predictions do not fit."""
        config = self.setting.config
        require_memory(
            self.setting,
            "batchbald",
            candidates=self._candidates(),
            classes=config.dataset.classes,
            passes=config.method["passes"],
            configurations=config.method["configurations"],
        )

    def score(self, model: TaskModel) -> Scores:
        """bald: nats, (N,); candidates: positions, ascending, (C,); probabilities: theirs in each pass, (C, S, K)."""
        scores = super().score(model)
        candidates = np.sort(top_b(scores["bald"], self._candidates()))
        masks = self.masks(model)

        def passes(images: Tensor) -> dict[str, Tensor]:
            logits = torch.stack(list(predict(model, images, masks)), dim=1)
            return {"probabilities": logits.float().softmax(dim=2)}

        indices = self.setting.unlabelled[candidates]
        scan = self.setting.scan_at("score candidates", indices, passes, model)
        return scores | {"candidates": candidates} | scan

    def select(self, scores: Scores, budget: int) -> Query:
        """Most informative together with those before first, ties by lowest index."""
        candidates = scores["candidates"]
        together = min(budget, len(candidates))
        chosen = batchbald(
            scores["probabilities"],
            together,
            self.setting.random("query"),
            configurations=self.setting.config.method["configurations"],
            progress=self.setting.count_picks(together),
        )
        picks = candidates[chosen]
        if together < budget:
            picks = np.concatenate([picks, top_b(without(scores["bald"], picks), budget - together)])
        return self.setting.query(positions=picks)

    def _candidates(self) -> int:
        return min(int(self.setting.config.method["candidates"]), len(self.setting.unlabelled))
