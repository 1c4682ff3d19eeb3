"""Images from FFCV's files to the card: training and scans, beside what the files and the card give by themselves."""

from __future__ import annotations

import importlib.util
import itertools
import os
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.gpu.checks import Bench, Data, Found, placed
from benchmarks.gpu.speed import confidence, milliseconds, task_model, trained
from benchmarks.loaders import BATCH, SIDE, photographs, stored
from mal.config.schema import Chain
from mal.data.loader import build_loader, in_order
from mal.process.device import Device
from mal.process.interrupt import Interrupt
from mal.run.heartbeat import Progress
from mal.training.scan import Scanner

DISTINCT = 256  # photographs, over and over: their decoding is what counts
TARGETS = {"training": 10_000, "scan": 30_000}


@dataclass(frozen=True)
class Repeated:
    """What FFCV's writer takes: the photographs, over and over."""

    images: np.ndarray
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        return self.images[index % len(self.images)], index % 1000, index


def rates(bench: Bench, config: Chain, device: Device, data: Data, steps: int) -> dict[str, int]:
    """Images per second: as the data's loader gives them, in the training loop, and in a scan."""
    count = len(data.images)
    order = np.random.default_rng(0).permutation(count)

    def delivered() -> None:
        for batch in data.loader.batches(in_order(order, BATCH)):
            assert batch.images.device.type == device.torch.type

    per_epoch = milliseconds(delivered, 1)
    per_step = trained(bench, config, device, data, BATCH, steps)
    model = task_model(config, device).eval()
    scanner = Scanner(data.augmentation, device, Progress(bench.work / "scan", 0, Interrupt()))
    scan = partial(scanner.scan, "score", data.loader, np.arange(count), partial(confidence, model), model)
    seconds = {"loader": per_epoch / count, "training": per_step / BATCH, "scan": milliseconds(scan, 1) / count}
    return {name: round(1e3 / each) for name, each in seconds.items()}


def ffcv_files_feed_the_card(bench: Bench) -> Found:
    """ResNet18 at 224 in bf16: images per second from memory on the card, from raw pixels and from JPEGs in files."""
    if importlib.util.find_spec("ffcv") is None:
        return {"rehearsed": False, "why": "ffcv is not installed"}
    workers = len(os.sched_getaffinity(0))
    count, steps = (4096, 60) if bench.cuda else (DISTINCT, 1)
    samples = Repeated(np.stack(list(itertools.islice(photographs(DISTINCT), DISTINCT))), count)
    config, device = placed(bench, "dataset=imagenet", "precision=bf16", "task.optimizer=adam", "task.lr=0.001")
    assert config.dataset.size == SIDE
    data = Data(config.dataset, count, device)
    bench.told["cores"] = workers
    bench.told["on the card"] = rates(bench, config, device, data, steps)
    for mode in ("raw", "jpg"):
        file = stored(bench.work / f"{mode}.beton", mode, samples, workers)
        data.loader = build_loader("ffcv", file, data.labels, device.torch, workers)
        bench.told[mode] = rates(bench, config, device, data, steps)
    bench.told["targets, images per second"] = TARGETS
    return {}
