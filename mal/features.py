"""Features of a frozen encoder, once for a whole sweep: of all training and test images, in shards.

    python -m mal.features dataset=imagenet backbone=resnet18 backbone.weights=imagenet data=/shared/data
    srun -n8 python -m mal.features ...      # any number of processes share the shards

It takes the keys of sweeps/launch.py and `out=DIR` (default: DATA/features/DATASET-BACKBONE), `dtype=float16|float32`.
Stop it when you like: the same command goes on with the shards that are missing; dry_run=true says how many are there,
and computes none. Then:

    python sweeps/launch.py dataset=imagenet features=DIR methods=[mal,coreset,random]
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mal.config.compose import compose_sweep
from mal.config.feature_sets import MANIFEST, PARTS, labels_file, values_file
from mal.config.schema import Chain
from mal.data.at_launch import survey
from mal.data.augment import build_augmentation
from mal.data.dataset import Dataset, load
from mal.data.loader import Loader, build_loader, count_workers
from mal.data.pixel_statistics import pixel_statistics
from mal.files import atomic_file, run_command, write_json
from mal.models.at_launch import settle_weights
from mal.models.backbones import build_backbone
from mal.models.pretrained import IMAGENET, imagenet_statistics
from mal.process.device import Device, prepare_device
from mal.process.interrupt import EXIT_INTERRUPTED, Interrupt, Interrupted
from mal.run.heartbeat import Progress
from mal.run.lock import hold
from mal.training.scan import Scanner

ROWS = 2**14  # images of a shard
SHARDS = ".shards"
WAIT_SECONDS = 24 * 3600.0  # for a shard that another process has in hand
TYPES = {"float16": np.float16, "float32": np.float32}

log = logging.getLogger("mal.features")


@dataclass(frozen=True)
class Extraction:
    """One run over the images of a dataset.

    folder: of the set; manifest: what it will be recognised by; dry_run: what is missing is said, not computed; lines:
    what is to be said of the images.
    """

    config: Chain
    dataset: Dataset
    folder: Path
    dtype: str
    manifest: dict[str, Any]
    dry_run: bool = False
    lines: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Images of all parts."""
        return sum(len(getattr(self.dataset, part)) for part in PARTS)

    def parts(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Part, number and rows, int64, of each shard."""
        for part in PARTS:
            rows = np.arange(len(getattr(self.dataset, part)))
            for number, first in enumerate(range(0, len(rows), ROWS)):
                yield part, number, rows[first : first + ROWS]

    def shard(self, part: str, number: int) -> Path:
        """The file of a shard."""
        return self.folder / SHARDS / self.manifest["identity"][:12] / f"{part}-{number:05}.npy"


def plan(arguments: list[str]) -> Extraction:
    """What the command line asks for; ValueError where it cannot be, or where files of the dataset are damaged.

    As at a launch, `check` says how they are looked at, and dataset.skip_corrupt=true leaves them out.
    """
    options = {"out": "", "dtype": "float16"}
    own = [a for a in arguments if a.partition("=")[0] in options]
    options |= {a.partition("=")[0]: a.partition("=")[2] for a in own}
    if options["dtype"] not in TYPES:
        raise ValueError(f"dtype={options['dtype']} is unknown. Allowed: {', '.join(TYPES)}.")
    sweep = compose_sweep([*(a for a in arguments if a not in own), "methods=[random]", "seeds=1"])
    (config,) = settle_weights(sweep.chains, sweep.dry_run)
    if not config.backbone.get("weights"):
        raise ValueError("features of a network without weights say nothing: give backbone.weights=FILE or imagenet.")
    if config.dataset.task != "classification":
        raise ValueError(f"features are for classification: {config.dataset.name} is for {config.dataset.task}.")
    loader = "torch" if config.loader == "auto" else config.loader
    data = Path(config.data)
    found = survey(config.dataset, data, loader, sweep.check, config.dataset.classes, not sweep.dry_run)
    config = replace(config, dataset=found.spec)
    dataset = load(config.dataset, data, config.seed, loader, found.splits)
    encoder = {key: value for key, value in config.backbone.items() if key not in ("weights", "freeze")}
    asked: dict[str, Any] = {"encoder": encoder, "data": dataset.digest}
    asked |= {"crop": config.dataset.crop, "dtype": options["dtype"]}
    if config.dataset.left_out:
        asked["left_out"] = config.dataset.left_out
    identity = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    weights = encoder.get("weights_sha256", "to be fetched")  # in a dry run alone
    words = f"{encoder['name']} {weights[:12]} {identity[:12]}"
    name = f"{config.dataset.name}-{encoder['name']}"
    folder = Path(options["out"]) if options["out"] else data / "features" / name
    manifest = {"encoder": words, "identity": identity, "weights": config.backbone["weights"], "asked": asked}
    manifest["dataset"] = asdict(config.dataset)
    return Extraction(config, dataset, folder, options["dtype"], manifest, sweep.dry_run, tuple(found.lines))


def is_complete(extraction: Extraction) -> bool:
    """Whether the set is there; ValueError where the folder has another one.

    A dry run does not know it of weights that are still to be fetched: False.
    """
    path = extraction.folder / MANIFEST
    if not path.is_file() or "weights_sha256" not in extraction.config.backbone:
        return False
    found = json.loads(path.read_text())
    if found["identity"] != extraction.manifest["identity"]:
        raise ValueError(f"{extraction.folder} has the features of {found['encoder']}: choose another folder by out=.")
    return True


def describe(extraction: Extraction) -> str:
    """What a run would compute, for a dry run."""
    shards = [extraction.shard(part, number) for part, number, _ in extraction.parts()]
    there = sum(path.is_file() for path in shards)
    through = f"{extraction.images:,} images through {extraction.config.backbone['name']}"
    return f"features: {through}, into {extraction.folder}: {there} of {len(shards)} shards are there"


def extract(extraction: Extraction, interrupt: Interrupt) -> None:
    """Compute the shards that are missing, those that nobody has in hand first, and put the set together.

    Raises `Interrupted` where a stop is asked for: what is done stays.
    """
    device = prepare_device(extraction.config)
    encoder, loaders, scanner, folder = _machinery(extraction, device, interrupt)
    try:
        for patience in (0.0, WAIT_SECONDS):
            for part, number, rows in extraction.parts():
                path = extraction.shard(part, number)
                if path.is_file():
                    continue
                try:
                    with hold(path.with_suffix(".lock"), patience):
                        if not path.is_file():
                            _compute(extraction, path, scanner, loaders[part], encoder, rows)
                except TimeoutError:
                    continue
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with hold(extraction.folder / ".lock", WAIT_SECONDS):
        if not is_complete(extraction):
            _assemble(extraction)


def _machinery(
    extraction: Extraction, device: Device, interrupt: Interrupt
) -> tuple[nn.Module, dict[str, Loader], Scanner, Path]:
    config, dataset = extraction.config, extraction.dataset
    imagenet = config.backbone.get("normalise") == IMAGENET
    mean, std = imagenet_statistics(config.dataset.channels) if imagenet else pixel_statistics(dataset)
    augmentation = build_augmentation(config.dataset, mean, std, device.torch)
    workers = count_workers(config.workers, config.threads)
    loader = "torch" if config.loader == "auto" else config.loader
    loaders = {
        part: build_loader(loader, split, np.zeros(len(split), np.int64), device.torch, workers)
        for part, split in (("train", dataset.train), ("test", dataset.test))
    }
    encoder = device.place(build_backbone(config.backbone, config.dataset.channels))
    folder = Path(tempfile.mkdtemp(prefix="mal-features-"))  # of the heartbeat, which nobody looks at
    return encoder, loaders, Scanner(augmentation, device, Progress(folder / "round-0", 0, interrupt)), folder


def _compute(
    extraction: Extraction, path: Path, scanner: Scanner, loader: Loader, encoder: nn.Module, rows: np.ndarray
) -> None:
    def features(images: Tensor) -> dict[str, Tensor]:
        return {"features": encoder(images).flatten(1).float()}

    values = scanner.scan(path.stem, loader, rows, features, encoder)["features"]
    with np.errstate(over="ignore"):
        stored = values.astype(TYPES[extraction.dtype])
    if not np.isfinite(stored).all():
        raise ValueError(f"{path.stem}: features are up to {np.abs(values).max():.3g}: choose dtype=float32.")
    with atomic_file(path) as file:
        np.save(file, stored)
    log.info("%s: %d images of %d features", path.stem, *stored.shape)


def _assemble(extraction: Extraction) -> None:
    """One array of each part from its shards; the manifest, which says that all is there, comes last."""
    for part in PARTS:
        shards = [
            np.load(extraction.shard(name, n), mmap_mode="r") for name, n, _ in extraction.parts() if name == part
        ]
        shape = (sum(map(len, shards)), shards[0].shape[1])
        with atomic_file(values_file(extraction.folder, part)) as file:
            header = {"descr": shards[0].dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for shard in shards:
                file.write(shard.tobytes())
        labels = np.asarray(getattr(extraction.dataset, part).labels, dtype=np.int64)
        with atomic_file(labels_file(extraction.folder, part)) as file:
            np.save(file, labels)
    write_json(extraction.folder / MANIFEST, extraction.manifest)
    shutil.rmtree(extraction.folder / SHARDS, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    interrupt = Interrupt()
    interrupt.install()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        extraction = plan(arguments)
        print("\n".join(extraction.lines), flush=True)
        if not is_complete(extraction):
            if extraction.dry_run:
                print(describe(extraction))
                return 0
            extract(extraction, interrupt)
    except Interrupted:
        print("features: stopped; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ValueError as error:
        print(f"features: {error}", file=sys.stderr)
        return 2
    print(f"{extraction.manifest['encoder']}: launch with features={extraction.folder}")
    return 0


if __name__ == "__main__":
    run_command(main)
