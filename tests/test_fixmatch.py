"""FixMatch: strong images by the step alone, only sure predictions, the average of weights, and any interruption."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mal.config.schema import Task
from mal.data.strong import strongly
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.task import FixMatch
from mal.training.objective import Inputs
from sweeps.launch import main
from tests.chains import CPU, SHORT, assert_same_where_interrupted, chain_config

KEY = (0, 0, "task", "unlabelled_0", 5)


def images(count: int, channels: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, channels, 16, 16), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_strong_images_depend_on_the_step_and_the_place_alone(channels: int) -> None:
    whole = strongly(images(8, channels), KEY, 8, 0)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    parts = [strongly(images(8, channels)[first : first + 4], KEY, 8, first) for first in (0, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(whole, strongly(images(8, channels), (*KEY[:-1], 6), 8, 0))
    assert (whole != images(8, channels)).float().mean() > 0.3


def objective(**changes: float) -> FixMatch:
    torch.manual_seed(0)
    model = TaskModel(build_backbone({"name": "small_cnn", "width": 4}, 1), 10)
    return FixMatch(model, Task(**(vars(chain_config().task) | {"semi": "fixmatch", "semi_ratio": 2} | changes)), CPU)


def inputs() -> dict[str, Inputs]:
    random = torch.Generator().manual_seed(0)
    labelled = Inputs(torch.randn(4, 1, 8, 8, generator=random), torch.arange(4))
    parts = [torch.randn(2, 4, 1, 8, 8, generator=random) for _ in range(2)]
    hidden = torch.full((4,), -1)
    return {"labelled": labelled} | {
        f"unlabelled_{i}": Inputs(weak, hidden, strong=strong) for i, (weak, strong) in enumerate(parts)
    }


def test_only_sure_predictions_are_labels() -> None:
    unsure = objective(semi_threshold=0.999).step(inputs(), 0.0)
    assert (float(unsure["unlabelled"]), float(unsure["sure"])) == (0.0, 0.0)
    one = objective(semi_threshold=1e-6)
    model = one.model
    with torch.no_grad():
        given = inputs()
        model.train()
        batch = [
            given["labelled"].images,
            *(given[n].images for n in one.strong),
            *(given[n].strong for n in one.strong),
        ]
        logits = objective(semi_threshold=1e-6).model.train()(torch.cat(batch))
    expected = torch.nn.functional.cross_entropy(logits[12:], logits[4:12].argmax(dim=1))
    losses = one.step(inputs(), 0.0)
    assert float(losses["sure"]) == 1.0
    assert float(losses["unlabelled"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_average_follows_the_weights() -> None:
    one = objective(semi_average=0.75)
    before = one.model.head.weight.detach().clone()
    one.step(inputs(), 0.0)
    assert not torch.equal(one.model.head.weight, before)
    torch.testing.assert_close(one.average.head.weight, 0.75 * before + 0.25 * one.model.head.weight)


def test_an_interrupted_chain_is_the_uninterrupted_one(tmp_path: Path) -> None:
    config = chain_config(
        "task.semi=fixmatch", "task.batch=8", "task.epochs=0.1", "task.semi_ratio=2", method="entropy"
    )
    assert_same_where_interrupted(config, tmp_path)


REFUSED = {
    "task.semi=fixmach": "did you mean fixmatch",
    "task.semi_threshold=1": "task.semi_threshold=1.0 is out of range",
    "task.semi_ratio=0": "task.semi_ratio=0 is too small",
    "dataset=digit_scenes task.semi=fixmatch": "classes of pixels",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_input_is_refused_by_name(arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [a for a in SHORT if not a.startswith("backbone")] if "dataset" in arguments else SHORT
    assert main([*base, "seeds=1", "cluster=local", f"runs={tmp_path}", *arguments.split()]) == 2
    assert REFUSED[arguments] in capsys.readouterr().err
