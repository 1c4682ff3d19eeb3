"""A whole round of MAL on digits against the sum of its loops in plain PyTorch.

python -m benchmarks.whole_round [--threads 1 --clock cpu]

The bare loops train F, C and D and then M for as many steps on batches of the same sizes, evaluate M, and score the
pool. What a round does besides: checkpoints, heartbeats, histories, the ledger, the query, files with their hashes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import bare
from benchmarks.measure import HEAD, arguments, chain, interleaved, row
from benchmarks.training import task_model
from mal.config.schema import Chain
from mal.data.dataset import Dataset, load
from mal.minimax import build_networks
from mal.process.device import Device, prepare_device
from mal.process.interrupt import Interrupt
from mal.round import Rounds
from mal.training.loop import steps_of
from mal.training.optimizers import Adam


class Both(nn.Module):
    """C's logits and D's beside each other, from one pass of F."""

    def __init__(self, encoder: nn.Module, classifier: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.encoder, self.classifier, self.discriminator = encoder, classifier, discriminator

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, K + 1)."""
        features = self.encoder(images)
        return torch.cat([self.classifier(features), self.discriminator(features)[:, None]], dim=1)


def bare_loops(config: Chain, dataset: Dataset, device: Device) -> Callable[[], None]:
    """The loops of one round, ready to run."""
    images = torch.from_numpy(dataset.train.images).to(device.torch)
    labels = torch.from_numpy(dataset.oracle.label(np.arange(len(images)))).to(device.torch)
    test, known = torch.from_numpy(dataset.test.images).to(device.torch), config.initial
    mean = std = torch.full((1, config.dataset.channels, 1, 1), 0.5, device=device.torch)

    def loops() -> None:
        networks = build_networks(config, device)
        encoder, classifier, discriminator = networks.encoder, networks.classifier, networks.discriminator
        game = Adam([*encoder.parameters(), *classifier.parameters()], lr=0.001, fused=True)
        judge = Adam(discriminator.parameters(), lr=0.001, fused=True)
        first = bare.batches(known, min(config.minimax.batch, known), device.torch)
        others = bare.batches(len(images) - known, config.minimax.batch, device.torch)
        m, t = config.minimax, config.task
        for _ in range(steps_of(m.epochs, m.epoch_of, len(images), known, m.batch)):
            at, beyond = next(first), next(others) + known
            batch = bare.normalised(images[at], mean, std), labels[at], bare.normalised(images[beyond], mean, std)
            bare.minimax_step(encoder, classifier, discriminator, game, judge, *batch)
        model = task_model(config, device)
        optimizer = Adam(model.parameters(), lr=0.001, fused=True)
        stream = bare.batches(known, min(t.batch, known), device.torch)
        for _ in range(steps_of(t.epochs, t.epoch_of, len(images), known, t.batch)):
            at = next(stream)
            bare.supervised_step(model, optimizer, bare.normalised(images[at], mean, std), labels[at], bf16=False)
        bare.inference(model, test, 512, mean, std, bf16=False).argmax(1)
        bare.inference(Both(encoder, classifier, discriminator), images[known:], 512, mean, std, bf16=False)

    return loops


def main() -> None:
    given = arguments(__doc__)
    config = chain("dataset=digits", "device=cpu", f"threads={given.threads}", "rounds=2")
    device = prepare_device(config)
    dataset = load(config.dataset, Path(config.data), config.seed)

    with tempfile.TemporaryDirectory() as place:
        made: list[Path] = []

        def ours() -> None:
            made.append(Path(place, str(len(made))))
            Rounds(made[-1], config, dataset, device, Interrupt()).run(0)

        pair = interleaved(ours, bare_loops(config, dataset, device), max(3, given.repeats // 2), given.clock, warm=1)
    print(HEAD)
    row("round of MAL on digits / its bare loops", pair, 1.25)


if __name__ == "__main__":
    main()
