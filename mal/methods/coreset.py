"""Core-set: k-center greedy on M's features (Sener and Savarese 2018; Section 4, Baselines)."""

from __future__ import annotations

from mal.acquisition.kcenter import kcenter_greedy
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import feature_size, require_memory, scan_features
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

    def select(self, scores: Scores, budget: int) -> Query:
        """Farthest first, ties by lowest index; the centres are the whole labelled set."""
        return self.setting.query(
            positions=kcenter_greedy(
                scores["features"],
                scores["centres"],
                budget,
                device=self.setting.device.torch.type,
                progress=self.setting.count_picks(budget),
            )
        )
