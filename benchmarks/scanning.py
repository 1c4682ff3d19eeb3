"""A pass over a pool against a bare inference loop of the same network, batch size and precision.

python -m benchmarks.scanning [--threads 1 --clock cpu]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import bare
from benchmarks.measure import HEAD, Pair, arguments, interleaved, noise, row
from benchmarks.training import SETTINGS, configured, task_model
from mal.data.augment import build_augmentation
from mal.data.loader import MemoryLoader
from mal.process.interrupt import Interrupt
from mal.run.heartbeat import Progress
from mal.training.scan import Scanner

IMAGES = {"resnet18 32x32": 1024, "small_cnn 28x28": 8192}


def scan_against_bare(name: str, precision: str, threads: int, repeats: int, clock: str) -> Pair:
    """Logits of every image, by the scanner and by the loop."""
    config, device = configured(name, precision, threads)
    images = noise(IMAGES[name], config.dataset.channels, SETTINGS[name][2])
    everything, half = np.arange(len(images)), np.full(config.dataset.channels, 0.5)
    augmentation = build_augmentation(config.dataset, half, half, device.torch)
    loader = MemoryLoader(images, np.zeros(len(images), np.int64), device.torch)
    model, tensors = task_model(config, device), torch.from_numpy(images).to(device.torch)

    def logits(batch: Tensor) -> dict[str, Tensor]:
        return {"logits": model(batch)}

    with tempfile.TemporaryDirectory() as folder:
        scanner = Scanner(augmentation, device, Progress(Path(folder), 0, Interrupt()))
        arguments = scanner.batch, augmentation.mean, augmentation.std, precision == "bf16"
        scanned = scanner.scan("score", loader, everything, logits, model)["logits"]
        assert np.array_equal(scanned, bare.inference(model, tensors, *arguments).numpy())
        return interleaved(
            lambda: scanner.scan("score", loader, everything, logits, model),
            lambda: bare.inference(model, tensors, *arguments),
            repeats,
            clock,
            warm=1,
        )


def main() -> None:
    given = arguments(__doc__)
    print(HEAD)
    for name, count in IMAGES.items():
        for precision in ("fp32", "bf16"):
            pair = scan_against_bare(name, precision, given.threads, given.repeats, given.clock)
            row(f"scan / bare loop, {count} of {name} {precision}", pair, 1.05)


if __name__ == "__main__":
    main()
