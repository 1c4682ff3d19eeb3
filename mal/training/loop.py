"""The one training loop: every network of every method is trained by `Trainer.run`.

The batch and the augmentation of step t are pure functions of (seed, round, phase, t) and torch is seeded from the
same at each step, so a checkpoint holds modules, optimisers and t, and a resumed phase equals an undisturbed one.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mal.config.sizes import steps_of as steps_of  # beside what runs them
from mal.data.augment import Augmentation
from mal.data.loader import Batch, Loader, TrainingStream
from mal.process.device import Device
from mal.process.distributed import World
from mal.process.interrupt import Interrupt
from mal.process.memory import peak_device_mib
from mal.rng import torch_seed
from mal.run import checkpoint
from mal.run.heartbeat import Progress
from mal.run.shared import Shared
from mal.run.windows import diverged
from mal.training.graphed import Graphed
from mal.training.objective import Inputs, Objective

HISTORY_POINTS = 100


@dataclass
class History:
    """Mean losses over windows of steps, summed on the device and read once per window."""

    window: int
    curves: dict[str, list[float]] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)  # of step 0
    diverged: str = ""

    def add(self, t: int, losses: Mapping[str, Tensor]) -> bool:
        """Take the losses of step t; whether a window has ended with it."""
        for name, loss in losses.items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss.clone()
        if t == 0:
            self.first = {name: float(loss) for name, loss in losses.items()}
        if (t + 1) % self.window:
            return False
        for name, total in self.sums.items():
            self.curves.setdefault(name, []).append(float(total) / self.window)
        self.sums = {}
        self.diverged = self.diverged or diverged(self.first, self.last)
        return True

    def only(self, names: AbstractSet[str]) -> None:
        """Forget all losses but these, as if no other had been computed."""
        for each in (self.curves, self.sums, self.first):
            for name in each.keys() - names:
                del each[name]
        windows = (dict(zip(self.curves, means, strict=True)) for means in zip(*self.curves.values(), strict=True))
        self.diverged = next(filter(None, (diverged(self.first, window) for window in windows)), "")

    @property
    def last(self) -> dict[str, float]:
        """The mean losses of the last window."""
        return {name: curve[-1] for name, curve in self.curves.items()}


class Boundary:
    """What follows a step: whether to leave and whether to save, the same in every process."""

    SECONDS = 0.2  # between two questions to the other processes

    def __init__(self, interrupt: Interrupt, checkpoint_seconds: float, start: int) -> None:
        self.interrupt, self.checkpoint_seconds = interrupt, checkpoint_seconds
        self._saved = self._asked = time.monotonic()
        self._step = self._next = start

    def after(self, step: int) -> tuple[bool, bool]:
        """(leave, save) after so many steps."""
        if step < self._next:
            return False, False
        world, now = self.interrupt.world, time.monotonic()
        due = world.main and now - self._saved >= self.checkpoint_seconds
        stop, save, stride = world.most(self.interrupt.requested, due, world.main and self._stride(step, now))
        if save:
            self._saved = now
        self._next = step + stride
        return bool(stop), bool(save)

    def _stride(self, step: int, now: float) -> int:
        """Steps until the next question: by rank 0's clock, none to spare where there is nobody to ask."""
        seconds, steps = max(now - self._asked, 1e-6), max(step - self._step, 1)
        self._asked, self._step = now, step
        return 1 if self.interrupt.world.size == 1 else min(max(int(self.SECONDS * steps / seconds), 1), 1000)


