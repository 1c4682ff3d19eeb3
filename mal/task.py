"""The task model M (Algorithm 3): its training, the same for every method, and its evaluation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mal.config.schema import Chain, Task
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.models.pretrained import trainable
from mal.process.device import Device
from mal.training.loop import Trainer, steps_of
from mal.training.losses import cross_entropy
from mal.training.objective import Inputs, Objective, descend
from mal.training.optimizers import SGD, Adam, schedule, set_rate

PHASE = "task"


class Supervised(Objective):
    """Cross-entropy on labelled images."""

    def __init__(self, model: TaskModel, config: Task, device: Device) -> None:
        self.model, self.config, self.device = model, config, device
        self.modules = {"model": model}
        self.optimizer = _optimizer(model, config)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizers = {"optimizer": self.optimizer}

    def update(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """The loss cross_entropy, detached."""
        with self.device.autocast():
            labelled = inputs["labelled"]
            loss = cross_entropy(self.model(labelled.images), labelled, self.device.world)
        descend(self.optimizer, loss, self.device.world)
        return {"cross_entropy": loss.detach()}

    def set_rates(self, progress: float) -> None:
        """By task.schedule."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            set_rate(group, rate * schedule(self.config.schedule, progress))


class FixMatch(Supervised):
    """Cross-entropy on labelled images, and on strongly augmented unlabelled ones with M's own sure predictions.

    The prediction is that of the weakly augmented image; what it is trained to is a moving average of M's weights
    (Sohn et al. 2020, Algorithm 1). All images of a step go through M together.
    """

    def __init__(self, model: TaskModel, config: Task, device: Device) -> None:
        super().__init__(model, config, device)
        self.strong = [f"unlabelled_{turn}" for turn in range(config.semi_ratio)]
        self.average = copy.deepcopy(model)
        self.modules = {"model": model, "average": self.average}

    def update(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """The losses cross_entropy and unlabelled, and sure: the share of predictions taken for labels."""
        labelled, parts = inputs["labelled"], [inputs[name] for name in self.strong]
        strong = [part.strong for part in parts if part.strong is not None]
        images = torch.cat([labelled.images, *(part.images for part in parts), *strong])
        with self.device.autocast():
            logits = self.model(images)
            of_labelled, rest = logits.float().tensor_split([len(labelled.images)])
            of_weak, of_strong = rest.chunk(2)
            confidence, predicted = of_weak.detach().softmax(dim=1).max(dim=1)
            sure = (confidence >= self.config.semi_threshold).float() * parts[0].weight
            supervised = cross_entropy(of_labelled, labelled, self.device.world)
            unlabelled = (F.cross_entropy(of_strong, predicted, reduction="none") * sure).mean()
        descend(self.optimizer, supervised + self.config.semi_weight * unlabelled, self.device.world)
        self._follow()
        return {"cross_entropy": supervised.detach(), "unlabelled": unlabelled.detach(), "sure": sure.mean()}

    @torch.no_grad()
    def _follow(self) -> None:
        new = self.model.state_dict()
        weights = dict(self.average.named_parameters())
        for name, mean in self.average.state_dict().items():  # batch norm's statistics are averages already
            mean.lerp_(new[name], 1 - self.config.semi_average) if name in weights else mean.copy_(new[name])


def train_task_model(
    config: Chain,
    trainer: Trainer,
    labelled: np.ndarray,
    unlabelled: np.ndarray,
    encoder: nn.Module | None,
    before: Mapping[str, Tensor] | None,
    phase: str = PHASE,
) -> TaskModel:
    """M on the labelled indices (int64), and on the unlabelled ones too where task.semi says so.

    encoder: F, where M starts from it; before: the weights of the round before, where M goes on from them; neither:
    the backbone's own start (task.init=scratch): pretrained weights, or Xavier. phase: another one gives another
    network, trained in another order (an ensemble's). method.dropout, where the method has it, is applied before the
    last layer.
    """
    trainer.seed(phase, "networks")
    dropout = float(config.method.get("dropout", 0.0))
    model = TaskModel(build_backbone(config.backbone, config.dataset.channels), config.dataset.classes, dropout)
    trainer.device.place(model)
    if encoder is not None:
        model.backbone.load_state_dict(copy.deepcopy(encoder.state_dict()))
    if before is not None:
        model.load_state_dict(before)
    t = config.task
    steps = steps_of(t.epochs, t.epoch_of, len(labelled) + len(unlabelled), len(labelled), t.batch)
    recipe = t if phase == PHASE else None
    if t.semi is None or not len(unlabelled):
        trainer.run(phase, Supervised(model, t, trainer.device), {"labelled": labelled}, t.batch, steps, recipe)
        return model
    objective = FixMatch(model, t, trainer.device)
    streams = {"labelled": labelled, **dict.fromkeys(objective.strong, unlabelled)}
    trainer.run(phase, objective, streams, t.batch, steps, recipe)
    return objective.average


def _optimizer(model: TaskModel, config: Task) -> torch.optim.Optimizer:
    players: list[dict[str, Any]] = [{"params": trainable(model)}]
    if config.lr_backbone is not None:
        players = [{"params": trainable(model.backbone), "lr": config.lr_backbone}, {"params": trainable(model.head)}]
    if config.optimizer == "adam":
        return Adam(players, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return SGD(players, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
