"""Acquisition functions: arrays in, positions out. They do not depend on models, rounds or the configuration.

A candidate is named by its position in the arrays given; every result is an int64 array of positions in order
of choice. Modules that compile (numba) or that need scikit-learn import them at the first call, so that
importing this package costs numpy alone.
"""

from mal.acquisition.badge import badge
from mal.acquisition.batchbald import batchbald, joint_information
from mal.acquisition.estimate import Estimate, estimate
from mal.acquisition.kcenter import kcenter_greedy
from mal.acquisition.probcover import coverage_radius, probcover
from mal.acquisition.ranking import stochastic_scores, top_b
from mal.acquisition.typiclust import typiclust
from mal.acquisition.uncertainty import (
    PassAccumulator,
    entropy,
    least_confidence,
    margin,
    softmax,
    variation_ratio,
)
from mal.process.memory import available_memory

__all__ = [
    "Estimate",
    "PassAccumulator",
    "available_memory",
    "badge",
    "batchbald",
    "coverage_radius",
    "entropy",
    "estimate",
    "joint_information",
    "kcenter_greedy",
    "least_confidence",
    "margin",
    "probcover",
    "softmax",
    "stochastic_scores",
    "top_b",
    "typiclust",
    "variation_ratio",
]
