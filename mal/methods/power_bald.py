"""PowerBALD: a batch drawn by BALD's scores instead of their top, so that it is not one image many times over.

Kirsch et al. 2023, Stochastic Batch Acquisition. method.kind: power (score^beta) | softmax | softrank.
"""

from __future__ import annotations

from mal.acquisition.ranking import stochastic_scores, top_b
from mal.methods.bald import BALD
from mal.methods.base import METHODS, Query, Scores


@METHODS.register("power_bald")
class PowerBALD(BALD):
    """A draw without replacement in proportion to the score to the power of method.beta."""

    def select(self, scores: Scores, budget: int) -> Query:
        """In the order drawn."""
        method = self.setting.config.method
        random = self.setting.random("query")
        drawn = stochastic_scores(scores["bald"], random, kind=method["kind"], beta=method["beta"])
        return self.setting.query(positions=top_b(drawn, budget))
