"""k-center greedy on M's features: the labelled set as centres, and a refusal before anything is computed."""

import numpy as np
import pytest
import torch

from mal.methods.common import feature_size
from tests.method_settings import build, chain, images, setting, task_model


def plain_greedy(features, centres, budget):
    """The definition, in float64: the farthest from its nearest centre, ties by lowest position."""
    features, centres = features.astype(np.float64), centres.astype(np.float64)
    picks = []
    for _ in range(budget):
        distances = ((features[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1)
        distances[picks] = -1
        picks.append(int(distances.argmax()))
        centres = np.concatenate([centres, features[picks[-1:]]])
    return picks


def test_centres_are_the_labelled_set(tmp_path):
    at = setting(tmp_path, "coreset")
    method, model = build(at), task_model(at)
    method.fit()
    scores = method.score(model)
    assert scores["features"].dtype == scores["centres"].dtype == np.float32
    for name, indices in (("features", at.unlabelled), ("centres", at.labelled)):
        with torch.no_grad():
            expected = model.backbone(images(at, indices)).numpy()
        np.testing.assert_allclose(scores[name], expected, atol=1e-5)
    picks = method.select(scores, 20).positions
    assert picks.tolist() == plain_greedy(scores["features"], scores["centres"], 20)
    assert picks.tolist() != plain_greedy(scores["features"], scores["centres"][:1], 20)


def test_features_see_no_augmentation(tmp_path):
    at = setting(tmp_path, "coreset", "dataset.flip=true", "dataset.pad_crop=1")
    model = task_model(at)
    first, second = build(at).score(model), build(at).score(model)
    assert np.array_equal(first["features"], second["features"])


@pytest.mark.parametrize("name", ["coreset", "badge", "typiclust", "probcover"])
def test_refused_in_advance_where_the_features_do_not_fit(tmp_path, monkeypatch, name):
    monkeypatch.setattr("mal.methods.common.available_memory", lambda: 2**20)
    with pytest.raises(ValueError, match=r"GiB.*or use"):
        build(setting(tmp_path / "a", name)).fit()
    build(setting(tmp_path / "b", name, "rounds=1")).fit()  # the last round asks for no query


@pytest.mark.parametrize(("backbone", "size"), [("small_cnn", 16), ("resnet18", 512), ("vgg16_bn", 25088)])
def test_feature_size_is_known_without_the_network(backbone, size):
    overrides = [f"backbone={backbone}"] + (["backbone.width=4"] if backbone == "small_cnn" else [])
    from mal.config.compose import compose_sweep

    config = compose_sweep(["dataset=cifar100", "methods=[coreset]", *overrides]).chains[0]
    assert feature_size(config) == size
    assert feature_size(chain("coreset")) == 16
