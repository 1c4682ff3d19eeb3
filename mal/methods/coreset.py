"""Core-set: k-center greedy on M's features (Sener and Savarese 2018; Section 4, Baselines)."""

from __future__ import annotations

import numpy as np

from mal.acquisition.kcenter import kcenter_greedy
from mal.methods.base import METHODS, Method, Scores
from mal.methods.common import count_picks, feature_size, require_memory, scan_features, select_device
from mal.models.heads import TaskModel


@METHODS.register("coreset")
class Coreset(Method):
    """Again and again the image farthest (L2) from its nearest labelled or chosen one."""

    def fit(self) -> None:
        """Nothing to train; refuses a pool whose features do not fit, before anything is computed."""
        require_memory(self.setting, "coreset", dimensions=feature_size(self.setting.config))

    def score(self, model: TaskModel) -> Scores:
        """features: of M, (N, d); centres: of the labelled, (M, d)."""
        return scan_features(self.setting, model)

    def select(self, scores: Scores, budget: int) -> np.ndarray:
        """Farthest first, ties by lowest index; the centres are the whole labelled set."""
        return kcenter_greedy(
            scores["features"],
            scores["centres"],
            budget,
            device=select_device(self.setting),
            progress=count_picks(self.setting, budget),
        )
