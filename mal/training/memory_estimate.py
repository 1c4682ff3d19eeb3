"""The peak memory of a round, estimated before it starts; what it took is in its provenance.

An estimate from shapes alone: weights, gradients and optimisers' moments; what autograd keeps of a batch, found by a
pass of two images; the copy that a checkpoint is written from. Not in it: what a query's selection needs, which each
acquisition says by itself (mal.acquisition.estimate), and workspaces of convolution libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mal.config.schema import Chain
from mal.config.sizes import images_of_step
from mal.models.backbones import build_backbone
from mal.process.memory import resident_mib

MOMENTS = {"adam": 2, "sgd": 1}
MIB = 2**20


@dataclass(frozen=True)
class Footprint:
    """MiB that a round adds to the process.

    networks: with gradients and moments; activations: those of one batch; images: of training and test set that
    loader=memory keeps on a GPU (on the host they are resident already).
    """

    networks: int
    activations: int
    copy: int
    cuda: bool
    resident: int
    images: int = 0

    @property
    def device(self) -> int:
        """At the peak, in the memory of the device that computes."""
        return self.networks + self.activations + self.images

    @property
    def host(self) -> int:
        """At the peak, in the host's memory: what is there already, and what is to come."""
        return self.resident + self.copy + (0 if self.cuda else self.device)

    def __str__(self) -> str:
        parts = f"networks {self.networks}, activations {self.activations}, a checkpoint's copy {self.copy}"
        parts += f", images {self.images}" if self.images else ""
        where = f"{self.device} MiB on the device and {self.host} on the host" if self.cuda else f"{self.host} MiB"
        return f"about {where} at the peak ({self.resident} resident now; {parts})"


def footprint(config: Chain, cuda: bool) -> Footprint:
    """Of one round of a chain, in this process."""
    backbone = build_backbone(config.backbone, config.dataset.channels)
    size = config.dataset.crop or config.dataset.size
    minimax = config.task.init.startswith("from_f") or config.method["acquisition"] == "mal"
    batch = max(config.task.batch * images_of_step(config), config.minimax.batch if minimax else 0)
    weights = 4 * sum(parameter.numel() for parameter in backbone.parameters())
    task, game = 2 + MOMENTS[config.task.optimizer], 2 + MOMENTS["adam"]
    # While M is trained, F waits with its last gradients for its turn to score.
    networks = max(game * weights, (task + 2) * weights) if minimax else task * weights
    kept, largest = kept_bytes(backbone, config.dataset.channels, size)
    # Backward holds gradients of the largest beside what was kept, in and out and reordered.
    activations = batch * (kept + 4 * largest) // (2 if config.precision == "bf16" else 1)
    copy = (game - 1 if minimax else task - 1) * weights
    images = image_bytes(config) if cuda and config.loader == "memory" else 0
    return Footprint(networks // MIB, activations // MIB, copy // MIB, cuda, resident_mib(), -(-images // MIB))


def image_bytes(config: Chain) -> int:
    """Of the training and the test set as uint8."""
    spec = config.dataset
    return (spec.train + spec.test) * spec.channels * spec.size**2


def kept_bytes(network: nn.Module, channels: int, size: int) -> tuple[int, int]:
    """Bytes per image that autograd keeps of a forward pass in float32, all together and of the largest tensor."""
    own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor  # holding it, so that its place is not taken by another
        return tensor

    network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        features = network(torch.zeros(2, channels, size, size))
    del features
    sizes = [tensor.untyped_storage().nbytes() // 2 for tensor in kept.values()]
    return sum(sizes), max(sizes, default=0)  # 0: all of it is frozen
