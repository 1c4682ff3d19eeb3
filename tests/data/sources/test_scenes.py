"""Composed scenes: repeatable, from disjoint images, with maps that say what is painted."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mal.config.compose import compose_sweep
from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources import scenes
from mal.data.sources.fashion_mnist import DEBIAN_FASHION_MNIST
from mal.data.sources.registry import SOURCES
from mal.data.sources.scenes import Look, compose, enlarge


def spec(name: str, **changes: object) -> Spec:
    (config,) = compose_sweep([f"dataset={name}", "methods=[random]", "seeds=1"]).chains
    return replace(config.dataset, **changes)


def squares(classes: int = 3) -> Arrays:
    """One object of each class, 4x4, fully inked."""
    return Arrays(np.full((classes, 1, 4, 4), 255, np.uint8), np.arange(classes))


LOOK = Look(sides=(5, 9), opacity=4.0)


@pytest.fixture(scope="module")
def digit_scenes() -> tuple[Arrays, Arrays]:
    return SOURCES["digit_scenes"](spec("digit_scenes", train=300, test=60), Path("nowhere"))


def test_scenes_are_what_their_specification_says(digit_scenes: tuple[Arrays, Arrays]) -> None:
    for split, count in zip(digit_scenes, (300, 60), strict=True):
        assert (split.images.shape, split.images.dtype) == ((count, 1, 48, 48), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((count, 48, 48), np.uint8)
        assert set(np.unique(split.labels)) == set(range(11))


def test_scenes_are_the_same_on_every_machine(digit_scenes: tuple[Arrays, Arrays]) -> None:
    digest = hashlib.sha256(b"".join(s.images.tobytes() + s.labels.tobytes() for s in digit_scenes)).hexdigest()
    assert digest == DIGEST


def test_a_scene_does_not_depend_on_how_many_there_are(digit_scenes: tuple[Arrays, Arrays]) -> None:
    fewer, _ = SOURCES["digit_scenes"](spec("digit_scenes", train=7, test=1), Path("nowhere"))
    assert np.array_equal(fewer.images, digit_scenes[0].images[:7])
    assert np.array_equal(fewer.labels, digit_scenes[0].labels[:7])


def test_scenes_are_no_toy(digit_scenes: tuple[Arrays, Arrays]) -> None:
    train = digit_scenes[0]
    share = np.bincount(train.labels.ravel(), minlength=11) / train.labels.size
    assert 0.6 < share[0] < 0.9
    assert share[1] > 2.5 * share[10] > 0  # classes are of unequal frequency
    objects = [len(set(np.unique(m)) - {0}) for m in train.labels]
    assert np.mean(np.array(objects) >= 3) > 0.3
    # brightness alone does not tell objects from what is behind them
    ink, behind = train.images[:, 0][train.labels > 0], train.images[:, 0][train.labels == 0]
    best = max(
        max(np.mean(ink > t) + np.mean(behind <= t), np.mean(ink <= t) + np.mean(behind > t)) for t in range(0, 256, 8)
    )
    assert best / 2 < 0.9


def test_training_and_test_scenes_show_different_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Arrays] = {}

    def spy(spec: Spec, part: str, count: int, objects: Arrays, look: Look) -> Arrays:
        seen[part] = objects
        return compose(spec, part, count, objects, look)

    monkeypatch.setattr(scenes, "compose", spy)
    train, test = SOURCES["digit_scenes"](spec("digit_scenes", train=3, test=3), Path("nowhere"))
    assert (len(seen["train"].images), len(seen["test"].images)) == (1347, 450)
    assert not np.array_equal(train.images, test.images)
    both = {part: {image.tobytes() for image in split.images} for part, split in seen.items()}
    assert not both["train"] & both["test"]


def test_later_objects_hide_earlier_ones_and_maps_follow_the_paint() -> None:
    small = spec("digit_scenes", size=32, classes=4)
    found = compose(small, "train", 40, squares(), LOOK)
    without = compose(small, "train", 40, Arrays(np.zeros((3, 1, 4, 4), np.uint8), np.arange(3)), LOOK)
    painted = found.labels > 0
    assert painted.mean() > 0.05
    assert (without.labels == 0).all()
    # the same backgrounds: pixels differ where an object was painted, and nowhere else
    changed = np.abs(found.images[:, 0].astype(int) - without.images[:, 0]) > 0
    assert changed[painted].mean() > 0.95
    assert changed[~painted].mean() < 0.02
    assert np.unique(found.labels).tolist() == [0, 1, 2, 3]


def test_another_part_or_source_has_other_scenes() -> None:
    small = spec("digit_scenes", size=32, classes=4)
    parts = [compose(small, "train", 2, squares(), LOOK), compose(small, "test", 2, squares(), LOOK)]
    parts.append(compose(replace(small, source="fashion_scenes"), "train", 2, squares(), LOOK))
    assert len({part.images.tobytes() for part in parts}) == 3


@pytest.mark.parametrize(("shape", "side"), [((4, 4), 12), ((8, 8), 5), ((5, 7), 7)])
def test_enlarging_is_bilinear(shape: tuple[int, int], side: int) -> None:
    import torch
    import torch.nn.functional as F

    values = np.random.default_rng(0).random(shape)
    expected = F.interpolate(torch.from_numpy(values)[None, None], size=(side, side), mode="bilinear")[0, 0]
    assert enlarge(values, side) == pytest.approx(expected.numpy())


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_scenes_show_garments() -> None:
    train, test = SOURCES["fashion_scenes"](spec("fashion_scenes", train=40, test=20), Path("nowhere"))
    assert train.images.shape == (40, 1, 64, 64)
    assert test.labels.shape == (20, 64, 64)
    assert set(np.unique(train.labels)) == set(range(11))


DIGEST = "f5a6921050543d2f3fbccf7d2469f526e08d9804373e0d472d8c519464f181c8"
