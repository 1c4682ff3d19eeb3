"""k-center greedy against the plain algorithm in float64: the same picks in the same order."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.acquisition import kcenter, kcenter_greedy
from tests.chains import python

seeds = st.integers(0, 2**32 - 1)


def plain(features: np.ndarray, centres: np.ndarray, budget: int) -> list[int]:
    features, centres = features.astype(np.float64), centres.astype(np.float64)
    nearest = np.full(len(features), np.inf)
    for centre in centres:
        nearest = np.minimum(nearest, ((features - centre) ** 2).sum(1))
    picks: list[int] = []
    for _ in range(budget):
        picks.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, ((features - features[picks[-1]]) ** 2).sum(1))
        nearest[picks] = -1
    return picks


def problem(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, d, m = int(rng.integers(1, 150)), int(rng.integers(1, 24)), int(rng.integers(0, 30))
    if kind == "lattice":  # ties and duplicates throughout, distances exact
        points = rng.integers(-2, 3, size=(n + m, d)).astype(np.float64)
    elif kind == "clusters":  # far from the origin: float32 products alone lose the distances
        points = 100 + rng.integers(0, 3, size=(n + m, 1)) * 20 + rng.normal(size=(n + m, d)) * 1e-3
    elif kind == "rank 1":
        points = rng.normal(size=(n + m, 1)) * rng.normal(size=(1, d))
    elif kind == "equal":
        points = np.ones((n + m, d))
    else:
        points = rng.normal(size=(n + m, d)) * 10 ** rng.uniform(-6, 6)
    points = points.astype(np.float32)
    return points[:n], points[n:]


@pytest.mark.parametrize("device", ["cpu", "torch", "a first look at all", "a first look where it pays"])
@pytest.mark.parametrize("kind", ["lattice", "clusters", "rank 1", "equal", "normal"])
def test_picks_are_those_of_the_plain_algorithm(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "torch":  # what a CUDA device would run, on the CPU

        def on_torch(search: Any, leading: int) -> Any:
            return torch_products(search, "cpu")

        torch_products = kcenter._TorchProducts
        monkeypatch.setattr(kcenter, "_HostProducts", on_torch)
    if device == "a first look at all":
        monkeypatch.setattr(kcenter, "_NEAR", 1.0)

    @settings(deadline=None, max_examples=40)
    @given(seeds)
    def check(seed: int) -> None:
        features, centres = problem(seed, kind)
        rng = np.random.default_rng(seed)
        for budget in {1, len(features), int(rng.integers(1, len(features) + 1))}:
            block, pool = int(rng.integers(1, 12)), int(rng.integers(1, len(features) + 1))
            leading = int(rng.integers(1, 20)) if "look" in device else 0
            picks = kcenter_greedy(features, centres, budget, block=block, pool=pool, leading=leading)
            assert picks.dtype == np.int64
            assert picks.tolist() == plain(features, centres, budget)

    check()


def test_default_blocks_on_a_larger_pool_and_progress() -> None:
    rng = np.random.default_rng(3)
    features = np.maximum(rng.normal(size=(6000, 32)), 0).astype(np.float32)
    centres = np.maximum(rng.normal(size=(300, 32)), 0).astype(np.float32)
    seen: list[tuple[int, int]] = []
    picks = kcenter_greedy(features, centres, 400, block=64, progress=lambda *at: seen.append(at))
    assert picks.tolist() == plain(features, centres, 400)
    assert seen == sorted(seen)
    assert seen[-1] == (400, 400)


@pytest.mark.parametrize("clustered", [True, False])
def test_a_first_look_bounds_products_and_leaves_few_where_it_pays(
    clustered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    points = rng.normal(size=(20_000, 256))
    if clustered:  # 40 classes in 16 dimensions
        inputs = rng.normal(size=(40, 1, 16)) + 0.1 * rng.normal(size=(40, 500, 16))
        points = rng.permutation(np.maximum(inputs.reshape(-1, 16) @ rng.normal(size=(16, 256)), 0))
    features, centres = points[1000:].astype(np.float32), points[:1000].astype(np.float32)
    slack, left = [], []
    fold = kcenter._HostProducts.fold_near

    def look(products: Any, part: np.ndarray, leading_RL: np.ndarray, first: int, end: int, buffer: Any) -> Any:
        block, _ = products.search.centre_block(first, end)
        exact = features[part[:50]].astype(np.float64) @ block.astype(np.float64).T
        slack.append(float(np.min(leading_RL[:50] @ products.leading_block(first, end).T - exact)))
        rows = fold(products, part, leading_RL, first, end, buffer)
        left.append(len(rows) / len(part))
        return rows

    monkeypatch.setattr(kcenter._HostProducts, "fold_near", look)
    picks = kcenter_greedy(features, centres, 300, leading=64)
    assert min(slack) > -1e-6 * float((features**2).sum(1).max())
    assert np.mean(left) < 0.1 if clustered else np.mean(left) > 0.9
    looked = len(left)
    assert picks.tolist() == kcenter_greedy(features, centres, 300).tolist()
    assert len(left) == looked  # so few pairs are not looked at first


def test_half_precision_and_strided_features_are_taken_as_float32() -> None:
    features = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float16)
    assert kcenter_greedy(features, None, 9).tolist() == kcenter_greedy(features.astype(np.float32), None, 9).tolist()
    assert kcenter_greedy(features[::2, ::2], None, 5).tolist() == plain(features[::2, ::2], features[:0, ::2], 5)


def test_without_centres_the_first_pick_is_the_lowest_position() -> None:
    assert kcenter_greedy(np.array([[0.0], [5.0], [9.0]]), None, 3).tolist() == [0, 2, 1]


@pytest.mark.parametrize(("features", "centres", "message"), [
    ([[math.nan], [0.0]], None, r"features\[0\]"),
    ([[0.0], [1.0]], [[math.inf]], r"centres\[0\]"),
    ([[1e30], [1.0]], None, r"features\[0\] .* .scale"),
    ([[0.0], [1.0]], [[0.0, 1.0]], "must have the candidates' 1"),
    ([0.0, 1.0], None, "must be \\(points, dimensions\\)"),
])  # fmt: skip
def test_bad_features_are_refused(features: list[Any], centres: list[Any] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kcenter_greedy(features, centres, 1)


# How somebody may have set the precision of products, by torch's keys of each age.
PRECISIONS = [
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
]


@pytest.mark.parametrize("setting", PRECISIONS)
def test_products_are_float32_whatever_precision_is_set_and_the_setting_stays(setting: str) -> None:
    code = (
        f"import torch\n{setting}\n"
        "from mal.acquisition.kcenter import _float32_products\n"
        "keys = torch.backends.cuda.matmul\n"
        "before = keys.fp32_precision\n"
        "with _float32_products():\n"
        "    assert keys.fp32_precision == 'ieee', keys.fp32_precision\n"
        "assert keys.fp32_precision == before, (keys.fp32_precision, before)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
