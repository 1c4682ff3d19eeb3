"""BALD and what is built on it: 25 passes of the last layer, one of the backbone, the result of 25 full passes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mal.acquisition import top_b
from mal.task import train_task_model
from tests.method_settings import build, chain, images, setting, task_model


class Fixed(nn.Module):
    """Dropout with a given mask."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, features):
        return features * self.mask


def mutual_information(p_SNK):
    """H of the mean less the mean H, plainly, in float64."""
    p = p_SNK.astype(np.float64)

    def entropy(q):
        return -(q * np.log(np.where(q > 0, q, 1))).sum(axis=-1)

    return entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)


def full_passes(model, pictures, masks):
    """Probabilities (S, N, K), each pass through the whole network in evaluation mode."""
    naive = copy.deepcopy(model).eval()
    passes = []
    for mask in masks:
        naive.dropout = Fixed(mask)
        with torch.no_grad():
            passes.append(naive(pictures).softmax(dim=1).numpy())
    return np.stack(passes)


def test_published_settings():
    assert chain("bald").method["passes"] == 25
    assert 0 < chain("bald").method["dropout"] < 1
    for other in ("mal", "entropy", "coreset", "badge", "ensemble", "vaal", "random"):
        assert "dropout" not in chain(other).method


def test_one_pass_of_the_backbone_gives_what_25_full_passes_give(tmp_path):
    at = setting(tmp_path, "bald")
    method, model = build(at), task_model(at)
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    scores = method.score(model)["bald"]
    batches = -(-len(at.unlabelled) // at._scanner.batch)
    assert len(calls) == batches
    expected = mutual_information(full_passes(model, images(at, at.unlabelled), method.masks(model)))
    assert expected.max() > 0.1
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert set(method.select({"bald": scores}, 30).positions) == set(top_b(expected, 30))


def test_masks_are_those_of_dropout(tmp_path):
    at = setting(tmp_path, "bald", "method.passes=400", "method.dropout=0.3")
    method, model = build(at), task_model(at)
    masks = method.masks(model).numpy()
    assert masks.shape == (400, model.head.in_features)
    assert set(np.unique(masks)) == {0, np.float32(1) / np.float32(0.7)}
    assert np.mean(masks == 0) == pytest.approx(0.3, abs=0.01)
    assert len(np.unique(masks, axis=0)) > 100
    # torch's own dropout, a mask for each image and pass, agrees as far as 400 passes tell.
    pictures = images(at, at.unlabelled[:200])
    torch.manual_seed(0)
    model.dropout.train()
    with torch.no_grad():
        own = np.stack([model(pictures).softmax(dim=1).numpy() for _ in range(400)])
    np.testing.assert_allclose(method.score(model)["bald"][:200], mutual_information(own), atol=0.15)


def test_the_pool_leaves_the_network_as_it_was(tmp_path):
    at = setting(tmp_path, "bald")
    method, model = build(at), task_model(at)
    model.train()
    before = copy.deepcopy(model.state_dict())
    first = method.score(model)["bald"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    at._scanner.batch = 100
    np.testing.assert_allclose(method.score(model)["bald"], first, atol=1e-5)


@pytest.mark.parametrize(("name", "share"), [("bald", 0.5), ("entropy", 0.0)])
def test_the_task_model_is_trained_with_the_methods_dropout(tmp_path, name, share):
    at = setting(tmp_path, name)
    model = train_task_model(at.config, at._trainer, at.labelled, at.unlabelled, None, None)
    assert model.dropout.p == share
    assert list(model.head.state_dict()) == ["weight", "bias"]
    assert not list(model.dropout.parameters())


def test_power_bald_is_a_draw_that_becomes_the_top(tmp_path):
    at = setting(tmp_path / "a", "power_bald", "method.beta=1")
    scores = build(at).score(task_model(at))
    drawn = build(at).select(scores, 30).positions
    assert np.array_equal(drawn, build(at).select(scores, 30).positions)
    top = top_b(scores["bald"], 30)
    assert set(drawn) != set(top)
    near = setting(tmp_path / "b", "power_bald", "method.beta=100000000")
    assert np.array_equal(build(near).select(scores, 30).positions, top)


def test_batchbald_looks_at_the_highest_bald_and_fills_up_by_it(tmp_path):
    at = setting(tmp_path, "batchbald", "method.passes=10", "method.candidates=20")
    method, model = build(at), task_model(at)
    method.fit()
    scores = method.score(model)
    assert np.array_equal(scores["candidates"], np.sort(top_b(scores["bald"], 20)))
    pictures = images(at, at.unlabelled[scores["candidates"]])
    expected = full_passes(model, pictures, method.masks(model)).transpose(1, 0, 2)
    np.testing.assert_allclose(scores["probabilities"], expected, atol=2e-5)
    picks = method.select(scores, 30).positions
    assert len(np.unique(picks)) == 30
    assert set(picks[:20]) == set(scores["candidates"])
    assert picks[0] == top_b(scores["bald"], 1)[0]
    assert set(picks) == set(top_b(scores["bald"], 30))
    few = method.select(scores, 5).positions
    assert len(np.unique(few)) == 5
    assert set(few) <= set(scores["candidates"])


def test_batchbald_refuses_what_does_not_fit_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("mal.methods.common.available_memory", lambda: 2**20)
    with pytest.raises(ValueError, match="power_bald"):
        build(setting(tmp_path, "batchbald")).fit()