class Parts:
    """The parts of a phase's steps, e.g. labelled and unlabelled, as one stream of indices.

    places: by name, where a part lies in this process's batches, its share of the global batch, that batch's size.
    """

    def __init__(self, streams: Mapping[str, TrainingStream], world: World) -> None:
        self.streams = streams
        self.places: dict[str, tuple[slice, slice, int]] = {}
        first = 0
        for name, stream in streams.items():
            share = world.share(stream.batch)
            where = slice(first, first + share.stop - share.start)
            self.places[name] = where, share, stream.batch
            first = where.stop
        self.images = sum(stream.batch for stream in streams.values())  # of a step, over all processes

    def steps(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """What this process needs of each step, int64, part after part; a loader may ask from another thread."""
        for t in range(start, stop):
            yield np.concatenate([s.step(t)[self.places[name][1]] for name, s in self.streams.items()])


@dataclass(frozen=True)
class Fuller:
    """A recipe that trains what a phase does, bit for bit, and more besides: the phase can be taken from its end.

    modules, losses: the names of the networks and of the curves that the phase has of it.
    """

    recipe: object
    modules: frozenset[str]
    losses: frozenset[str]


class Trainer:
    """Runs the phases of one round, each resumable at any step."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        key: tuple[int | str, ...],
        loader: Loader,
        augmentation: Augmentation,
        device: Device,
        progress: Progress,
        checkpoint_seconds: float,
        shared: Shared | None = None,
    ) -> None:
        """folder: working state of the round; identity: the round's configuration and parent; key: (seed, round).

        shared: what other chains may have trained already; None: nothing is taken or kept.
        """
        self.folder, self.identity, self.key = folder, identity, key
        self.loader, self.augmentation, self.device = loader, augmentation, device
        self.progress, self.checkpoint_seconds, self.shared = progress, checkpoint_seconds, shared
        self.history: dict[str, dict[str, Any]] = {}

    def seed(self, phase: str, purpose: str) -> None:
        """Seed torch for a purpose outside the steps, such as the initialisation of a phase's networks."""
        self.device.seed(torch_seed(*self.key, phase, purpose))

    def run(
        self,
        phase: str,
        objective: Objective,
        indices: Mapping[str, Any],
        batch: int,
        steps: int,
        recipe: object = None,
        fuller: Fuller | None = None,
    ) -> None:
        """Train `objective` for `steps` steps, from the last checkpoint of this phase where there is one.

        indices: the int64 absolute indices to draw each named part of a step from, e.g. labelled and unlabelled;
        recipe: the section of the configuration that decides a step, where other chains may train the same phase;
        fuller: a recipe of theirs of which the phase is a part.
        Raises `Interrupted`, after saving, where a stop was asked for.
        """
        streams = {name: TrainingStream(i, batch, (*self.key, phase, name)) for name, i in indices.items()}
        history = History(window=max(1, math.ceil(steps / HISTORY_POINTS)))
        world, interrupt = self.device.world, self.progress.interrupt
        _check_batches(streams, world)
        same = self._same(phase, objective, indices, batch, steps, recipe)
        start = self._restore(phase, objective, history) or self._take(phase, same, objective, history, steps)
        if not start and fuller is not None:
            whole = self._same(phase, objective, indices, batch, steps, fuller.recipe)
            start = self._take(phase, whole, objective, history, steps, fuller)
        if self.device.graphs:
            objective = Graphed(objective, self.device)
        world.align(objective.modules.values())
        for module in objective.modules.values():
            module.train()
        self.progress.phase(phase, steps, start)
        boundary = Boundary(interrupt, self.checkpoint_seconds, start)
        own = (world.rank,) if world.rank else ()
        parts = Parts(streams, world)
        batches = contextlib.closing(self.loader.batches(parts.steps(start, steps)))
        with checkpoint.Writer() as writer, batches as stream:
            for t, loaded in zip(range(start, steps), stream, strict=True):
                self.device.seed(torch_seed(*self.key, phase, t, *own))
                inputs = self._inputs(phase, parts, loaded, t, objective.strong)
                losses = objective.step(inputs, t / steps)
                if history.add(t, world.sum_losses(losses)) and world.main:
                    memory = peak_device_mib(self.device.torch)
                    self.progress.window(t + 1, history.last, history.diverged, parts.images, memory)
                self.progress.at(t + 1)
                stop, save = boundary.after(t + 1)
                if stop or save or t + 1 == steps:
                    world.once(partial(self._save, writer, phase, objective, history, t + 1))
                if stop or t + 1 == steps:
                    world.once(writer.wait)
                if stop:
                    interrupt.stop()
        world.align(objective.modules.values())  # each may have its own batch norm's statistics
        self._keep(phase, same, objective, history)
        self.history[phase] = {"window": history.window, "losses": history.curves}
        if history.diverged:
            self.history[phase]["diverged"] = history.diverged

    def _inputs(
        self, phase: str, parts: Parts, batch: Batch, t: int, strong: Collection[str] = ()
    ) -> dict[str, Inputs]:
        """By part; strong: the names of those whose images are wanted strongly augmented too."""
        inputs = {}
        for name, (where, share, size) in parts.places.items():
            key = (*self.key, phase, name, t)
            images = self.augmentation.train(batch.images[where], key, size, share.start)
            labels = batch.labels[where]
            if labels.ndim == 3:
                labels = self.augmentation.train_maps(labels, key, size, share.start)
            strongly = self.augmentation.strong(batch.images[where], key, size, share.start) if name in strong else None
            inputs[name] = Inputs(images, labels, len(images) / size, strongly)
        return inputs

    def _save(self, writer: checkpoint.Writer, phase: str, objective: Objective, history: History, step: int) -> None:
        writer.begin(
            self._path(phase),
            {
                "identity": self._identity(phase),
                "step": step,
                "modules": {name: module.state_dict() for name, module in objective.modules.items()},
                "optimizers": {name: optimizer.state_dict() for name, optimizer in objective.optimizers.items()},
                "history": _state_of(history),
            },
        )

    def _restore(self, phase: str, objective: Objective, history: History) -> int:
        state = checkpoint.load(self._path(phase), self._identity(phase), self.device.torch, self.device.world)
        if state is None:
            return 0
        for name, module in objective.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in objective.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        _set_history(history, state["history"])
        return int(state["step"])

    def _same(
        self, phase: str, objective: Objective, indices: Mapping[str, Any], batch: int, steps: int, recipe: object
    ) -> str:
        """What the phase has in common with those of other chains that end with the same; empty: nothing is shared."""
        shared = self.shared
        if shared is None or recipe is None:
            return ""
        return self.device.world.once(
            lambda: shared.identity(phase, recipe, objective.modules, objective.optimizers, indices, batch, steps)
        )

    def _take(
        self,
        phase: str,
        same: str,
        objective: Objective,
        history: History,
        steps: int,
        fuller: Fuller | None = None,
    ) -> int:
        """The end of the phase from a chain that trained the same, where there is one: the step to go on from."""
        if not same or self.shared is None:
            return 0
        state = self.shared.take(phase, same, self.device.torch, self.device.world)
        if state is None:
            return 0
        for name, module in objective.modules.items():
            if fuller is None or name in fuller.modules:
                module.load_state_dict(state["modules"][name])
        _set_history(history, state["history"])
        if fuller is not None:
            history.only(fuller.losses)
        return steps

    def _keep(self, phase: str, same: str, objective: Objective, history: History) -> None:
        shared = self.shared
        if same and shared is not None:
            modules = {name: module.state_dict() for name, module in objective.modules.items()}
            state = {"modules": modules, "history": _state_of(history)}
            self.device.world.once(lambda: shared.keep(phase, same, state))

    def _path(self, phase: str) -> Path:
        return self.folder / f"{phase}.ckpt"

    def _identity(self, phase: str) -> str:
        return hashlib.sha256(f"{self.identity}/{phase}".encode()).hexdigest()


def _state_of(history: History) -> dict[str, Any]:
    return {
        "curves": history.curves,
        "sums": history.sums,
        "first": history.first,
        "diverged": history.diverged,
    }


def _set_history(history: History, state: Mapping[str, Any]) -> None:
    history.curves, history.sums = state["curves"], state["sums"]
    history.first, history.diverged = state.get("first", {}), state.get("diverged", "")


def _check_batches(streams: Mapping[str, TrainingStream], world: World) -> None:
    for name, stream in streams.items():
        if stream.batch < world.size:
            raise ValueError(
                f"{world.size} processes cannot share a batch of {stream.batch} {name} images: start at most "
                f"{stream.batch} processes (Slurm's tasks), or raise initial= or the batch."
            )
