"""Acquisition methods, one file each, registered by name: a new one is a file, its YAML and its import here."""

from mal.methods import (
    badge,
    bald,
    batchbald,
    coreset,
    ensemble,
    entropy,
    least_confidence,
    mal,
    margin,
    power_bald,
    probcover,
    random,
    typiclust,
    vaal,
)
from mal.methods.base import METHODS, Method, Query, Setting

__all__ = [
    "METHODS",
    "Method",
    "Query",
    "Setting",
    "badge",
    "bald",
    "batchbald",
    "coreset",
    "ensemble",
    "entropy",
    "least_confidence",
    "mal",
    "margin",
    "power_bald",
    "probcover",
    "random",
    "typiclust",
    "vaal",
]
