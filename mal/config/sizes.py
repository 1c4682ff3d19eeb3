"""How much a chain computes and holds, from its configuration alone: steps of its phases, bytes of its images."""

from __future__ import annotations

import math

from mal.config.schema import Chain, Dataset

MOST_IN_MEMORY = 4 * 2**30  # bytes of pixels: what a GPU of 8 GB holds beside networks and batches
MOST_DECODED = 256 * 2**20  # bytes of files' pixels: what every job may decode again, some ten seconds of a core


def image_bytes(dataset: Dataset) -> int:
    """What all images take as pixels."""
    return (dataset.train + dataset.test) * dataset.channels * dataset.size**2


def memory_limit(dataset: Dataset) -> float:
    """Up to how many bytes of pixels loader=auto keeps images in memory; of files less, as each job decodes them.

    Features are mapped into memory whatever their size.
    """
    if dataset.features is not None:
        return math.inf
    return MOST_DECODED if dataset.resize else MOST_IN_MEMORY


def steps_of(epochs: float, epoch_of: str, pool: int, labelled: int, batch: int) -> int:
    """Steps of a phase: an epoch is pool / batch steps (the default, as the authors' VAAL code) or labelled / batch."""
    images = pool if epoch_of == "pool" else labelled
    return max(1, math.ceil(epochs * images / min(batch, images)))


def images_of_step(chain: Chain) -> int:
    """Images that go through M for each labelled one: FixMatch's unlabelled ones twice."""
    return 1 + 2 * chain.task.semi_ratio if chain.task.semi else 1


def steps_of_round(chain: Chain, number: int, pool: int) -> dict[str, tuple[int, int]]:
    """Phase -> (steps, images per step) of round `number`: Algorithm 1, the task model M, what else a method trains."""
    labelled = min(pool, chain.initial + number * chain.budget)
    steps: dict[str, tuple[int, int]] = {}
    minimax, task, method = chain.minimax, chain.task, chain.method
    if method["acquisition"] == "mal" or task.init == "from_f":
        count = steps_of(minimax.epochs, minimax.epoch_of, pool, labelled, minimax.batch)
        steps["Algorithm 1"] = count, 2 * minimax.batch
    count = steps_of(task.epochs, task.epoch_of, pool, labelled, task.batch)
    steps["M"] = count * int(method.get("members", 1)), task.batch * images_of_step(chain)
    if {"epochs", "epoch_of", "batch"} <= set(method):
        count = steps_of(method["epochs"], method["epoch_of"], pool, labelled, method["batch"])
        steps[str(method["acquisition"])] = count, 2 * method["batch"]
    return steps
