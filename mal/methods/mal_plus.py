"""MAL's start with another choice; not the paper's.

M's margin in place of C's entropy, D as a filter against outliers in place of half of the rule, and a batch that is
spread out: among the images of smallest margin, k-center greedy on M's features (Sener and Savarese 2018).
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mal.acquisition import uncertainty
from mal.acquisition.kcenter import kcenter_greedy
from mal.acquisition.ranking import top_b
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import feature_size, require_memory
from mal.models.heads import TaskModel


@METHODS.register("mal_plus")
class MALPlus(Method):
    """Spread out among the uncertain for M, without those that D finds least like the labelled."""

    def fit(self) -> None:
        """Algorithm 1; refuses a pool whose features do not fit, before anything is computed."""
        require_memory(self.setting, "coreset", dimensions=feature_size(self.setting.config))
        _ = self.setting.minimax

    def score(self, model: TaskModel) -> Scores:
        """margin: of M, negated, (N,); unit: M's features of length 1, (N, d); labelledness: D's probability, (N,)."""
        encoder, discriminator = self.setting.minimax.encoder, self.setting.minimax.discriminator

        def all_three(images: Tensor) -> dict[str, Tensor]:
            features = model.backbone(images)
            return {
                "margin": uncertainty.margin(model.head(features), from_logits=True),
                "unit": F.normalize(features.float(), dim=1),
                "labelledness": discriminator(encoder(images)).float().sigmoid(),
            }

        return self.setting.scan(all_three, model, encoder, discriminator)

    def select(self, scores: Scores, budget: int) -> Query:
        """Of those that D leaves, method.candidates times the budget by margin; of these the farthest apart."""
        method, count = self.setting.config.method, len(scores["margin"])
        kept = count - min(int(method["outliers"] * count), count - budget)
        inliers = np.sort(top_b(scores["labelledness"], kept))
        likely = inliers[top_b(scores["margin"][inliers], min(round(method["candidates"] * budget), kept))]
        spread = kcenter_greedy(
            scores["unit"][likely],
            None,
            budget,
            device=self.setting.device.torch.type,
            progress=self.setting.count_picks(budget),
        )
        return self.setting.query(positions=likely[spread])
