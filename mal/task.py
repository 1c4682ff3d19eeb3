"""The task model M (Algorithm 3): its training, the same for every method, and its evaluation."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mal.config.schema import Chain, Task
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.process.device import Device
from mal.training.loop import Inputs, Trainer, descend, steps_of
from mal.training.losses import cross_entropy
from mal.training.optimizers import SGD, Adam, schedule

PHASE = "task"


class Supervised:
    """Cross-entropy on labelled images."""

    def __init__(self, model: nn.Module, config: Task, device: Device) -> None:
        self.model, self.config, self.device = model, config, device
        self.modules = {"model": model}
        self.optimizer = _optimizer(model, config)
        self.optimizers = {"optimizer": self.optimizer}

    def step(self, inputs: Mapping[str, Inputs], progress: float) -> dict[str, Tensor]:
        """One update; the loss cross_entropy, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * schedule(self.config.schedule, progress)
        with self.device.autocast():
            labelled = inputs["labelled"]
            loss = cross_entropy(self.model(labelled.images), labelled, self.device.world)
        descend(self.optimizer, loss, self.device.world)
        return {"cross_entropy": loss.detach()}


def train_task_model(
    config: Chain,
    trainer: Trainer,
    labelled: np.ndarray,
    pool: int,
    encoder: nn.Module | None,
    before: Mapping[str, Tensor] | None,
    phase: str = PHASE,
) -> TaskModel:
    """M on the labelled indices (int64); pool: images in the pool, of which an epoch may count.

    encoder: F, where M starts from it; before: the weights of the round before, where M goes on from them; neither:
    Xavier (task.init=scratch). phase: another one gives another network, trained in
    another order (an ensemble's). method.dropout, where the method has it, is applied before the last layer.
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
    steps = steps_of(t.epochs, t.epoch_of, pool, len(labelled), t.batch)
    recipe = t if phase == PHASE else None
    trainer.run(phase, Supervised(model, t, trainer.device), {"labelled": labelled}, t.batch, steps, recipe)
    return model


def _optimizer(model: nn.Module, config: Task) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
