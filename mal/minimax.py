"""Algorithm 1: feature encoder F, classifier C and discriminator D.

A step makes three updates, one after the other, as the algorithm writes them:

1. F and C descend the cross-entropy of labelled images (Eq. 1).
2. The entropy H of unlabelled images (Eq. 2): F and C's bottleneck descend it, C's prototypes ascend it, through one
   backward pass with the gradient reversed above the bottleneck. The paper's lines 8-9 have these signs if its L_Ent is
   sum p log p; with Eq. 2's H they would be inverted.
3. D descends the binary cross-entropy of labelled (1) against unlabelled (0) features (Eq. 3), on the features that 1
   and 2 computed, detached: D's loss never reaches F.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mal.config.alike import with_discriminator
from mal.config.schema import Chain, Minimax
from mal.models.backbones import build_backbone
from mal.models.heads import (
    CosineClassifier,
    Discriminator,
    MapDiscriminator,
    PixelClassifier,
    scale_gradient,
    stride_of,
)
from mal.models.pretrained import trainable
from mal.process.device import Device
from mal.training.loop import Fuller, Trainer, steps_of
from mal.training.losses import cross_entropy
from mal.training.objective import Inputs, Objective, descend
from mal.training.optimizers import SGD, Adam, schedule, set_rate

PHASE = "minimax"
EPSILON = 1e-5  # inside the logarithm, as in MME
UPDATES = ("cross_entropy", "entropy", "discriminator")  # of a step, in Algorithm 1's order


@dataclass(frozen=True)
class Networks:
    """F: images to (B, d) features; C: features to (B, K) logits; D: features to (B,) logits of being labelled.

    For segmentation F gives maps of features (B, d, h, w) and C logits of every pixel, (B, K, H, W).
    """

    encoder: nn.Module
    classifier: CosineClassifier | PixelClassifier
    discriminator: Discriminator | MapDiscriminator

    def eval(self) -> None:
        """Running statistics, no dropout: for scoring."""
        for module in (self.encoder, self.classifier, self.discriminator):
            module.eval()


def build_networks(config: Chain, device: Device) -> Networks:
    """F, C and D with the layer sizes of appendix B, initialised from torch's random state."""
    encoder = build_backbone(config.backbone, config.dataset.channels)
    features, stride = int(encoder.features), stride_of(encoder)  # type: ignore[arg-type]
    classes, temperature = config.dataset.classes, config.minimax.temperature
    seen_over = temperature if config.minimax.d_input == "normalised" else None
    classifier: CosineClassifier | PixelClassifier
    discriminator: Discriminator | MapDiscriminator
    if stride:
        classifier = PixelClassifier(features, classes, temperature, stride, config.minimax.prototypes)
        discriminator = MapDiscriminator(features, config.backbone["discriminator"], seen_over)
    else:
        bottleneck = config.backbone["bottleneck"]
        classifier = CosineClassifier(features, bottleneck, classes, temperature, config.minimax.prototypes)
        discriminator = Discriminator(features, config.backbone["discriminator"], seen_over)
    return Networks(device.place(encoder), device.place(classifier), device.place(discriminator))


def entropy(logits: Tensor) -> Tensor:
    """Mean over the batch of H = -sum p log(p + 1e-5), in nats (Eq. 2); logits (B, K) or (B, K, H, W)."""
    p = logits.softmax(dim=1)
    return -(p * (p + EPSILON).log()).sum(dim=1).mean()


