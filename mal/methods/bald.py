"""BALD: what an image's label would tell about the network, by dropout (Gal et al. 2017; Section 4, Baselines).

A pass is one draw of the network's parameters, so its dropout mask is the same for all images; all else is as in
evaluation. Dropout is before M's last layer alone (ResNet18 has none of its own), so the backbone sees an image once
and the last layer once a pass, with the result of as many passes through the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mal.acquisition.ranking import top_b
from mal.acquisition.uncertainty import PassAccumulator
from mal.methods.base import METHODS, Method, Query, Scores
from mal.models.heads import TaskModel


@METHODS.register("bald")
class BALD(Method):
    """The b images of highest mutual information, each by itself, over method.passes passes at method.dropout."""

    def score(self, model: TaskModel) -> Scores:
        """bald: nats, (N,), from sums over the passes: nothing of passes x N x K is kept. Of maps, the pixels' mean."""
        masks = self.masks(model)

        def bald(images: Tensor) -> dict[str, Tensor]:
            passes = PassAccumulator()
            for logits in predict(model, images, masks):
                passes.update(logits.movedim(1, -1), from_logits=True)
            return {"bald": passes.bald().view(len(images), -1).mean(dim=1)}

        return self.setting.scan(bald, model)

    def select(self, scores: Scores, budget: int) -> Query:
        """Highest first, ties by lowest index."""
        return self.setting.query(positions=top_b(scores["bald"], budget))

    def masks(self, model: TaskModel) -> Tensor:
        """Dropout's factors on the features, 0 or 1 / (1 - p), (passes, d), drawn from (seed, round) on the host."""
        passes, p = self.setting.config.method["passes"], self.setting.config.method["dropout"]
        kept = self.setting.random("dropout").random((passes, model.head.in_features)) >= p
        masks = torch.from_numpy(kept.astype(np.float32) / np.float32(1 - p))
        return masks.to(self.setting.device.torch)


def predict(model: TaskModel, images: Tensor, masks: Tensor) -> Iterator[Tensor]:
    """Logits (B, K), of maps (B, K, H, W), of the images in each pass."""
    features = model.backbone(images)
    for mask in masks:
        yield model.head(features * mask.view(-1, *(1,) * (features.ndim - 2)))
