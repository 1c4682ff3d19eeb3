"""What a phase of training optimises: its inputs, its networks and optimisers, one step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mal.process.distributed import World


@dataclass(frozen=True)
class Inputs:
    """images: float32 (B, C, h, w), augmented and normalised; labels: int64 (B,), hidden ones -1.

    For segmentation labels are maps, uint8 (B, h, w), moved with their images; pixels without a label are 255.

    weight: the part of the global batch that these are: a loss that is a mean over them is multiplied by it.
    strong: the same images augmented strongly, where the objective asks for it.
    """

    images: Tensor
    labels: Tensor
    weight: float = 1.0
    strong: Tensor | None = None


class Objective:
    """What a phase optimises: its networks and its optimisers by name, whose state a checkpoint keeps, and one step.

    strong: names of the parts whose images are wanted strongly augmented too.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    strong: Collection[str] = ()

    def step(self, inputs: Mapping[str, Inputs], progress: float) -> dict[str, Tensor]:
        """Update the networks once; progress: t / steps, in [0, 1). Returns what `update` does."""
        self.set_rates(progress)
        return self.update(inputs)

    def set_rates(self, progress: float) -> None:
        """The learning rates of a step, by `mal.training.optimizers.set_rate`; without a schedule they stay."""

    def update(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """Update the networks once, by `descend`, the same way at each step: it may be recorded and replayed.

        Returns detached scalar losses on the device; where there are several processes, this one's summands of them.
        """
        raise NotImplementedError


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, world: World, *others: torch.optim.Optimizer) -> None:
    """One step of an optimiser, and of others, down the sum over the processes of a loss (a scalar)."""
    optimizers = (optimizer, *others)
    for each in optimizers:
        each.zero_grad(set_to_none=True)
    loss.backward()
    for each in optimizers:
        world.sum_gradients(parameter for group in each.param_groups for parameter in group["params"])
        each.step()
