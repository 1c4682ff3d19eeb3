"""One pass over images without augmentation or gradients: scoring a pool, evaluating on a test set."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mal.data.augment import Augmentation
from mal.data.loader import Loader, in_order
from mal.device import Device
from mal.progress import Progress

BATCH = 512
OUTPUTS = 2**24  # numbers that a network gives for a batch, of which a score may need several copies in float64

log = logging.getLogger(__name__)


class Scanner:
    """Applies a function of normalised images to every given index exactly once, in order."""

    def __init__(self, augmentation: Augmentation, device: Device, progress: Progress, batch: int = BATCH) -> None:
        self.augmentation, self.device, self.progress, self.batch = augmentation, device, progress, batch
        self.part = batch  # images that the device computes at once: all of a batch, as far as its memory goes

    def scan(
        self,
        phase: str,
        loader: Loader,
        indices: np.ndarray,
        function: Callable[..., Mapping[str, Tensor]],
        *modules: nn.Module,
        with_labels: bool = False,
    ) -> dict[str, np.ndarray]:
        """What `function` gives for each index, by name.

        indices: int64 (N,); function: float32 (B, C, h, w), with_labels also the labels that the loader shows, to
        tensors (B, ...); modules: those it uses, put in evaluation mode. Returns arrays (N, ...), float32 for floats.
        Raises `Interrupted` where a stop is asked for. Several processes take a part of the indices each, and all
        return the whole.
        """
        for module in modules:
            module.eval()
        results: dict[str, np.ndarray] = {}
        world = self.device.world
        share = world.share(len(indices))
        self.progress.phase(phase, share.stop - share.start)
        first = share.start
        stream = in_order(indices[share], self.batch)
        with torch.inference_mode(), self.device.autocast(), contextlib.closing(loader.batches(stream)) as batches:
            for batch in batches:
                labels = (self._cropped(batch.labels),) if with_labels else ()
                for name, value in self._values(function, batch.images, *labels).items():
                    block = (value.float() if value.is_floating_point() else value).cpu().numpy()
                    if name not in results:
                        results[name] = np.empty((len(indices), *block.shape[1:]), dtype=block.dtype)
                    results[name][first : first + len(block)] = block
                first += len(batch.indices)
                self.progress.at(first - share.start)
                self.progress.interrupt.check()
        if self._batches(share) < self._batches(world.share(len(indices), rank=0)):
            self.progress.interrupt.check()  # all processes ask each other equally often
        return world.assemble(results, len(indices))

    def _values(self, function: Callable[..., Mapping[str, Tensor]], *inputs: Tensor) -> Mapping[str, Tensor]:
        """`function` of a batch; halved where the device's memory is too small for it, which is remembered.

        Smaller parts give the same values but for rounding, where a kernel's order of summation depends on the batch.
        """
        while True:
            try:
                parts = [
                    function(self.augmentation.evaluate(images), *rest)
                    for images, *rest in zip(*(tensor.split(self.part) for tensor in inputs), strict=True)
                ]
                return parts[0] if len(parts) == 1 else {n: torch.cat([p[n] for p in parts]) for n in parts[0]}
            except torch.OutOfMemoryError:
                if self.part == 1:
                    raise
                self.part = min(self.part, len(inputs[0])) // 2 or 1
            log.info("too little memory on the device: scanning %d images at a time from here on", self.part)
            torch.cuda.empty_cache()

    def _cropped(self, labels: Tensor) -> Tensor:
        return self.augmentation.centre(labels) if labels.ndim == 3 else labels

    def _batches(self, share: slice) -> int:
        return -(-(share.stop - share.start) // self.batch)


def batch_of(classes: int, pixels: int) -> int:
    """Images a batch of a scan: 512, fewer where each has predictions of `classes` for many `pixels`."""
    return max(1, min(BATCH, OUTPUTS // (classes * pixels)))
