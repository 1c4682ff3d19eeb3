"""Batch normalisation by the statistics of the global batch, where several processes have a share of it each."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from mal.process.distributed import World


def synchronise(module: nn.Module, world: World, cuda: bool) -> nn.Module:
    """Every BatchNorm2d in `module`, replaced; names and values of the state stay. On GPUs by torch's own layer."""
    if cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.BatchNorm2d:
                setattr(parent, name, SyncBatchNorm2d(layer, world))
    return module


class SyncBatchNorm2d(nn.BatchNorm2d):
    """nn.SyncBatchNorm for CPUs, where torch has none."""

    def __init__(self, layer: nn.BatchNorm2d, world: World) -> None:
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        super().__init__(layer.num_features, layer.eps, layer.momentum, **like)
        self.load_state_dict(layer.state_dict())
        self.world = world

    def forward(self, images: Tensor) -> Tensor:
        """(B, d, h, w), this process's share, to the same shape."""
        if not self.training:
            return super().forward(images)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, variance, count = global_moments(images.detach().to(self.running_mean.dtype), self.world)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = (variance + self.eps).rsqrt()
        return cast(Tensor, _Normalise.apply(images, self.weight, self.bias, mean, scale, count, self.world))


def global_moments(images: Tensor, world: World) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), variance (d,) over all pixels of the global batch, and their number."""
    variance, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)
    count = mean.new_full((1,), images.numel() // images.shape[1])
    parts = world.gather(torch.cat([mean, variance, count]))
    means, variances, counts = parts.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    # Around the common mean, part by part: a difference of squares would lose digits.
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
    return mean, variance, total


class _Normalise(torch.autograd.Function):
    """(images - mean) * scale * weight + bias, differentiated through the mean and the scale as well."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, count: Tensor, world: World
    ) -> Tensor:
        normal = (images - mean[:, None, None]) * scale[:, None, None]
        ctx.save_for_backward(normal, weight, scale, count)
        ctx.world = world
        return (normal * weight[:, None, None] + bias[:, None, None]).to(images.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, scale, count = ctx.saved_tensors
        gradient = gradients[0].to(weight.dtype)
        to_bias, to_weight = gradient.sum(dim=(0, 2, 3)), (gradient * normal).sum(dim=(0, 2, 3))
        # Those of the parameters stay this process's own: they are summed with all others before the optimiser steps.
        mean_bias, mean_weight = ctx.world.sum(torch.stack([to_bias, to_weight])) / count
        inner = gradient - mean_bias[:, None, None] - normal * mean_weight[:, None, None]
        to_images = inner * (weight * scale)[:, None, None]
        return to_images.to(gradients[0].dtype), to_weight, to_bias, None, None, None, None
