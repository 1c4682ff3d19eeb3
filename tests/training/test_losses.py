"""Cross-entropy of images and of maps: what is averaged over, ignored pixels, shares of a batch."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mal.process.distributed import ALONE, World
from mal.training.losses import cross_entropy
from mal.training.objective import Inputs

DOUBLE = torch.float64
NO_IMAGES = torch.zeros(0)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def made_up_maps(*shape: int, classes: int = 5, ignored: float = 0.3) -> Tensor:
    random = np.random.default_rng(0)
    maps = random.integers(0, classes, shape, dtype=np.uint8)
    maps[random.random(shape) < ignored] = 255
    return torch.from_numpy(maps)


def brute_force(logits: Tensor, maps: Tensor) -> float:
    losses = []
    for b, y, x in np.ndindex(*maps.shape):
        if maps[b, y, x] != 255:
            column = logits[b, :, y, x].tolist()
            losses.append(math.log(sum(math.exp(v) for v in column)) - column[int(maps[b, y, x])])
    return sum(losses) / len(losses)


class Shares(World):
    """One of several processes: it hears what the others add."""

    def __init__(self, others: float) -> None:
        super().__init__()
        self.others = others

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + int(self.others)


def test_of_images_it_is_the_mean_times_the_weight() -> None:
    logits, labels = noise(6, 4), torch.arange(6) % 4
    expected = -logits.log_softmax(1)[torch.arange(6), labels].mean()
    assert cross_entropy(logits, Inputs(NO_IMAGES, labels), ALONE).item() == pytest.approx(expected.item())
    assert cross_entropy(logits, Inputs(NO_IMAGES, labels, 0.25), ALONE).item() == pytest.approx(expected.item() / 4)


def test_of_maps_it_is_the_mean_over_the_pixels_that_have_a_class() -> None:
    logits, maps = noise(3, 5, 4, 6), made_up_maps(3, 4, 6)
    assert cross_entropy(logits, Inputs(NO_IMAGES, maps), ALONE).item() == pytest.approx(brute_force(logits, maps))


def test_ignored_pixels_get_no_gradient_and_its_gradient_is_its_finite_difference() -> None:
    logits, maps = noise(2, 5, 3, 3).requires_grad_(), made_up_maps(2, 3, 3)
    torch.autograd.gradcheck(lambda x: cross_entropy(x, Inputs(NO_IMAGES, maps), ALONE), (logits,))
    cross_entropy(logits, Inputs(NO_IMAGES, maps), ALONE).backward()
    touched = (logits.grad != 0).any(dim=1)
    assert torch.equal(touched, maps != 255)


def test_a_batch_without_a_single_class_is_no_loss_and_no_gradient() -> None:
    logits = noise(2, 5, 3, 3).requires_grad_()
    loss = cross_entropy(logits, Inputs(NO_IMAGES, torch.full((2, 3, 3), 255, dtype=torch.uint8)), ALONE)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_shares_with_unequal_numbers_of_pixels_add_up_to_the_global_loss() -> None:
    logits, maps = noise(4, 5, 6, 6), made_up_maps(4, 6, 6)
    maps[0] = 255  # the first share has far fewer pixels
    maps[1, 1:] = 255
    whole = cross_entropy(logits, Inputs(NO_IMAGES, maps), ALONE).item()
    valid = [int((part != 255).sum()) for part in (maps[:2], maps[2:])]
    assert valid[0] < valid[1] / 5
    parts = [
        cross_entropy(logits[half], Inputs(NO_IMAGES, maps[half], 0.5), Shares(others)).item()
        for half, others in ((slice(2), valid[1]), (slice(2, 4), valid[0]))
    ]
    assert sum(parts) == pytest.approx(whole)
