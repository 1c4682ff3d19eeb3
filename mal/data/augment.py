"""Augmentation and normalisation of whole uint8 batches on the device, the same whatever the loader.

The random choices of a training step are drawn on the host from (seed, round, phase, step) and are the same on every
device; scoring and evaluation make none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mal.config.schema import Dataset as Spec
from mal.data.image_set import IGNORED
from mal.data.strong import strongly
from mal.rng import generator

PIECE = 2**18  # numbers normalised at a time on a CPU
Pixels = TypeVar("Pixels", Tensor, np.ndarray)


@dataclass(frozen=True)
class Augmentation:
    """Random horizontal flip, random crop, normalisation.

    crop: side of the crop in pixels (random in training, the centre otherwise), None for the whole image; pad_crop:
    pixels of zero padding on each side before the crop; mean, std: float32 (1, C, 1, 1) of pixels in [0, 1].
    """

    flip: bool
    crop: int | None
    pad_crop: int
    mean: Tensor
    std: Tensor

    def train(self, images: Tensor, key: tuple[int | str, ...], batch: int | None = None, first: int = 0) -> Tensor:
        """uint8 (B, C, H, W) to normalised float32 (B, C, h, w), randomly as the key says.

        batch, first: where `images` are a part of a batch, how many that has and where they begin in it.
        """
        return self._normalise(self._move(images, key, batch or len(images), first, fill=0))

    def strong(self, images: Tensor, key: tuple[int | str, ...], batch: int | None = None, first: int = 0) -> Tensor:
        """As `train`, with FixMatch's strong augmentation in between: RandAugment and Cutout (mal/data/strong.py)."""
        key = (*key, "strong")
        moved = self._move(images, key, batch or len(images), first, fill=0)
        return self._normalise(strongly(moved, key, batch or len(images), first))

    def train_maps(self, maps: Tensor, key: tuple[int | str, ...], batch: int | None = None, first: int = 0) -> Tensor:
        """Maps of classes, uint8 (B, H, W), moved as `train` moves the images of the same key; padded as ignored."""
        return self._move(maps[:, None], key, batch or len(maps), first, fill=IGNORED)[:, 0]

    def evaluate(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to normalised float32: the centre crop, no flip."""
        return self._normalise(self.centre(images))

    def centre(self, images: Pixels) -> Pixels:
        """The centre crop of images (B, C, H, W) or maps (B, H, W), where there is a crop."""
        if self.crop is None:
            return images
        top, left = (images.shape[-2] - self.crop) // 2, (images.shape[-1] - self.crop) // 2
        cut: Pixels = images[..., top : top + self.crop, left : left + self.crop]
        return cut

    def _move(self, images: Tensor, key: tuple[int | str, ...], batch: int, first: int, fill: int) -> Tensor:
        random, part = generator(*key, "augment"), slice(first, first + len(images))
        flips = random.random(batch)[part] < 0.5
        offsets = random.random((2, batch))[:, part]
        if self.crop is not None or self.pad_crop:
            images = self._random_crop(images, offsets, fill)
        if self.flip:
            images = _flip(images, flips)
        return images

    def _random_crop(self, images: Tensor, offsets: np.ndarray, fill: int) -> Tensor:
        size = self.crop or images.shape[-1]
        if self.pad_crop:
            images = F.pad(images, (self.pad_crop,) * 4, value=fill)
        room = np.array([[images.shape[-2] - size + 1], [images.shape[-1] - size + 1]])
        corner = (offsets * room).astype(np.int64)
        return _cut(images, corner, size) if images.device.type == "cpu" else _gather(images, corner, size)

    def _normalise(self, images: Tensor) -> Tensor:
        if images.device.type == "cpu" and images.numel() > PIECE:
            return self._normalise_rows(images)
        floats = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        return floats.div_(scale_of(images)).sub_(self.mean).div_(self.std)

    def _normalise_rows(self, images: Tensor) -> Tensor:
        """The same bits: piece by piece, which stays in a core's cache, and row by row, not three pixels at a time."""
        count, channels, height, width = images.shape
        floats = torch.empty(images.shape, dtype=torch.float32, memory_format=torch.channels_last)
        rows = floats.permute(0, 2, 3, 1).view(count, height, width * channels)
        mean, std = (values.view(channels).repeat(width) for values in (self.mean, self.std))
        step = max(1, PIECE // (channels * height * width))
        for first in range(0, count, step):
            floats[first : first + step].copy_(images[first : first + step])
            rows[first : first + step].div_(scale_of(images)).sub_(mean).div_(std)
        return floats


def scale_of(images: Pixels) -> int:
    """What a pixel is divided by before its mean is taken away: 255, or 1 where the images are features."""
    return 255 if images.dtype in (torch.uint8, np.uint8) else 1


def _cut(images: Tensor, corner: np.ndarray, size: int) -> Tensor:
    """The squares at corner int64 (2, B) of images (B, C, H, W), one after the other: fast on a CPU."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    cut = torch.empty((*images.shape[:2], size, size), dtype=images.dtype, memory_format=layout)
    for row, (top, left) in enumerate(corner.T.tolist()):
        cut[row] = images[row, :, top : top + size, left : left + size]
    return cut


def _gather(images: Tensor, corner: np.ndarray, size: int) -> Tensor:
    """As `_cut`, all at once: fast on a GPU."""
    at = torch.from_numpy(corner).to(images.device, non_blocking=True)
    span = torch.arange(size, device=images.device)
    rows, columns = at[0, :, None] + span, at[1, :, None] + span
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]


def _flip(images: Tensor, flips: np.ndarray) -> Tensor:
    """Those of bool (B,) mirrored."""
    mask = torch.from_numpy(flips).to(images.device, non_blocking=True)
    if images.device.type == "cpu":
        mirrored = images.clone()
        mirrored[mask] = images[mask].flip(-1)
        return mirrored
    return torch.where(mask[:, None, None, None], images.flip(-1), images)


def build_augmentation(spec: Spec, mean: np.ndarray, std: np.ndarray, device: torch.device) -> Augmentation:
    """The augmentation of a dataset, normalised by the mean and deviation (C,) of its pool's pixels."""
    shape = (1, spec.channels, 1, 1)
    return Augmentation(
        flip=spec.flip,
        crop=spec.crop,
        pad_crop=spec.pad_crop,
        mean=torch.tensor(mean, dtype=torch.float32).view(shape).to(device),
        std=torch.tensor(std, dtype=torch.float32).view(shape).to(device),
    )
