"""MAL's query (Algorithm 2): uncertain for C, and unlike the labelled for D.

The paper's "top b samples that meet both conditions" is ambiguous; each reading is a rule, chosen by method.query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from mal.acquisition.ranking import top_b
from mal.config.registry import Registry
from mal.methods.base import METHODS, Method, Query, Scores
from mal.methods.common import predictive_entropy
from mal.models.heads import TaskModel
from mal.training.diagnostics import discriminator_signals, spearman

Rule = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
RULES: Registry[Rule] = Registry("method.query")


def ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value in ascending order, from 0, ties by lowest position: int64 (N,)."""
    place = np.empty(len(values), dtype=np.int64)
    place[np.argsort(values, kind="stable")] = np.arange(len(values))
    return place


@RULES.register("intersection")
def intersection(entropy: np.ndarray, labelledness: np.ndarray, budget: int) -> np.ndarray:
    """The b whose worse rank, by entropy from the top and by D from the bottom, is best; ties by the better rank."""
    by_entropy, by_d = ranks(-entropy), ranks(labelledness)
    return np.lexsort((np.minimum(by_entropy, by_d), np.maximum(by_entropy, by_d)))[:budget]


@RULES.register("rank_sum")
def rank_sum(entropy: np.ndarray, labelledness: np.ndarray, budget: int) -> np.ndarray:
    """The b whose two ranks have the smallest sum."""
    return np.argsort(ranks(-entropy) + ranks(labelledness), kind="stable")[:budget]


@RULES.register("entropy_of_unlabelled")
def entropy_of_unlabelled(entropy: np.ndarray, labelledness: np.ndarray, budget: int) -> np.ndarray:
    """Among those that D takes for unlabelled (below 0.5), the b of highest entropy; where fewer, then the lowest D."""
    below = np.flatnonzero(labelledness < 0.5)
    chosen = below[top_b(entropy[below], min(budget, len(below)))] if len(below) else below
    above = np.flatnonzero(labelledness >= 0.5)
    topped_up = above[ranks(labelledness[above]).argsort()[: budget - len(chosen)]]
    return np.concatenate([chosen, topped_up])


@RULES.register("entropy")
def entropy_alone(entropy: np.ndarray, labelledness: np.ndarray, budget: int) -> np.ndarray:
    """The b of highest entropy, whatever D says (Section 5)."""
    return top_b(entropy, budget)


@RULES.register("discriminator")
def discriminator_alone(entropy: np.ndarray, labelledness: np.ndarray, budget: int) -> np.ndarray:
    """The b that D is surest are unlabelled, whatever their entropy (Section 5)."""
    return top_b(-labelledness, budget)


@METHODS.register("mal")
class MAL(Method):
    """F, C and D by Algorithm 1; the query by the rule in method.query."""

    def fit(self) -> None:
        """Algorithm 1."""
        _ = self.setting.minimax

    def score(self, model: TaskModel) -> Scores:
        """entropy: of C, nats, (N,); labelledness: D's probability of being labelled, (N,)."""
        if self.setting.config.method["query"] == "random":
            return {}
        networks = self.setting.minimax

        def both(images: Tensor) -> dict[str, Tensor]:
            features = networks.encoder(images)
            labelledness = networks.discriminator(features).float().sigmoid()
            return {"entropy": predictive_entropy(networks.classifier(features)), "labelledness": labelledness}

        return self.setting.scan(both, networks.encoder, networks.classifier, networks.discriminator)

    def select(self, scores: Scores, budget: int) -> Query:
        """By the rule; `random` ignores the scores and separates MAL's start from its choice."""
        rule = self.setting.config.method["query"]
        if rule == "random":
            return self.setting.query(
                positions=self.setting.random("query").permutation(len(self.setting.unlabelled))[:budget]
            )
        if any(np.isnan(values).any() for values in scores.values()):
            raise ValueError("Scores of MAL are NaN: F, C or D diverged. Lower minimax.lr_f, lr_c or lr_d.")
        return self.setting.query(positions=RULES[rule](scores["entropy"], scores["labelledness"], budget))

    def diagnostics(self, scores: Scores) -> dict[str, float]:
        """D's certainty of both pools, C's mean entropy of the unlabelled (nats), and whether the two scores agree.

        entropy_d_spearman: 1 where the more uncertain are the less labelled for D, -1 where they are the more.
        """
        if not scores:
            return {}
        setting, networks = self.setting, self.setting.minimax
        entropy, seen = scores["entropy"], scores["labelledness"]
        if not setting.config.minimax.discriminator:
            return {"c_entropy": float(entropy.mean())}

        def labelledness(images: Tensor) -> dict[str, Tensor]:
            return {"labelledness": networks.discriminator(networks.encoder(images)).float().sigmoid()}

        modules = networks.encoder, networks.discriminator
        labelled = setting.scan_labelled(labelledness, *modules, phase="diagnose")
        sure = discriminator_signals(labelled["labelledness"], seen, boundary=0.5)
        return sure | {"c_entropy": float(entropy.mean()), "entropy_d_spearman": spearman(entropy, -seen)}
