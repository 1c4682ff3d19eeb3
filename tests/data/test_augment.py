"""Augmentation and normalisation of whole batches."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mal.config.compose import compose_sweep
from mal.config.schema import Dataset as Spec
from mal.data import augment
from mal.data.augment import PIECE, Augmentation, build_augmentation
from mal.data.loader import MemoryLoader
from mal.data.pixel_statistics import array_moments, image_moments, statistics
from mal.rng import generator
from tests.chains import CPU, made_up_images, plain_augmentation


@cache
def spec(*overrides: str) -> Spec:
    (config,) = compose_sweep(["methods=[random]", "seeds=1", "initial=1", "budget=1", *overrides]).chains
    return config.dataset


# ------------------------------------------------------------------------- augmentation


IMAGES = torch.from_numpy(made_up_images(64, 3, 8))


def test_training_flips_about_half_of_the_images_and_nothing_else() -> None:
    out = plain_augmentation(flip=True).train(IMAGES, (0, "task", 0)) * 255
    same = [torch.equal(a.round(), b.float()) for a, b in zip(out, IMAGES, strict=True)]
    mirrored = [torch.equal(a.round(), b.flip(-1).float()) for a, b in zip(out, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 20 <= sum(mirrored) <= 44


def test_without_flip_training_images_are_as_they_are() -> None:
    assert torch.equal(plain_augmentation().train(IMAGES, (0,)), IMAGES.float() / 255)


@pytest.mark.parametrize("changes", [{"flip": True}, {"flip": True, "pad_crop": 2}, {"flip": True, "crop": 5}])
def test_augmentation_is_a_function_of_the_step_and_evaluation_has_none(changes: dict[str, Any]) -> None:
    augmentation = plain_augmentation(**changes)
    first, again, other = (augmentation.train(IMAGES, (0, "task", t)) for t in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    size = changes.get("crop", 8)
    at = (8 - size) // 2
    centre = IMAGES[:, :, at : at + size, at : at + size].float() / 255
    assert torch.equal(augmentation.evaluate(IMAGES), centre)
    assert first.shape == centre.shape


def test_an_image_is_augmented_alike_whatever_its_neighbours_are() -> None:
    augmentation = plain_augmentation(flip=True, pad_crop=2)
    changed = IMAGES.clone()
    changed[1:] = 0
    assert torch.equal(augmentation.train(IMAGES, (1,))[0], augmentation.train(changed, (1,))[0])


@pytest.mark.parametrize(("crop", "pad"), [(None, 2), (5, 0), (6, 3), (8, 0)])
def test_crops_are_windows_of_the_padded_image_and_reach_every_corner(crop: int | None, pad: int) -> None:
    size = crop or 8
    out = (plain_augmentation(crop=crop, pad_crop=pad).train(IMAGES, (2,)) * 255).round()
    padded = F.pad(IMAGES, (pad,) * 4).float()
    room = 8 + 2 * pad - size + 1
    corners = set()
    for image, whole in zip(out, padded, strict=True):
        places = [
            (y, x) for y in range(room) for x in range(room) if torch.equal(image, whole[:, y : y + size, x : x + size])
        ]
        assert len(places) >= 1
        corners.add(places[0])
    assert {y for y, _ in corners} == set(range(room))
    assert {x for _, x in corners} == set(range(room))


def statistics_of(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return statistics(array_moments(images), images[:, 0].size)


def test_moments_are_whole_numbers_and_those_of_a_set_are_the_sum_of_its_images() -> None:
    images = made_up_images(7, 3, 32)
    whole = images.astype(object)  # Python's integers
    sums = np.stack([whole.sum(axis=(0, 2, 3)), (whole**2).sum(axis=(0, 2, 3))], axis=1)
    assert np.array_equal(array_moments(images), sums.astype(np.int64))
    assert np.array_equal(sum(image_moments(image) for image in images), sums.astype(np.int64))


def test_normalised_pools_have_mean_0_and_deviation_1_by_channel() -> None:
    images = made_up_images(50, 3, 32)
    images[:, 1] //= 3
    pool = np.arange(0, 50, 2)
    settings = spec("dataset=cifar100", "dataset.flip=false")
    augmentation = build_augmentation(settings, *statistics_of(images[pool]), CPU.torch)
    out = augmentation.evaluate(torch.from_numpy(images[pool]))
    assert out.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (out.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert out.dtype == torch.float32
    mean, std = statistics_of(images)
    assert mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)), rel=1e-12)
    assert std == pytest.approx((images / 255).std(axis=(0, 2, 3)), rel=1e-12)


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    augmentation: Augmentation = build_augmentation(
        spec("dataset=digits"), *statistics_of(np.full((4, 1, 8, 8), 7, np.uint8)), CPU.torch
    )
    assert torch.isfinite(augmentation.evaluate(torch.full((1, 1, 8, 8), 7, dtype=torch.uint8))).all()


def test_augmenting_leaves_the_pool_as_it_was() -> None:
    images = made_up_images(10)
    loader = MemoryLoader(images, np.zeros(10, dtype=np.int64), CPU.torch)
    before = images.copy()
    plain_augmentation(flip=True, pad_crop=1).train(loader.load(np.arange(10)).images, (0,))
    plain_augmentation().evaluate(loader.load(np.arange(10)).images)
    assert np.array_equal(images, before)
    assert np.array_equal(loader.load(np.arange(10)).images.numpy(), before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "pad_crop"), [(3, 0), (3, 4), (1, 2)])
def test_large_images_on_a_cpu_are_those_of_the_plain_operations(layout: Any, channels: int, pad_crop: int) -> None:
    images = torch.from_numpy(made_up_images(9, channels, 200)).to(memory_format=layout)
    mean, std = torch.rand(1, channels, 1, 1), torch.rand(1, channels, 1, 1) + 0.1
    augmentation = plain_augmentation(flip=True, crop=176, pad_crop=pad_crop, mean=mean, std=std)
    assert images.numel() > PIECE
    found = augmentation.train(images, ("key",))
    random = generator("key", "augment")
    flips, offsets = random.random(9) < 0.5, random.random((2, 9))
    padded = torch.nn.functional.pad(images, (pad_crop,) * 4)
    room = padded.shape[-1] - 176 + 1
    cut = augment._gather(padded, (offsets * room).astype(np.int64), 176)
    moved = torch.stack([image.flip(-1) if flip else image for image, flip in zip(cut, flips, strict=True)])
    assert 0 < flips.sum() < 9
    assert torch.equal(found, (moved.float() / 255 - mean) / std)
    assert found.is_contiguous(memory_format=torch.channels_last)
    centre = augmentation.evaluate(images)
    assert torch.equal(centre, (images[..., 12:188, 12:188].float() / 255 - mean) / std)


# ------------------------------------------------------------------------- maps of classes


@pytest.mark.parametrize("changes", [{}, {"flip": True}, {"flip": True, "pad_crop": 2}, {"flip": True, "crop": 5}])
def test_maps_move_as_their_images_and_padding_is_ignored(changes: dict[str, Any]) -> None:
    augmentation = plain_augmentation(**changes)
    images = made_up_images(64, 1, 8, seed=3) // 2 + 1  # from 1 to 128: neither padding nor ignored
    maps = torch.from_numpy(images[:, 0])
    for key in ((0, "task", 4), (1, "task", 5)):
        moved = (augmentation.train(torch.from_numpy(images), key)[:, 0] * 255).round().to(torch.uint8)
        expected = torch.where(moved == 0, 255, moved)
        assert torch.equal(augmentation.train_maps(maps, key), expected)
        part = augmentation.train_maps(maps[16:32], key, 64, 16)  # a process's share moves as in the whole batch
        assert torch.equal(part, expected[16:32])
    assert torch.equal(augmentation.centre(maps), (augmentation.evaluate(torch.from_numpy(images))[:, 0] * 255).round())
    assert ("pad_crop" in changes) == bool((expected == 255).any())
