"""A checkpoint by self-supervision, to start from: which of four ways an image of Fashion-MNIST is turned.

    python -m benchmarks.rotation out=rotation.safetensors [epochs=3] [images=20000] [KEY=VALUE of launch.py ...]
    python sweeps/launch.py dataset=fashion_mnist name=with backbone.weights=rotation.safetensors methods=[random]
    python sweeps/launch.py dataset=fashion_mnist name=without methods=[random]

No label is used (Gidaris, Singh and Komodakis 2018). The network is the launch's: by default the dataset's small_cnn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from mal.config.compose import compose_sweep
from mal.config.options import parse_options
from mal.data.dataset import load
from mal.models.backbones import build_backbone

BATCH = 128


def main() -> int:
    own = {"out": "rotation.safetensors", "epochs": "3", "images": "20000"}
    given, rest = [], []
    for argument in sys.argv[1:]:
        (given if argument.partition("=")[0] in own else rest).append(argument)
    options = parse_options(given, own)
    (config,) = compose_sweep(["dataset=fashion_mnist", *rest, "methods=[random]", "seeds=1"]).chains
    train = load(config.dataset, Path(config.data), 0).train
    images = torch.from_numpy(train.images[: int(options["images"])].copy()).float().div_(255)
    images = (images - images.mean()) / images.std()
    torch.manual_seed(0)
    backbone = build_backbone(config.backbone, 1)
    network = nn.Sequential(backbone, nn.Linear(backbone.features, 4))
    epochs, steps = int(options["epochs"]), len(images) // BATCH
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    random = np.random.default_rng(0)
    for epoch in range(epochs):
        right = 0
        for rows in random.permutation(len(images))[: steps * BATCH].reshape(steps, BATCH):
            turns = torch.arange(BATCH) % 4
            batch = torch.stack([torch.rot90(images[row], int(k), (1, 2)) for row, k in zip(rows, turns, strict=True)])
            logits = network(batch)
            optimizer.zero_grad()
            F.cross_entropy(logits, turns).backward()
            optimizer.step()
            rates.step()
            right += int((logits.argmax(dim=1) == turns).sum())
        print(f"epoch {epoch}: {100 * right / (steps * BATCH):.1f}% of the turns are told", flush=True)
    safetensors.torch.save_file(backbone.state_dict(), options["out"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