def discriminator_loss(labelled: Tensor, unlabelled: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Binary cross-entropy of D's logits: labelled are 1, unlabelled 0 (Eq. 3, a mean over each side, then their sum).

    weights: those of the two sides' inputs (`mal.training.objective.Inputs`).
    """
    return F.softplus(-labelled).mean() * weights[0] + F.softplus(unlabelled).mean() * weights[1]


@contextlib.contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norm as they are, in training mode too."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


class MinimaxObjective(Objective):
    """One step of Algorithm 1 on a labelled and an unlabelled batch."""

    def __init__(self, networks: Networks, config: Minimax, device: Device, steps: int = 1) -> None:
        """steps: of the whole training, for the schedule."""
        self.steps = steps
        self.networks, self.config, self.device = networks, config, device
        encoder, classifier, discriminator = networks.encoder, networks.classifier, networks.discriminator
        modules: dict[str, nn.Module] = {"encoder": encoder, "classifier": classifier, "discriminator": discriminator}
        self.averages: dict[str, AveragedModel] = {}
        if config.average:
            follow = get_ema_multi_avg_fn(config.average)
            self.averages = {
                f"{name}_average": AveragedModel(module, multi_avg_fn=follow, use_buffers=True)
                for name, module in modules.items()
            }
        self.modules = modules | self.averages
        betas = (config.betas[0], config.betas[1])
        players = [
            {"params": trainable(encoder), "lr": config.lr_f},
            {"params": classifier.parameters(), "lr": config.lr_c},
        ]
        decay = config.weight_decay
        self.game: torch.optim.Optimizer = (
            SGD(players, lr=config.lr_f, momentum=0.9, nesterov=True, weight_decay=decay, fused=True)
            if config.optimizer == "sgd"
            else Adam(players, betas=betas, weight_decay=decay, fused=True)
        )
        self.judge = Adam(discriminator.parameters(), lr=config.lr_d, betas=betas, fused=True)
        self.optimizers = {"game": self.game, "judge": self.judge}

    @property
    def trained(self) -> Networks:
        """What is asked after the training: F, C and D, or the averages of their weights."""
        if not self.averages:
            return self.networks
        return Networks(*(average.module for average in self.averages.values()))  # type: ignore[arg-type]

    def update(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """The three updates; losses cross_entropy, entropy (nats) and discriminator, detached."""
        losses: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}  # those that the first two updates computed
        config = self.config
        for update in sorted(UPDATES, key=lambda name: name != config.first):
            if update == "cross_entropy":
                features["labelled"], losses[update] = self._descend_cross_entropy(inputs["labelled"])
            elif update == "entropy" and (config.entropy_weight or config.discriminator):
                features["unlabelled"], losses[update] = self._play_entropy(inputs["unlabelled"])
            elif update == "discriminator" and config.discriminator:
                weights = inputs["labelled"].weight, inputs["unlabelled"].weight
                losses[update] = self._train_discriminator(*self._seen_by_d(inputs, features), weights)
        for name, average in self.averages.items():
            average.update_parameters(self.modules[name.removesuffix("_average")])
        return losses

    def set_rates(self, progress: float) -> None:
        """By minimax.schedule, of F and C."""
        if self.config.schedule != "constant":
            factor = schedule(self.config.schedule, progress, round(progress * self.steps))
            for group, rate in zip(self.game.param_groups, (self.config.lr_f, self.config.lr_c), strict=True):
                set_rate(group, rate * factor)

    def _descend_cross_entropy(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        with self.device.autocast():
            features = self.networks.encoder(inputs.images)
            loss = cross_entropy(self.networks.classifier(features), inputs, self.device.world)
        descend(self.game, loss, self.device.world)
        return features.detach(), loss.detach()

    def _play_entropy(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        # Without the game (an ablation) D still needs the features, and F stays as the labelled images made it.
        playing = self.config.entropy_weight > 0
        still = contextlib.nullcontext() if playing else statistics_kept(self.networks.encoder)
        with self.device.autocast(), torch.set_grad_enabled(playing), still:
            features = self.networks.encoder(inputs.images)
            loss = entropy(self.networks.classifier(features, reverse=True).float()) * inputs.weight
        if playing:
            # Descending -H, the prototypes ascend H; below them the gradient is reversed: the bottleneck and F descend.
            descend(self.game, -self.config.entropy_weight * loss, self.device.world)
        return features.detach(), loss.detach()

    def _seen_by_d(self, inputs: Mapping[str, Inputs], features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The features that D learns from: those of the step's two passes, or computed again as the options say."""
        config, encoder = self.config, self.networks.encoder
        if features and config.d_features == "train" and not config.d_to_f:
            return features["labelled"], features["unlabelled"]
        encoder.train(config.d_features == "train")
        with self.device.autocast(), torch.set_grad_enabled(config.d_to_f > 0), statistics_kept(encoder):
            seen = encoder(inputs["labelled"].images), encoder(inputs["unlabelled"].images)
        encoder.train()
        return seen

    def _train_discriminator(
        self, labelled: Tensor, unlabelled: Tensor, weights: tuple[float, float] = (1.0, 1.0)
    ) -> Tensor:
        with self.device.autocast():
            features = torch.cat([labelled, unlabelled])
            if self.config.d_to_f:
                features = scale_gradient(features, self.config.d_to_f)
            logits = self.networks.discriminator(features)
            loss = discriminator_loss(logits[: len(labelled)].float(), logits[len(labelled) :].float(), weights)
        descend(self.judge, loss, self.device.world, *([self.game] if self.config.d_to_f else []))
        return loss.detach()


def train_minimax(config: Chain, trainer: Trainer, labelled: np.ndarray, unlabelled: np.ndarray) -> Networks:
    """Algorithm 1 on the pools of a round; labelled, unlabelled: int64 absolute indices. Resumes where it was."""
    trainer.seed(PHASE, "networks")
    networks = build_networks(config, trainer.device)
    m = config.minimax
    steps = steps_of(m.epochs, m.epoch_of, len(labelled) + len(unlabelled), len(labelled), m.batch)
    objective = MinimaxObjective(networks, m, trainer.device, steps)
    fuller: Fuller | None = None
    if (with_d := with_discriminator(m)) is not None:
        of_f_and_c = (name for name in objective.modules if not name.startswith("discriminator"))
        fuller = Fuller(with_d, frozenset(of_f_and_c), frozenset(UPDATES) - {"discriminator"})
    indices = {"labelled": labelled, "unlabelled": unlabelled}
    trainer.run(PHASE, objective, indices, m.batch, steps, recipe=m, fuller=fuller)
    trained = objective.trained
    trained.eval()
    return trained
