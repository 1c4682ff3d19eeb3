"""Scores on maps of classes: averages over the pixels, features over positions, dropout's masks over channels."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mal.data.dataset import load
from mal.methods import Setting
from mal.methods.bald import predict
from mal.methods.common import mean_over_pixels, predictive_entropy
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.process.device import prepare_device
from mal.process.interrupt import Interrupt
from mal.round import Rounds
from mal.run import folder as run_folder
from mal.run.heartbeat import Progress
from tests.method_settings import build
from tests.test_chain_maps import scenes_config


def setting_of(folder: Path, method: str, *overrides: str) -> Setting:
    """What a method sees of round 0 on 40 scenes, 8 of them labelled."""
    config = scenes_config(*overrides, method=method)
    interrupt = Interrupt()
    dataset = load(config.dataset, Path("nowhere"), 0)
    rounds = Rounds(folder, config, dataset, prepare_device(config), interrupt)
    progress = Progress(run_folder.round_folder(folder, 0), 0, interrupt)
    return rounds._open(0, rounds.ledger.state(0), run_folder.round_folder(folder, 0), progress)[0]


def task_model(setting: Setting) -> TaskModel:
    """An untrained M whose predictions are spread."""
    torch.manual_seed(1)
    dropout = float(setting.config.method.get("dropout", 0.0))
    model = TaskModel(build_backbone(setting.config.backbone, 1), 11, dropout)
    model.train()
    model.backbone(images(setting))
    model.head.convolution.weight.data *= 5
    return model.eval()


def images(setting: Setting) -> Tensor:
    return setting._scanner.augmentation.evaluate(setting._loader.load(setting.unlabelled).images)


def columns(logits: Tensor) -> Iterator[tuple[int, list[float]]]:
    """Image and class probabilities of each pixel, by plain arithmetic."""
    for b, y, x in np.ndindex(len(logits), *logits.shape[2:]):
        powers = [math.exp(v) for v in logits[b, :, y, x].double().tolist()]
        yield b, [p / sum(powers) for p in powers]


def pixel_means(logits: Tensor, score: object) -> list[float]:
    found: list[list[float]] = [[] for _ in logits]
    for b, p in columns(logits):
        found[b].append(score(p))  # type: ignore[operator]
    return [sum(values) / len(values) for values in found]


SCORES = {
    "entropy": ("entropy", lambda p: -sum(v * math.log(v) for v in p)),
    "margin": ("margin", lambda p: sorted(p)[-2] - sorted(p)[-1]),
    "least_confidence": ("doubt", lambda p: 1 - max(p)),
}


@pytest.mark.parametrize("method", SCORES)
def test_uncertainty_is_its_mean_over_the_pixels(tmp_path: Path, method: str) -> None:
    setting = setting_of(tmp_path, method)
    model, (name, score) = task_model(setting), SCORES[method]
    found = build(setting).score(model)[name]
    assert found.shape == (32,)
    with torch.no_grad():
        few = model(images(setting)[:3])
    assert found[:3] == pytest.approx(pixel_means(few, score), rel=1e-3)


def test_of_images_leaves_predictions_of_images_as_they_are() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(mean_over_pixels(lambda rows: rows.amax(dim=1), logits), logits.amax(dim=1))
    assert predictive_entropy(logits).shape == (5,)


def test_bald_is_the_mean_over_pixels_of_the_mutual_information(tmp_path: Path) -> None:
    setting = setting_of(tmp_path, "bald", "method.passes=4")
    model, method = task_model(setting), build(setting)
    masks = method.masks(model)  # type: ignore[attr-defined]
    assert masks.shape == (4, 8)
    with torch.no_grad():
        passes = torch.stack([logits.double().softmax(1) for logits in predict(model, images(setting), masks)])
    mean = passes.mean(0)
    information = -(mean * mean.log()).sum(1) + (passes * passes.log()).sum(2).mean(0)
    assert method.score(model)["bald"] == pytest.approx(information.flatten(1).mean(1).numpy(), rel=1e-3)


def test_a_pass_of_bald_is_one_of_training_with_whole_channels_dropped(tmp_path: Path) -> None:
    setting = setting_of(tmp_path, "bald")
    model, few = task_model(setting), images(setting)[:2]
    mask = torch.tensor([2.0, 0, 0, 2, 2, 0, 2, 0])
    with torch.no_grad():
        (found,) = predict(model, few, mask[None])
        expected = model.head(model.backbone(few) * mask[None, :, None, None])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", ["coreset", "typiclust", "probcover"])
def test_features_are_means_over_positions(tmp_path: Path, method: str) -> None:
    setting = setting_of(tmp_path, method)
    model = task_model(setting)
    scores = build(setting).score(model)
    with torch.no_grad():
        expected = model.backbone(images(setting)).mean(dim=(2, 3))
    if method != "coreset":
        expected = F.normalize(expected, dim=1)
    assert scores["features"] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-6)
    assert scores["centres"].shape == (8, 8)
    assert len(set(build(setting).select(scores, 8).positions.tolist())) == 8


def test_mal_scores_images_by_cs_mean_entropy_and_by_d(tmp_path: Path) -> None:
    setting = setting_of(tmp_path, "mal")
    method = build(setting)
    method.fit()
    scores = method.score(task_model(setting))
    networks = setting.minimax
    with torch.no_grad():
        features = networks.encoder(images(setting))
        logits = networks.classifier(features)
        labelledness = networks.discriminator(features).sigmoid()
    assert logits.shape == (32, 11, 48, 48)
    p = logits.softmax(1)
    assert scores["entropy"] == pytest.approx(-(p * p.log()).sum(1).mean(dim=(1, 2)).numpy(), rel=1e-3)
    assert scores["labelledness"] == pytest.approx(labelledness.numpy(), rel=1e-3)
    assert len(set(method.select(scores, 8).positions.tolist())) == 8


def test_a_method_sees_the_maps_that_were_bought_and_no_others(tmp_path: Path) -> None:
    setting = setting_of(tmp_path, "entropy")
    dataset = load(setting.config.dataset, Path("nowhere"), 0)
    everything = setting._loader.load(np.arange(40)).labels.numpy()
    assert np.array_equal(everything[setting.labelled], dataset.train.labels[setting.labelled])
    assert (everything[setting.unlabelled] == 255).all()
