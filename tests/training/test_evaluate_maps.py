"""Evaluating maps: mean IoU by definition and by torchmetrics, ignored pixels, one pass."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from mal.data.loader import MemoryLoader
from mal.process.interrupt import Interrupt
from mal.run.heartbeat import Progress
from mal.training.evaluate import distances, evaluate_maps, overlaps
from mal.training.scan import Scanner, batch_of
from tests.chains import CPU, made_up_images, plain_augmentation


def made_up_maps(count: int, side: int, classes: int, ignored: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    maps = random.integers(0, classes, (count, side, side), dtype=np.uint8)
    maps[random.random(maps.shape) < ignored] = 255
    return maps


class Table(nn.Module):
    """Predicts a map by the brightness of each pixel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.seen = classes, 0

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen += len(images)
        level = (images[:, 0] * 255).round().long() % self.classes
        return nn.functional.one_hot(level, self.classes).movedim(-1, 1).float()


def scanner_in(folder: Path, crop: int | None = None, batch: int = 7) -> Scanner:
    return Scanner(plain_augmentation(crop=crop, flip=True), CPU, Progress(folder, 0, Interrupt()), batch)


def brute_force(predicted: np.ndarray, maps: np.ndarray, classes: int) -> list[float]:
    """IoU of each class by sets of pixels; NaN for a class that is nowhere."""
    known = [at for at in np.ndindex(*maps.shape) if maps[at] != 255]
    found = []
    for label in range(classes):
        here, there = {at for at in known if predicted[at] == label}, {at for at in known if maps[at] == label}
        found.append(len(here & there) / len(here | there) if here | there else math.nan)
    return found


@pytest.mark.parametrize(("count", "classes", "ignored"), [(1, 2, 0.0), (10, 5, 0.3), (23, 7, 0.9)])
def test_mean_iou_is_the_brute_force_one_and_torchmetrics(
    tmp_path: Path, count: int, classes: int, ignored: float
) -> None:
    images, maps = made_up_images(count, size=6), made_up_maps(count, 6, classes - 1, ignored)  # the last class: absent
    predicted = images[:, 0] % classes
    model = Table(classes)
    found = evaluate_maps(model, scanner_in(tmp_path), MemoryLoader(images, maps, CPU.torch), classes)
    expected = brute_force(predicted, maps, classes)
    assert found.per_class == pytest.approx(100 * np.array(expected), nan_ok=True)
    assert found.value == pytest.approx(100 * np.nanmean(expected))
    assert model.seen == count
    theirs = MulticlassJaccardIndex(classes, ignore_index=255)
    known = torch.from_numpy(maps.astype(np.int64))
    assert found.value == pytest.approx(
        100 * theirs(torch.from_numpy(predicted.astype(np.int64)), known).item(), rel=1e-5
    )


def test_a_class_that_is_nowhere_does_not_count_and_one_only_predicted_does(tmp_path: Path) -> None:
    images = np.zeros((1, 1, 2, 2), np.uint8)
    images[0, 0] = [[0, 0], [1, 2]]
    maps = np.array([[[0, 0], [1, 1]]], np.uint8)
    found = evaluate_maps(Table(5), scanner_in(tmp_path), MemoryLoader(images, maps, CPU.torch), 5)
    assert found.per_class == pytest.approx([100, 50, 0, math.nan, math.nan], nan_ok=True)
    assert found.value == pytest.approx(50)


def test_maps_are_cropped_as_their_images(tmp_path: Path) -> None:
    images, maps = made_up_images(5, size=8), made_up_maps(5, 8, 4, 0.2)
    found = evaluate_maps(Table(4), scanner_in(tmp_path, crop=4), MemoryLoader(images, maps, CPU.torch), 4)
    inside = np.s_[:, 2:6, 2:6]
    assert found.per_class == pytest.approx(100 * np.array(brute_force(images[:, 0][inside] % 4, maps[inside], 4)))


def test_overlaps_are_counts_by_image() -> None:
    predicted, maps = torch.randint(0, 3, (4, 5, 6)), torch.from_numpy(made_up_maps(4, 6, 3, 0.3)[:, :5])
    found = overlaps(predicted, maps, 3)
    assert found.shape == (4, 3, 3)
    for image in range(4):
        known = maps[image] != 255
        for label in range(3):
            here, there = (predicted[image] == label) & known, maps[image] == label
            assert found[image, :, label].tolist() == [int((here & there).sum()), int(here.sum()), int(there.sum())]


def test_batches_of_a_scan_shrink_with_what_is_predicted() -> None:
    assert batch_of(100, 1) == 512
    assert batch_of(1000, 1) == 512
    assert batch_of(19, 224**2) * 19 * 224**2 <= 2**24 < (batch_of(19, 224**2) + 1) * 19 * 224**2
    assert batch_of(150, 4096**2) == 1


@pytest.mark.parametrize("ignored", [0.0, 0.6])
def test_confidence_and_calibration_are_those_of_all_known_pixels(tmp_path: Path, ignored: float) -> None:
    from mal.training.diagnostics import calibration_error

    class Random(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images[:, 0] * 9 - 4, images[:, 0] * -2, images[:, 0] * 5 - 2], dim=1)

    images, maps = made_up_images(11, size=6), made_up_maps(11, 6, 3, ignored)
    found = evaluate_maps(Random(), scanner_in(tmp_path), MemoryLoader(images, maps, CPU.torch), 3)
    p = Random()(torch.from_numpy(images).float() / 255).softmax(1).numpy()
    known = maps != 255
    confidence, hit = p.max(1)[known], (p.argmax(1) == maps)[known]
    assert found.confidence == pytest.approx(100 * confidence.mean(), rel=1e-5)
    assert found.calibration == pytest.approx(calibration_error(confidence, hit), rel=1e-4)
    assert found.value == pytest.approx(100 * np.nanmean(brute_force(p.argmax(1), maps, 3)))


def test_distances_put_each_pixel_in_its_bin() -> None:
    confidence = torch.tensor([[[1e-9, 1 / 15, 1 / 15 + 1e-4, 1.0]]])
    hit, known = torch.tensor([[[True, False, True, True]]]), torch.tensor([[[True, True, True, False]]])
    found = distances(confidence, hit, known)
    assert found.shape == (1, 15)
    assert found[0, :3].tolist() == pytest.approx([-1 + 1 / 15, 1 / 15 + 1e-4 - 1, 0], abs=1e-5)
    assert (found[0, 2:] == 0).all()
