"""FixMatch's strong augmentation: RandAugment by torchvision, then Cutout (Sohn et al. 2020, Section 2.3, appendix B).

An image gets two operations of a magnitude that is drawn anew for it, and a grey square of half its side. What is drawn
for an image depends on the step and on its place in the global batch alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mal.rng import generator

OPERATIONS, MAGNITUDES = 2, 31
GREY = 127


def strongly(images: Tensor, key: tuple[int | str, ...], batch: int, first: int) -> Tensor:
    """Images uint8 (B, C, H, W), changed; batch, first: as of `Augmentation.train`."""
    random, part = generator(*key, "randaugment"), slice(first, first + len(images))
    seeds = random.integers(2**31, size=batch)[part]
    magnitudes = random.integers(1, MAGNITUDES, size=batch)[part]
    corners = random.random((batch, 2))[part]
    changed = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own numbers
        for row, (seed, magnitude, corner) in enumerate(zip(seeds, magnitudes, corners, strict=True)):
            torch.manual_seed(int(seed))
            changed[row] = cutout(_randaugment(int(magnitude))(images[row]), corner)
    return changed


def cutout(image: Tensor, corner: Any) -> Tensor:
    """A grey square of half the side around a point of the image; corner: that point, float (2,) in [0, 1)."""
    image = image.clone()
    half = [side // 4 for side in image.shape[-2:]]
    rows, columns = (
        slice(max(0, int(at * side) - h), int(at * side) + h)
        for at, side, h in zip(corner, image.shape[-2:], half, strict=True)
    )
    image[:, rows, columns] = GREY
    return image


@cache
def _randaugment(magnitude: int) -> Any:
    from torchvision.transforms import RandAugment

    return RandAugment(OPERATIONS, magnitude, MAGNITUDES)
