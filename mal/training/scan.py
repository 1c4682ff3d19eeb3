"""One pass over images without augmentation or gradients: scoring a pool, evaluating on a test set.

A long pass leaves what it has on disk, block by block beside the training's checkpoints, and one that was interrupted
goes on behind the last of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mal.data.augment import Augmentation
from mal.data.loader import Loader, in_order
from mal.process.device import Device
from mal.run import checkpoint
from mal.run.heartbeat import Progress

BATCH = 512
OUTPUTS = 2**24  # numbers that a network gives for a batch, of which a score may need several copies in float64
SAVE_SECONDS = 60.0  # of scanning between two blocks on disk; a scan that is told to stop leaves a block too
CPU = torch.device("cpu")

log = logging.getLogger(__name__)


class Scanner:
    """Applies a function of normalised images to every given index exactly once, in order."""

    def __init__(
        self,
        augmentation: Augmentation,
        device: Device,
        progress: Progress,
        batch: int = BATCH,
        folder: Path | None = None,
        identity: str = "",
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        """folder: of the blocks of long scans, None to keep nothing; identity: the round's configuration and parent."""
        self.augmentation, self.device, self.progress, self.batch = augmentation, device, progress, batch
        self.folder, self.identity, self.save_seconds = folder, identity, save_seconds
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
        world = self.device.world
        rows = Rows(len(indices), world.share(len(indices)))
        blocks = self._blocks(phase, indices, modules)
        start = self._resume(rows, blocks)
        turns = -(-world.share(len(indices), rank=0).stop // self.batch)  # a process may have a batch less than rank 0
        self.progress.phase(phase, rows.count, rows.done)
        stream = in_order(indices[rows.share][rows.done :], self.batch)
        with torch.inference_mode(), self.device.autocast(), contextlib.closing(loader.batches(stream)) as batches:
            for turn in range(start, turns):
                if (loaded := next(batches, None)) is not None:
                    labels = (self._cropped(loaded.labels),) if with_labels else ()
                    rows.add(self._values(function, loaded.images, *labels))
                self.progress.at(rows.done)
                self._boundary(rows, blocks, turn + 1)
        if blocks is not None and blocks.number:
            blocks.save(rows, turns)  # what follows may be interrupted too
        return world.assemble(rows.arrays, len(indices))

    def _boundary(self, rows: Rows, blocks: Blocks | None, turn: int) -> None:
        """Between two batches: whether to leave and whether to save, the same in every process."""
        interrupt, world = self.progress.interrupt, self.device.world
        due = blocks is not None and world.main and time.monotonic() - blocks.saved >= self.save_seconds
        stop, save = world.most(interrupt.requested, due)
        if blocks is not None and (stop or save):
            blocks.save(rows, turn)
        if stop:
            interrupt.stop()

    def _blocks(self, phase: str, indices: np.ndarray, modules: tuple[nn.Module, ...]) -> Blocks | None:
        if self.folder is None:
            return None

        def identity() -> str:
            digest = hashlib.sha256(f"{self.identity}/{phase}/{self.batch}/{self.device.world.size}".encode())
            digest.update(np.ascontiguousarray(indices).data)
            for module in modules:
                for tensor in module.state_dict().values():
                    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            return digest.hexdigest()

        return Blocks(self.folder, f"scan-{phase.replace(' ', '-')}-{self.device.world.rank}", identity)

    def _resume(self, rows: Rows, blocks: Blocks | None) -> int:
        """Put back what all processes have on disk; the number of batches that they need not take again."""
        found = [] if blocks is None else blocks.read()
        last = found[-1]["turn"] if found else 0
        start = -self.device.world.most(-last)[0]
        for state in found:
            if state["turn"] <= start:
                rows.add(state["rows"])
                assert blocks is not None
                blocks.number, blocks.first = blocks.number + 1, rows.done
        return start

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


class Rows:
    """What a scan has found so far. arrays: by name (N, ...), of which this process fills its share, `done` of it."""

    def __init__(self, total: int, share: slice) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.total, self.share, self.count, self.done = total, share, share.stop - share.start, 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """The next rows, (B, ...) by name."""
        size = 0
        for name, value in values.items():
            block = (value.float() if value.is_floating_point() else value).cpu().numpy()
            if name not in self.arrays:
                self.arrays[name] = np.empty((self.total, *block.shape[1:]), dtype=block.dtype)
            first, size = self.share.start + self.done, len(block)
            self.arrays[name][first : first + size] = block
        self.done += size

    def since(self, first: int) -> dict[str, Tensor]:
        """The rows of the share from `first` on."""
        span = slice(self.share.start + first, self.share.start + self.done)
        return {name: torch.from_numpy(array[span]) for name, array in self.arrays.items()}


class Blocks:
    """The rows of one scan on disk, in files of consecutive rows. number: of them; first: the row that none has yet."""

    def __init__(self, folder: Path, name: str, identity: Callable[[], str]) -> None:
        """identity: of the scan: what is scanned, by which networks."""
        self.folder, self.name, self.identity = folder, name, cache(identity)
        self.number, self.first, self.saved = 0, 0, time.monotonic()

    def save(self, rows: Rows, turn: int) -> None:
        """The rows that came since the last block; turn: batches until now."""
        if rows.done > self.first:
            state = {"identity": self.identity(), "turn": turn, "rows": rows.since(self.first)}
            checkpoint.save(self._path(self.number), state)
            self.number, self.first = self.number + 1, rows.done
        self.saved = time.monotonic()

    def read(self) -> list[dict[str, Any]]:
        """The blocks of this scan, up to the first that is missing, damaged or of another scan."""
        found: list[dict[str, Any]] = []
        while self._path(len(found)).is_file():
            state = checkpoint.load(self._path(len(found)), self.identity(), CPU)
            if state is None:
                break
            found.append(state)
        return found

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number}.ckpt"


def batch_of(classes: int, pixels: int) -> int:
    """Images per batch of a scan: 512, fewer where each has predictions of `classes` for many `pixels`."""
    return max(1, min(BATCH, OUTPUTS // (classes * pixels)))
