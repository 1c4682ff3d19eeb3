"""Scenes for segmentation, composed from images of single objects, with a class for each pixel.

A scene is a pure function of (dataset, part, its number): a textured background, bars that are not objects, then
objects of various sizes and brightness, each in front of those before it, some partly out of the frame. Class 0 is the
background; class k of the objects is class k + 1, and its frequency falls with k by the power FALL, as in real scenes.
Test scenes show test images alone.

Only sums, products and comparisons, element by element: the same bytes on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.digits import read_digits
from mal.data.sources.fashion_mnist import read_fashion_mnist
from mal.data.sources.registry import SOURCES, Source
from mal.rng import generator

FALL = 0.7
OBJECTS = (1, 4)  # in a scene, from and to
BARS = 3  # at most


@dataclass(frozen=True)
class Look:
    """How the objects of a source become part of a scene.

    sides: shortest and longest, in pixels; opacity: how fast a pixel of the source covers what is behind it.
    """

    sides: tuple[int, int]
    opacity: float


@SOURCES.register("digit_scenes")
def read_digit_scenes(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """Scenes of scikit-learn's digits, whose own split into training and test images they keep."""
    return _read(read_digits, replace(spec, test=450), spec, data, Look(sides=(18, 32), opacity=1.6))


@SOURCES.register("fashion_scenes")
def read_fashion_scenes(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """Scenes of Fashion-MNIST's garments; its files are looked for as fashion_mnist's."""
    return _read(read_fashion_mnist, spec, spec, data, Look(sides=(20, 40), opacity=5.0))


def _read(read: Source, of_objects: Spec, spec: Spec, data: Path, look: Look) -> tuple[Arrays, Arrays]:
    train, test = read(of_objects, data)
    assert isinstance(train, Arrays)
    assert isinstance(test, Arrays)
    return compose(spec, "train", spec.train, train, look), compose(spec, "test", spec.test, test, look)


def compose(spec: Spec, part: str, count: int, objects: Arrays, look: Look) -> Arrays:
    """Scenes 0 to count - 1 of a part: images uint8 (N, 1, S, S), labels uint8 (N, S, S).

    objects: the source's images uint8 (n, 1, h, w) and labels int64 (n,).
    """
    images = np.empty((count, 1, spec.size, spec.size), np.uint8)
    maps = np.empty((count, spec.size, spec.size), np.uint8)
    members = [np.flatnonzero(objects.labels == label) for label in range(spec.classes - 1)]
    weights = np.cumsum(1 / (1 + np.arange(len(members))) ** FALL)
    for number in range(count):
        random = generator("scene", spec.source, part, number)
        image, map_ = _background(random, spec.size), np.zeros((spec.size, spec.size), np.uint8)
        for _ in range(random.integers(OBJECTS[0], OBJECTS[1] + 1)):
            label = int(np.searchsorted(weights, random.random() * weights[-1], side="right"))
            chosen = objects.images[members[label][random.integers(len(members[label]))], 0]
            _place(random, image, map_, chosen, label + 1, look)
        image += random.random(image.shape) * 20 - 10
        images[number, 0], maps[number] = np.clip(image, 0, 255).astype(np.uint8), map_
    return Arrays(images, maps)


def _background(random: np.random.Generator, size: int) -> np.ndarray:
    """Clouds of two sizes, and bars: float64 (S, S), brightness about 0 to 255."""
    image = np.full((size, size), 30 + 80 * random.random())
    for cells, height in ((4, 60), (9, 30)):
        image += height * (enlarge(random.random((cells, cells)), size) - 0.5)
    for _ in range(random.integers(BARS + 1)):
        width, length = random.integers(2, 5), random.integers(size // 4, size)
        top, left = random.integers(size, size=2)
        upright = random.random() < 0.5
        rows, columns = (length, width) if upright else (width, length)
        image[top : top + rows, left : left + columns] += 180 * random.random() - 60
    return image


def _place(
    random: np.random.Generator, image: np.ndarray, map_: np.ndarray, shape: np.ndarray, label: int, look: Look
) -> None:
    """Paint one object over what is there, its centre within the frame."""
    size, side = len(image), int(random.integers(look.sides[0], look.sides[1] + 1))
    top, left = random.integers(-(side // 2), size - side // 2, size=2)
    rows, columns = (slice(max(first, 0), min(first + side, size)) for first in (top, left))
    whole = enlarge(shape / 255, side)
    ink = whole[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    cover = np.minimum(ink * look.opacity, 1)
    behind = image[rows, columns]
    around = behind[len(behind) // 2, 0]
    contrast = 60 + 90 * random.random()
    image[rows, columns] = behind + (around + contrast * (0.5 + 0.5 * ink) - behind) * cover
    map_[rows, columns][cover > 0.5] = label


def enlarge(values: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, float64 (h, w) to (side, side), pixel centres aligned."""
    (low, share), (left, part) = _between(values.shape[0], side), _between(values.shape[1], side)
    tall = values[low] + (values[low + 1] - values[low]) * share[:, None]
    return tall[:, left] + (tall[:, left + 1] - tall[:, left]) * part


@cache
def _between(length: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `side` positions the pixel of `length` before it, and how far it is from there to the next."""
    at = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    low = np.minimum(at.astype(np.int64), length - 2)
    return low, at - low
