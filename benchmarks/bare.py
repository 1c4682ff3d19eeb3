"""The same work in plain PyTorch, as in a short script: the baseline of the ratios.

No checkpoints, no progress, no history, no resumption; images and labels are tensors in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, C, H, W) to float32, channels_last."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255).sub_(mean).div_(std)


def flipped(images: Tensor) -> Tensor:
    """Each mirrored with probability a half."""
    mask = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(mask[:, None, None, None], images.flip(-1), images)


def batches(count: int, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Shuffled indices for ever, full batches."""
    while True:
        order = torch.randperm(count).to(device)
        yield from (order[i : i + batch] for i in range(0, count - batch + 1, batch))


def supervised_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, bf16: bool
) -> Tensor:
    """One update on normalised images."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def minimax_step(
    encoder: nn.Module,
    classifier: nn.Module,
    discriminator: nn.Module,
    game: torch.optim.Optimizer,
    judge: torch.optim.Optimizer,
    labelled: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
) -> None:
    """The three updates of Algorithm 1 with nothing around them."""
    features = encoder(labelled)
    game.zero_grad(set_to_none=True)
    F.cross_entropy(classifier(features), labels).backward()
    game.step()
    others = encoder(unlabelled)
    p = classifier(others, reverse=True).softmax(1)
    game.zero_grad(set_to_none=True)
    (0.1 * (p * (p + EPSILON).log()).sum(1).mean()).backward()
    game.step()
    known, unknown = discriminator(features.detach()), discriminator(others.detach())
    judge.zero_grad(set_to_none=True)
    (F.softplus(-known).mean() + F.softplus(unknown).mean()).backward()
    judge.step()


def inference(model: nn.Module, images: Tensor, batch: int, mean: Tensor, std: Tensor, bf16: bool) -> Tensor:
    """The model's outputs for all images, float32, on the host."""
    model.eval()
    outputs = []
    with torch.inference_mode(), torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        for part in images.split(batch):
            outputs.append(model(normalised(part, mean, std)).float().cpu())
    return torch.cat(outputs)
