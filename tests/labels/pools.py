"""Pools of made-up images that nobody has labelled, and annotators who know the truth: the folder an image lies in."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.labels.asking import TO_LABEL, asking_folder, awaited
from mal.labels.sheet import request
from mal.run import folder as run_folder
from tests.chains import write_chain

NAMES = ("ant", "bee", "wasp")
Label = Callable[[str], str]


def truth(path: str) -> str:
    """What an annotator says who knows."""
    return path.partition("/")[0]


def write_pool(root: Path, train: int = 20, test: int = 4) -> Path:
    """ROOT/{train,test}/CLASS/N.png of 8x8 pixels, of which a third is bright by class; `train` of each class."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(NAMES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                image[:, 3 * label : 3 * label + 2] += 120
                Image.fromarray(image).save(root / part / name / f"{number}.png")
    return root


def overrides(root: Path, *changes: str) -> tuple[str, ...]:
    """Of a sweep that takes a moment."""
    return (
        "dataset=folder",
        f"dataset.train_images={root / 'train'}",
        f"dataset.test_images={root / 'test'}",
        f"data={root / 'data'}",
        *("dataset.size=8", "dataset.crop=null", "backbone=small_cnn", "backbone.width=4", "backbone.bottleneck=8"),
        *("backbone.discriminator=8", "threads=1", "device=cpu", "floor=off", "rounds=3", "initial=6", "budget=5"),
        *("minimax.epochs=0.5", "task.epochs=0.5", *changes),
    )


def chain_of(root: Path, *changes: str, method: str = "entropy", oracle: str = "files") -> Chain:
    """The configuration of one chain."""
    (chain,) = compose_sweep(
        [*overrides(root, *changes), f"methods=[{method}]", "seeds=[0]", f"oracle={oracle}"]
    ).chains
    return chain


def asked_sweep(root: Path, runs: Path, count: int = 6, *changes: str) -> Path:
    """A sweep with one chain that has asked for the first `count` images of its pool, as a round asks; its folder."""
    from mal.data.dataset import load

    config = chain_of(root, *changes)
    chain = write_chain(runs, config)
    dataset = load(config.dataset, Path(config.data), 0)
    indices = np.arange(0, len(dataset.pool), len(dataset.pool) // count)[:count]
    files = request(dataset.train, indices, "a sweep", [""] * count, [""] * count)  # type: ignore[arg-type]
    run_folder.commit(asking_folder(chain, 0), {run_folder.QUERY: indices, **files})
    return chain.parents[1]


def filled(chain: Path, to: Path, label: Label = truth) -> Path:
    """The CSV that a chain waits for, filled in; an empty label leaves an image out."""
    asking = asking_folder(chain, run_folder.committed_rounds(chain))
    rows = list(csv.DictReader((asking / TO_LABEL).open(newline="")))
    for row in rows:
        row["label"] = label(row["path"])
    with to.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return to


def waits(chain: Path, config: Chain) -> bool:
    """Whether it waits for labels."""
    return awaited(chain, config) is not None
