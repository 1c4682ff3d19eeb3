"""What the choice of batch norm's statistics does to C and D, in committed rounds of MAL on classification.

    python -m benchmarks.batch_norm [--runs runs --name study_digits --out FILE.csv]

Algorithm 1 gives F batches of labelled and of unlabelled images in turn, each normalised by its own statistics; scores
are made with running statistics, which are a mixture of both. So F, C and D of each round are trained once more, which
gives the same networks (the losses are compared with the round's), and measured with

    running   the running statistics, as MAL scores
    pool      statistics of the unlabelled images, taken anew
    apart     labelled images by the statistics of the labelled, unlabelled by those of the unlabelled, as D was trained

Columns: accuracy of C on the test set (percent), D's AUC of labelled against unlabelled; mean and standard deviation
over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from mal.config.frozen import load_chain
from mal.data.augment import build_augmentation
from mal.data.dataset import load
from mal.data.loader import build_loader, visible_labels
from mal.data.pixel_statistics import pixel_statistics
from mal.minimax import PHASE, Networks, train_minimax
from mal.process.device import prepare_device
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.run.heartbeat import Progress
from mal.run.ledger import unlabelled
from mal.training.diagnostics import auc
from mal.training.loop import Trainer

Row = dict[str, float | str | int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--name", default="study_digits")
    parser.add_argument("--method", default="mal")
    parser.add_argument("--out", type=Path, help="a CSV of every seed")
    options = parser.parse_args()
    folders = [f for f in run_folder.chain_folders(options.runs, options.name) if f.parent.name == options.method]
    rows = [row for folder in folders for row in of_chain(folder)]
    if not rows:
        raise SystemExit(f"no committed round of {options.method} in {options.runs / options.name}")
    frame = pd.DataFrame(rows)
    if options.out:
        frame.to_csv(options.out, index=False, float_format="%.4f")
    print(frame.groupby(["labels", "statistics"], sort=False)[["c_value", "d_auc"]].agg(["mean", "std"]).round(3))


def of_chain(folder: Path) -> list[Row]:
    """The rows of one chain's rounds but the last, which has no query."""
    config = load_chain(folder / run_folder.CONFIG)
    dataset = load(config.dataset, Path(config.data), config.seed)
    device = prepare_device(config)
    interrupt = Interrupt()
    augmentation = build_augmentation(config.dataset, *pixel_statistics(dataset, interrupt.check), device.torch)
    nothing = visible_labels(len(dataset.train), np.empty(0, np.int64), np.empty(0, np.int64))
    images = build_loader(config.loader, dataset.train, nothing, device.torch)

    def pixels(indices: np.ndarray) -> torch.Tensor:
        return augmentation.evaluate(images.load(indices).images)

    test = augmentation.evaluate(device.place(torch.from_numpy(dataset.test.images)))
    truth = dataset.test.labels[np.arange(len(dataset.test))]
    rows: list[Row] = []
    for number in range(run_folder.committed_rounds(folder) - 1):
        committed = run_folder.read_round(run_folder.round_folder(folder, number))
        labelled = committed.labeled
        remaining = unlabelled(dataset.pool, labelled)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = Trainer(
                folder=Path(scratch) / run_folder.CHECKPOINT,
                identity="again",
                key=(config.seed, number),
                loader=images.showing(visible_labels(len(images), labelled, dataset.oracle.label(labelled))),
                augmentation=augmentation,
                device=device,
                progress=Progress(Path(scratch), number, interrupt),
                checkpoint_seconds=float("inf"),
            )
            networks = train_minimax(config, trainer, labelled, remaining)
        before = run_folder.read_json(committed.folder / run_folder.HISTORY)[PHASE]["losses"]
        same = all(np.array_equal(before[name], curve) for name, curve in trainer.history[PHASE]["losses"].items())
        known, others = pixels(labelled), pixels(remaining)
        for statistics in ("running", "pool", "apart"):
            of_c, of_d = measure(networks, statistics, known, others, test, truth)
            origin: Row = {"dataset": config.dataset.name, "seed": config.seed, "round": number, "same": same}
            rows.append(origin | {"labels": len(labelled), "statistics": statistics, "c_value": of_c, "d_auc": of_d})
        print(f"{folder.parent.name}/{folder.name}, round {number}: the round's losses again: {same}", flush=True)
    return rows


@torch.no_grad()
def measure(
    networks: Networks,
    statistics: str,
    known: torch.Tensor,
    others: torch.Tensor,
    test: torch.Tensor,
    truth: np.ndarray,
) -> tuple[float, float]:
    """C's accuracy on the test set in percent and D's AUC. known, others, test: normalised images (N, C, H, W)."""
    encoder = networks.encoder
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    if statistics == "apart":
        take_anew(encoder, known)
    elif statistics == "pool":
        take_anew(encoder, others)
    labelled = scores(networks.discriminator, encoder, known)
    if statistics == "apart":
        take_anew(encoder, others)
    seen = scores(networks.discriminator, encoder, others)
    logits = torch.cat([networks.classifier(encoder(part)) for part in test.split(512)])
    encoder.load_state_dict(state)
    return float(100 * np.mean(logits.argmax(dim=1).cpu().numpy() == truth)), auc(labelled, seen)


def scores(discriminator: nn.Module, encoder: nn.Module, images: torch.Tensor) -> np.ndarray:
    """D's logits of images, (N,)."""
    return torch.cat([discriminator(encoder(part)) for part in images.split(512)]).float().cpu().numpy()


def take_anew(encoder: nn.Module, images: torch.Tensor) -> None:
    """Put the plain mean over batches of the images' statistics in place of the running ones."""
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    encoder.train()
    for part in images.split(512):
        encoder(part)
    encoder.eval()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


if __name__ == "__main__":
    main()
