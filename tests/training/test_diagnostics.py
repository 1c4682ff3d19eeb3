"""Calibration, rank correlation and D's certainty against their definitions; and that a round records them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from mal.chain import run_chain
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.training.diagnostics import auc, calibration_error, discriminator_signals, mean_ranks, spearman
from tests.chains import chain_config, write_chain
from tests.method_settings import build, images, setting, task_model

SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]), min_size=1, max_size=20)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_is_torchmetrics(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = (3 * torch.randn(500, 4, generator=generator)).softmax(1)
    labels = torch.randint(0, 4, (500,), generator=generator)
    confidence, predicted = p.max(1)
    found = calibration_error(confidence.numpy(), (predicted == labels).numpy())
    assert found == pytest.approx(100 * multiclass_calibration_error(p, labels, 4, n_bins=15).item(), rel=1e-4)


def test_calibration_of_those_who_are_sure_is_their_error_and_bins_are_closed_above() -> None:
    assert calibration_error(np.ones(4), np.array([True, True, True, False])) == pytest.approx(25)
    assert calibration_error(np.zeros(2), np.array([True, False])) == pytest.approx(50)
    # 0.5 lies in the lower of two bins, 0.51 in the upper: apart they are worse than their mean.
    values, correct = np.array([0.5, 0.51]), np.array([True, False])
    assert calibration_error(values, correct, bins=2) == pytest.approx(100 * (0.5 + 0.51) / 2)
    assert calibration_error(values, correct, bins=1) == pytest.approx(0.5)


@given(SCORES)
def test_equal_values_share_their_ranks(values: list[float]) -> None:
    assert mean_ranks(np.array(values)).tolist() == rankdata(values).tolist()


@given(SCORES, SCORES)
def test_auc_is_how_often_a_positive_is_above(positive: list[float], negative: list[float]) -> None:
    labels = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(labels, positive + negative)
    assert auc(np.array(positive), np.array(negative)) == pytest.approx(expected)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from([0.0, 2.0, 9.0])), min_size=2, max_size=20))
def test_spearman_is_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(spearman(a, b))
    else:
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_d_is_sure_of_each_side_from_its_boundary_on() -> None:
    found = discriminator_signals(np.array([0.5, 0.9, 0.1]), np.array([0.49, 0.5, 0.2, 0.3]), boundary=0.5)
    assert found["d_labeled_above_half"] == pytest.approx(200 / 3)
    assert found["d_unlabeled_below_half"] == 75
    assert found["d_auc"] == pytest.approx((3.5 + 4 + 0) / 12)


def test_mal_says_how_sure_d_is_and_whether_it_agrees_with_c(tmp_path: Path) -> None:
    at = setting(tmp_path, "mal")
    method = build(at)
    scores = method.score(task_model(at))
    found = method.diagnostics(scores)
    with torch.no_grad():
        seen = at.minimax.discriminator(at.minimax.encoder(images(at, at.labelled))).sigmoid().numpy()
    unseen = scores["labelledness"]
    assert found["d_labeled_above_half"] == pytest.approx(100 * np.mean(seen >= 0.5))
    assert found["d_unlabeled_below_half"] == pytest.approx(100 * np.mean(unseen < 0.5))
    labels = [1] * len(seen) + [0] * len(unseen)
    assert found["d_auc"] == pytest.approx(roc_auc_score(labels, np.concatenate([seen, unseen])), abs=1e-3)
    assert found["c_entropy"] == pytest.approx(scores["entropy"].mean())
    assert found["entropy_d_spearman"] == pytest.approx(spearmanr(scores["entropy"], -unseen).statistic)


def test_a_method_says_only_what_it_knows(tmp_path: Path) -> None:
    assert build(setting(tmp_path, "random")).diagnostics({}) == {}
    assert build(setting(tmp_path, "mal_init_random")).diagnostics({}) == {}
    at = setting(tmp_path, "mal_no_discriminator")
    method = build(at)
    assert set(method.diagnostics(method.score(task_model(at)))) == {"c_entropy"}


def test_vaal_says_how_sure_its_d_is(tmp_path: Path) -> None:
    at = setting(tmp_path, "vaal", "method.width=2")
    method = build(at)
    method.fit()
    scores = method.score(task_model(at))
    found = method.diagnostics(scores)
    assert set(found) == {"d_labeled_above_half", "d_unlabeled_below_half", "d_auc"}
    assert found["d_unlabeled_below_half"] == pytest.approx(100 * np.mean(scores["labelledness"] < 0))


def test_a_round_records_its_signals(tmp_path: Path) -> None:
    for method, of_c in (("mal", True), ("random", False)):
        folder = write_chain(tmp_path, chain_config(method=method))
        run_chain(folder, None, Interrupt())
        first, last = (
            json.loads((run_folder.round_folder(folder, number) / run_folder.METRICS).read_text())["signals"]
            for number in (0, 1)
        )
        of_m = {"confidence", "calibration", "error_auc", "train_value"}
        assert of_m <= set(last)
        assert ("c_value" in last, "c_calibration" in last) == (of_c, of_c)
        assert ("d_auc" in first, "d_auc" in last) == (of_c, False), "the last round asks nothing"
        assert all(0 <= first[name] <= 100 for name in of_m)
