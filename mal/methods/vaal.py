"""VAAL: a VAE of both pools, and a discriminator of their codes (Sinha et al. 2019; Section 4, Baselines).

A step makes method.vae_steps updates of the VAE, each on a labelled and an unlabelled batch of its own, that
reconstruct both and make both look labelled to D; then one update of D on the last of these batches, labelled 1,
unlabelled 0. D sees the means of the codes. The query: the images that D is surest are unlabelled. The task model
plays no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mal.acquisition.ranking import top_b
from mal.methods.base import METHODS, Method, Query, Scores, Setting
from mal.minimax import discriminator_loss
from mal.models.heads import Discriminator, TaskModel
from mal.models.vae import LARGEST_STRIDE_2, VAE, VectorVAE
from mal.process.device import Device
from mal.training.diagnostics import discriminator_signals
from mal.training.loop import steps_of
from mal.training.objective import Inputs, Objective, descend
from mal.training.optimizers import Adam

PHASE = "vaal"
HIDDEN_UNITS = 512


class VAALObjective(Objective):
    """The VAE and its discriminator D, each with Adam."""

    def __init__(self, vae: VAE, discriminator: Discriminator, method: dict[str, Any], device: Device) -> None:
        """method: beta, adversarial_weight, vae_steps and lr of the method's configuration."""
        self.vae, self.discriminator, self.method, self.device = vae, discriminator, method, device
        self.modules = {"vae": vae, "discriminator": discriminator}
        self.coder = Adam(vae.parameters(), lr=method["lr"], fused=True)
        self.judge = Adam(discriminator.parameters(), lr=method["lr"], fused=True)
        self.optimizers = {"coder": self.coder, "judge": self.judge}

    def update(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """The updates; losses reconstruction and adversarial (means), divergence (nats, a sum) and discriminator."""
        for turn in range(self.method["vae_steps"]):
            labelled, unlabelled = inputs[f"labelled_{turn}"], inputs[f"unlabelled_{turn}"]
            weights = labelled.weight, unlabelled.weight
            losses = self._train_vae(labelled.images, unlabelled.images, weights)
        return losses | {"discriminator": self._train_discriminator(labelled.images, unlabelled.images, weights)}

    def _train_vae(
        self, labelled: Tensor, unlabelled: Tensor, weights: tuple[float, float] = (1.0, 1.0)
    ) -> dict[str, Tensor]:
        with self.device.autocast():
            sides = [self._losses(labelled, weights[0]), self._losses(unlabelled, weights[1])]
        losses = {name: sides[0][name] + sides[1][name] for name in sides[0]}
        total = losses["reconstruction"] + self.method["beta"] * losses["divergence"]
        total = total + self.method["adversarial_weight"] * losses["adversarial"]
        descend(self.coder, total, self.device.world)
        return {name: loss.detach() for name, loss in losses.items()}

    def _losses(self, images: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        images = self.vae.fit(images)
        reconstruction, mean, log_variance = (value.float() for value in self.vae(images))
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return {
            "reconstruction": F.mse_loss(reconstruction, images) * weight,
            "divergence": divergence,  # a sum over the batch, not a mean
            # As if labelled, for both pools: what D is trained to tell apart.
            "adversarial": F.softplus(-self.discriminator(mean).float()).mean() * weight,
        }

    def _train_discriminator(
        self, labelled: Tensor, unlabelled: Tensor, weights: tuple[float, float] = (1.0, 1.0)
    ) -> Tensor:
        with self.device.autocast():
            with torch.no_grad():
                codes = [self.vae.encode(images)[0] for images in (labelled, unlabelled)]
            logits = [self.discriminator(code).float() for code in codes]
            loss = discriminator_loss(logits[0], logits[1], weights)
        descend(self.judge, loss, self.device.world)
        return loss.detach()


def build_objective(setting: Setting) -> VAALObjective:
    """VAE and D for the images as the networks see them, initialised from (seed, round)."""
    config, device, side = setting.config, setting.device, setting.image_size
    latent = config.method["latent"] or latent_size(side, config.dataset.task)
    setting.seed_networks(PHASE)
    channels, width = config.dataset.channels, config.method["width"]
    vae = VAE(channels, side, latent, width) if side > 1 else VectorVAE(channels, latent, width)
    discriminator = Discriminator(latent, HIDDEN_UNITS)
    place = partial(device.place, channels_last=False)
    return VAALObjective(place(vae), place(discriminator), config.method, device)


def latent_size(side: int, task: str) -> int:
    """The source's sizes of the code: 32 for CIFAR, 64 for ImageNet, 128 for BDD100K's segmentation."""
    if task == "segmentation":
        return 128
    return 32 if side <= LARGEST_STRIDE_2 else 64


@METHODS.register("vaal")
class VAAL(Method):
    """The b images that D takes for unlabelled with most certainty."""

    objective: VAALObjective

    def fit(self) -> None:
        """Train the VAE and D on both pools, unless the round is the last and asks nothing of them."""
        if not self.setting.has_query:
            return
        setting, method = self.setting, self.setting.config.method
        labelled, unlabelled = setting.labelled, setting.unlabelled
        self.objective = build_objective(setting)
        streams = {f"labelled_{turn}": labelled for turn in range(method["vae_steps"])}
        streams |= {f"unlabelled_{turn}": unlabelled for turn in range(method["vae_steps"])}
        pool, batch = len(labelled) + len(unlabelled), method["batch"]
        steps = steps_of(method["epochs"], method["epoch_of"], pool, len(labelled), batch)
        setting.train(PHASE, self.objective, streams, batch, steps)

    def score(self, model: TaskModel) -> Scores:
        """labelledness: D's logit of the code's mean, which does not saturate as its probability does, (N,)."""
        return self.setting.scan(self.labelledness, self.objective.vae, self.objective.discriminator)

    def select(self, scores: Scores, budget: int) -> Query:
        """Lowest first, ties by lowest index."""
        return self.setting.query(positions=top_b(-scores["labelledness"], budget))

    def diagnostics(self, scores: Scores) -> dict[str, float]:
        """D's certainty of both pools."""
        setting, modules = self.setting, (self.objective.vae, self.objective.discriminator)
        labelled = setting.scan_labelled(self.labelledness, *modules, phase="diagnose")
        return discriminator_signals(labelled["labelledness"], scores["labelledness"], 0.0)

    def labelledness(self, images: Tensor) -> dict[str, Tensor]:
        """D's logit of the mean of each image's code."""
        return {"labelledness": self.objective.discriminator(self.objective.vae.encode(images)[0])}
