"""ProbCover: the images whose neighbourhoods cover most of what no label covers (Yehuda et al. 2022).

Features as in typiclust.py. method.delta is the neighbourhoods' radius; null: the largest that leaves method.purity of
them within one k-means cluster, of as many clusters as there are classes (section 3.3 of the source).
"""

from __future__ import annotations

import numpy as np

from mal.acquisition.probcover import coverage_radius, probcover
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import feature_size, random_state, require_memory, scan_features
from mal.models.heads import TaskModel


@METHODS.register("probcover")
class ProbCover(Method):
    """Greedy maximum coverage by balls around the labelled and the chosen."""

    def fit(self) -> None:
        """Nothing to train; refuses a pool whose features do not fit."""
        require_memory(self.setting, "probcover", dimensions=feature_size(self.setting.config))

    def score(self, model: TaskModel) -> Scores:
        """features: of M, of length 1, (N, d); centres: of the labelled, (M, d)."""
        return scan_features(self.setting, model, unit=True)

    def select(self, scores: Scores, budget: int) -> Query:
        """Most newly covered first, ties by lowest index."""
        features = scores["features"]
        report = self.setting.count_picks(len(features) + budget)
        delta = self.setting.config.method["delta"] or self._radius(features)
        picks = probcover(features, scores["centres"], budget, delta=delta, progress=report)
        return self.setting.query(positions=picks)

    def _radius(self, features: np.ndarray) -> float:
        config = self.setting.config
        seed = random_state(self.setting, "radius")
        return coverage_radius(features, clusters=config.dataset.classes, seed=seed, purity=config.method["purity"])
