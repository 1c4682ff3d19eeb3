"""Pools: the fixed split of digits, imbalance, hashes; and the loaders' streams of indices."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mal.config.compose import compose_sweep
from mal.config.schema import Dataset as Spec
from mal.data.dataset import choose_pool, load, thin
from mal.data.image_set import Arrays, hash_arrays
from mal.data.loader import HIDDEN, MemoryLoader, TrainingStream, in_order, visible_labels
from mal.data.sources.registry import stratified
from tests.chains import CPU, chain_config, made_up_images


@cache
def spec(*overrides: str) -> Spec:
    (config,) = compose_sweep(["methods=[random]", "seeds=1", "initial=1", "budget=1", *overrides]).chains
    return config.dataset


# ------------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits() -> Any:
    return load(chain_config().dataset, Path("nowhere"), seed=0)


def test_digits_are_split_once_for_all_seeds(digits: Any) -> None:
    again = load(chain_config().dataset, Path("nowhere"), seed=5)
    assert digits.digest == again.digest
    assert np.array_equal(digits.test.images, again.test.images)
    assert (len(digits.train.images), len(digits.test.labels), len(digits.pool)) == (1347, 450, 1347)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.images.shape[1:] == (1, 8, 8)
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)


def test_digits_test_set_is_stratified_and_disjoint(digits: Any) -> None:
    from sklearn.datasets import load_digits

    everything = np.bincount(load_digits().target)
    train, test = (np.bincount(labels) for labels in (digits.oracle.label(digits.pool), digits.test.labels))
    assert np.array_equal(train + test, everything)
    assert np.abs(test - everything * 450 / 1797).max() <= 1
    together = sorted(image.tobytes() for image in np.concatenate([digits.train.images, digits.test.images]))
    whole = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert together == sorted(image.tobytes() for image in whole)


def test_digits_labels_belong_to_their_images(digits: Any) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    label_of = {image.tobytes(): label for image, label in zip(whole, bunch.target, strict=True)}
    assert [label_of[i.tobytes()] for i in digits.train.images] == digits.oracle.label(digits.pool).tolist()
    assert [label_of[i.tobytes()] for i in digits.test.images] == digits.test.labels.tolist()


# ------------------------------------------------------------------------- pools and imbalance


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.data())
def test_stratified_takes_of_each_class_nearly_its_share(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    array = np.array(labels)
    chosen = stratified(array, count, np.random.default_rng(0))
    assert len(chosen) == count == len(np.unique(chosen))
    assert np.array_equal(chosen, np.sort(chosen))
    share = np.bincount(array, minlength=5) * count / len(labels)
    assert np.abs(np.bincount(array[chosen], minlength=5) - share).max() < 2


def cifar_imbalanced() -> Spec:
    return spec("dataset=cifar100_imbalanced")


def test_cifar100_imbalanced_is_the_papers() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
    pool = choose_pool(cifar_imbalanced(), labels, seed=0)
    sizes, classes = np.unique(np.bincount(labels[pool]), return_counts=True)
    assert sizes.tolist() == [5, 16, 50, 158, 500]
    assert classes.tolist() == [20] * 5
    assert len(pool) == 14_580
    assert np.all(np.diff(pool) > 0)


def test_each_seed_has_its_own_imbalance_and_always_the_same() -> None:
    labels = np.repeat(np.arange(100), 500)
    pools = [choose_pool(cifar_imbalanced(), labels, seed) for seed in (0, 1, 0)]
    counts = [np.bincount(labels[pool]) for pool in pools]
    assert np.array_equal(pools[0], pools[2])
    assert (counts[0] != counts[1]).sum() > 50


def test_thinned_classes_keep_the_minimum_or_all_they_have() -> None:
    labels = np.array([0] * 100 + [1] * 100 + [2] * 3 + [3] * 100)
    kept = thin(np.arange(303), labels, [0.001, 0.5], minimum=5, classes=4, random=np.random.default_rng(0))
    sizes = np.bincount(labels[kept], minlength=4)
    assert sizes[2] in (2, 3)
    assert sorted(set(sizes[[0, 1, 3]])) == [5, 50]
    assert len(np.unique(kept)) == len(kept)


def test_ratios_that_do_not_divide_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset\.imbalance: 3 ratios do not divide 10 classes"):
        thin(np.arange(10), np.arange(10), [0.1, 0.5, 1.0], 1, 10, np.random.default_rng(0))


def test_a_smaller_pool_is_stratified_and_the_same_for_all_seeds(digits: Any) -> None:
    small = spec("dataset=digits", "dataset.pool=200")
    labels = digits.oracle.label(digits.pool)
    pools = [choose_pool(small, labels, seed) for seed in (0, 1)]
    assert np.array_equal(*pools)
    assert len(pools[0]) == 200
    assert np.ptp(np.bincount(labels[pools[0]])) <= 2


def test_an_imbalanced_variant_leaves_the_test_set_alone(digits: Any) -> None:
    thinned = load(spec("dataset=digits_imbalanced"), Path("nowhere"), seed=3)
    assert np.array_equal(thinned.test.labels, digits.test.labels)
    assert len(thinned.pool) < 600
    assert thinned.digest != digits.digest


def test_the_pools_hash_sees_every_byte() -> None:
    split = Arrays(made_up_images(6), np.arange(6))
    pool = np.arange(5)

    def pool_hash(split: Arrays, pool: np.ndarray) -> str:
        return hash_arrays((pool, *split.identity()))

    reference = pool_hash(split, pool)
    other_image, other_label = split.images.copy(), split.labels.copy()
    other_image[5, 0, 7, 7] ^= 1
    other_label[2] = 0
    changed = [
        pool_hash(Arrays(other_image, split.labels), pool),
        pool_hash(Arrays(split.images, other_label), pool),
        pool_hash(split, np.arange(6)),
    ]
    assert len({reference, *changed}) == 4
    assert pool_hash(Arrays(split.images.copy(), split.labels.copy()), pool.copy()) == reference


# ------------------------------------------------------------------------- streams of indices


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 30))
def test_a_step_is_a_pure_function_of_t(count: int, batch: int, t: int) -> None:
    indices = np.arange(count) * 7 + 3
    in_turn = TrainingStream(indices, batch, (0, 1, "task"))
    for step in range(t):
        in_turn.step(step)
    assert np.array_equal(in_turn.step(t), TrainingStream(indices, batch, (0, 1, "task")).step(t))


@given(st.integers(1, 40), st.integers(1, 60))
def test_every_index_comes_once_an_epoch_and_every_batch_is_full(count: int, batch: int) -> None:
    indices = np.arange(count) * 7 + 3
    stream = TrainingStream(indices, batch, (0, 1, "task"))
    size = min(batch, count)
    steps = [stream.step(t) for t in range(4 * count // size + 1)]
    assert {len(step) for step in steps} == {size}
    flat = np.concatenate(steps)
    for epoch in range(4):
        assert np.array_equal(np.sort(flat[epoch * count : (epoch + 1) * count]), indices)


def test_epochs_and_purposes_are_shuffled_differently() -> None:
    indices = np.arange(100)
    epochs = [TrainingStream(indices, 100, ("a",)).step(t).tolist() for t in range(3)]
    epochs.append(TrainingStream(indices, 100, ("b",)).step(0).tolist())
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(epoch != sorted(epoch) for epoch in epochs)


@given(st.lists(st.integers(0, 10**6), max_size=50, unique=True), st.integers(1, 60))
def test_in_order_gives_each_index_exactly_once_in_order(indices: list[int], batch: int) -> None:
    parts = list(in_order(np.array(indices, dtype=np.int64), batch))
    assert [i for part in parts for i in part.tolist()] == indices
    assert all(len(part) == batch for part in parts[:-1])
    assert all(1 <= len(part) <= batch for part in parts)


def test_a_loader_gives_images_labels_and_absolute_indices_and_hides_the_other_labels() -> None:
    images = made_up_images(20)
    labelled = np.array([3, 8, 15])
    loader = MemoryLoader(images, visible_labels(20, labelled, np.array([1, 2, 0])), CPU.torch)
    batch = loader.load(np.array([8, 0, 15, 8]))
    assert np.array_equal(batch.images.numpy(), images[[8, 0, 15, 8]])
    assert batch.labels.tolist() == [2, HIDDEN, 0, 2]
    assert batch.indices.tolist() == [8, 0, 15, 8]
    everything = torch.cat([b.labels for b in loader.batches(in_order(np.arange(20), 7))])
    assert np.flatnonzero(everything != HIDDEN).tolist() == labelled.tolist()
