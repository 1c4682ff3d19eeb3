"""What a method is given and what it must answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from mal.config.registry import Registry
from mal.config.schema import Chain
from mal.data.loader import Loader
from mal.minimax import Networks, train_minimax
from mal.models.heads import TaskModel
from mal.rng import generator
from mal.training.loop import Trainer
from mal.training.scan import Scanner

METHODS: Registry[type[Method]] = Registry("method.acquisition")
Scores = dict[str, np.ndarray]


@dataclass
class Setting:
    """All that a method sees of a round: the pool's images, the labels bought so far, the configuration and seed.

    number: the round; labelled, unlabelled: int64, sorted absolute indices; loader: images by index, with labels where
    they were bought and -1 elsewhere.
    """

    config: Chain
    number: int
    labelled: np.ndarray
    unlabelled: np.ndarray
    loader: Loader
    trainer: Trainer
    scanner: Scanner

    @cached_property
    def minimax(self) -> Networks:
        """F, C and D, trained by Algorithm 1 on this round's pools the first time they are asked for."""
        return train_minimax(self.config, self.trainer, self.labelled, self.unlabelled)

    def random(self, *purpose: int | str) -> np.random.Generator:
        """Random numbers of this (seed, round, purpose)."""
        return generator(self.config.seed, self.number, *purpose)

    def scan(self, function: Callable[[Tensor], Mapping[str, Tensor]], *modules: nn.Module) -> Scores:
        """`function` of every unlabelled image, in the order of `unlabelled`; see `mal.training.scan.Scanner.scan`."""
        return self.scanner.scan("score", self.loader, self.unlabelled, function, *modules)


class Method(ABC):
    """One way to choose what to label. A method holds no state beyond its round."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def fit(self) -> None:  # noqa: B027 (may be left out)
        """Train what the method needs besides the task model; nothing by default."""

    @abstractmethod
    def score(self, model: TaskModel) -> Scores:
        """What the choice needs to know of each unlabelled image: arrays (N, ...) in the order of `unlabelled`."""

    @abstractmethod
    def select(self, scores: Scores, budget: int) -> np.ndarray:
        """`budget` distinct positions in `unlabelled`, int64, in order of choice."""

    def diagnostics(self, scores: Scores) -> dict[str, float]:
        """Numbers that may explain the round's choice, by name, for metrics.json and the report; none by default."""
        return {}
