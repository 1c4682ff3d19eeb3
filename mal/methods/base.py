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
from mal.process.device import Device
from mal.rng import generator
from mal.task import train_task_model
from mal.training.loop import Trainer
from mal.training.objective import Objective
from mal.training.scan import Scanner
from mal.training.temperature import fit_temperature

METHODS: Registry[type[Method]] = Registry("method.acquisition")
Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Query:
    """Images to label, in order of choice. `Setting.query` makes it, from positions or from indices.

    indices: int64 (b,), absolute pool indices; positions: int64 (b,), the same images by their place in
    `Setting.unlabelled`.
    """

    indices: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


class Setting:
    """All that a method sees of a round: the pool's images, the labels bought so far, the configuration and seed.

    config: of the chain; number: the round; labelled, unlabelled: int64, sorted absolute indices; device: where the
    networks are, and the processes that share the work.
    """

    def __init__(
        self,
        config: Chain,
        number: int,
        labelled: np.ndarray,
        unlabelled: np.ndarray,
        loader: Loader,
        trainer: Trainer,
        scanner: Scanner,
    ) -> None:
        """loader: images by index, with labels where they were bought and -1 elsewhere."""
        self.config, self.number, self.labelled, self.unlabelled = config, number, labelled, unlabelled
        self.device: Device = trainer.device
        self._loader, self._trainer, self._scanner = loader, trainer, scanner

    # ------------------------------------------------------------------------- facts of the round

    @property
    def has_query(self) -> bool:
        """Whether this round ends with a query: the last one of a chain only trains and evaluates M."""
        return self.number + 1 < self.config.rounds

    @property
    def starts_from_f(self) -> bool:
        """Whether task models start from MAL's F in this round."""
        init = self.config.task.init
        return init == "from_f" or (init == "from_f_continue" and self.number == 0)

    @property
    def image_size(self) -> int:
        """The side of the images as networks see them in a scan, in pixels."""
        return self.config.dataset.crop or self.config.dataset.size

    def images(self, indices: np.ndarray) -> Tensor:
        """Images as they are in the pool, uint8 (B, C, H, W) on the device, at absolute indices int64 (B,)."""
        return self._loader.load(indices).images

    def random(self, *purpose: int | str) -> np.random.Generator:
        """Random numbers of this (seed, round, purpose)."""
        return generator(self.config.seed, self.number, *purpose)

    # ------------------------------------------------------------------------- passes over images

    def scan(self, function: Callable[[Tensor], Mapping[str, Tensor]], *modules: nn.Module) -> Scores:
        """`function` of every unlabelled image, one row each, in the order of `unlabelled`.

        function: normalised images, float32 (B, C, h, w), to tensors (B, ...) by name; modules: the networks that it
        uses, put in evaluation mode. No augmentation, no gradients. Returns arrays (N, ...), float32 for floats.
        """
        return self.scan_at("score", self.unlabelled, function, *modules)

    def scan_labelled(
        self, function: Callable[[Tensor], Mapping[str, Tensor]], *modules: nn.Module, phase: str = "score labelled"
    ) -> Scores:
        """The same of every labelled image, in the order of `labelled`; phase: its name in the progress."""
        return self.scan_at(phase, self.labelled, function, *modules)

    def scan_at(
        self, phase: str, indices: np.ndarray, function: Callable[[Tensor], Mapping[str, Tensor]], *modules: nn.Module
    ) -> Scores:
        """The same of the images at absolute indices, int64 (n,); phase: its name in the progress."""
        return self._scanner.scan(phase, self._loader, indices, function, *modules)

    # ------------------------------------------------------------------------- training

    @cached_property
    def minimax(self) -> Networks:
        """F, C and D, trained by Algorithm 1 on this round's pools the first time they are asked for."""
        count = round(self.config.minimax.held_out * len(self.labelled))
        if not count:
            return train_minimax(self.config, self._trainer, self.labelled, self.unlabelled)
        order = self.random("held out").permutation(self.labelled)
        networks = train_minimax(self.config, self._trainer, np.sort(order[count:]), self.unlabelled)
        self._calibrate(networks, np.sort(order[:count]))
        return networks

    def _calibrate(self, networks: Networks, held_out: np.ndarray) -> None:
        """Fit C's temperature on labelled images, int64 (n,), that Algorithm 1 has not seen."""

        def logits(images: Tensor) -> dict[str, Tensor]:
            return {"logits": networks.classifier(networks.encoder(images))}

        found = self.scan_at("calibrate", held_out, logits, networks.encoder, networks.classifier)["logits"]
        networks.classifier.temperature *= fit_temperature(found, self._loader.load(held_out).labels.cpu().numpy())

    @property
    def minimax_is_trained(self) -> bool:
        """Whether `minimax` has been asked for."""
        return "minimax" in vars(self)

    def seed_networks(self, phase: str) -> None:
        """Seed torch from (seed, round, phase), before the networks of a training phase are made."""
        self._trainer.seed(phase, "networks")

    def train(
        self, phase: str, objective: Objective, indices: Mapping[str, np.ndarray], batch: int, steps: int
    ) -> None:
        """The one training loop: `steps` steps of an objective on a batch of each set of absolute indices, by name.

        phase: its name in the progress and the history. Checkpoints, signals and bit-for-bit resumption come with it.
        """
        self._trainer.run(phase, objective, indices, batch, steps)

    def train_task_model(self, phase: str) -> TaskModel:
        """One more task model, trained as M is, from another initialisation and in another order of batches."""
        encoder = self.minimax.encoder if self.starts_from_f else None
        return train_task_model(self.config, self._trainer, self.labelled, self.unlabelled, encoder, None, phase)

    # ------------------------------------------------------------------------- the choice

    def query(self, *, positions: np.ndarray | None = None, indices: np.ndarray | None = None) -> Query:
        """The query of images given in one of two ways, named so that neither is taken for the other.

        positions: int (b,), places in `unlabelled` (what the functions of mal.acquisition return for rows of a scan);
        indices: int (b,), absolute pool indices. Both in order of choice. Raises ValueError where one is not a position
        or is not unlabelled.
        """
        if (positions is None) == (indices is None):
            raise ValueError("query takes positions=... (places in unlabelled) or indices=... (absolute), one of both.")
        given = np.asarray(positions if indices is None else indices)
        name, count = "positions" if indices is None else "indices", len(self.unlabelled)
        if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"query: {name} are {given.dtype} {given.shape}, not integers (b,).")
        at = given.astype(np.int64) if indices is None else np.searchsorted(self.unlabelled, given)
        wrong = (at < 0) | (at >= count)
        if indices is not None:
            wrong |= self.unlabelled[np.minimum(at, count - 1)] != given
        if wrong.any():
            allowed = f"from 0 to {count - 1}" if indices is None else "of unlabelled images"
            raise ValueError(f"query: {name} must be {allowed}; {given[wrong][:3].tolist()} are not.")
        return Query(self.unlabelled[at], at)

    def random_query(self, budget: int) -> Query:
        """A uniform draw without replacement."""
        return self.query(positions=self.random("query").permutation(len(self.unlabelled))[:budget])

    def count_picks(self, steps: int) -> Callable[[int, int], None]:
        """A callback (done, total) for a selection that takes long: it shows progress and leaves when told to stop."""
        progress = self._scanner.progress
        progress.phase("select", steps)

        def report(done: int, total: int) -> None:
            progress.at(done)
            progress.interrupt.check()

        return report


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
    def select(self, scores: Scores, budget: int) -> Query:
        """The images to label, `budget` of them, by `self.setting.query`; the same for the same scores."""

    def diagnostics(self, scores: Scores) -> dict[str, float]:
        """Numbers that may explain the round's choice, by name, for metrics.json and the report; none by default."""
        return {}
