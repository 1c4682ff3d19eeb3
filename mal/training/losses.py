"""The supervised loss of Algorithms 1 and 3 (Eq. 1), of images and of maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mal.data.image_set import IGNORED
from mal.process.distributed import World
from mal.training.objective import Inputs


def cross_entropy(logits: Tensor, inputs: Inputs, world: World) -> Tensor:
    """The mean cross-entropy of the global batch, a scalar: what this process's share adds to it.

    logits (B, K) with labels (B,): a mean over images. (B, K, H, W) with maps (B, H, W): a mean over the pixels that
    are not 255 (Section 3.2), however they are shared among processes; 0 where there is none.
    """
    if logits.ndim == 2:
        return F.cross_entropy(logits, inputs.labels) * inputs.weight
    # Pixels as rows: the CUDA kernel for maps is not deterministic.
    rows, labels = logits.movedim(1, -1).flatten(0, -2), inputs.labels.flatten()
    pixels = world.sum((labels != IGNORED).sum().to(rows.device))
    return F.cross_entropy(rows, labels.long(), ignore_index=IGNORED, reduction="sum") / pixels.clamp(min=1)
