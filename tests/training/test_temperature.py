"""C's temperature, fitted on labelled images that Algorithm 1 has not seen."""

from pathlib import Path

import numpy as np
import pytest

from mal.config.compose import compose_sweep
from mal.training.temperature import BOUNDS, fit_temperature
from tests.method_settings import build, setting


def test_the_temperature_of_made_up_predictions_is_found() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 5)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) > random.random((len(p), 1))).argmax(axis=1)
    for factor in (0.3, 1.0, 4.0):
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)
    assert fit_temperature(np.eye(3), np.arange(3)) == pytest.approx(BOUNDS[0], rel=0.01)


def test_c_has_the_temperature_of_what_was_held_out(tmp_path: Path) -> None:
    at = setting(tmp_path, "mal", "minimax.held_out=0.4")
    seen = {}
    trained = type(at._trainer).run

    def watched(self, phase, objective, indices, *rest, **more):  # type: ignore[no-untyped-def]
        seen[phase] = indices
        return trained(self, phase, objective, indices, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(at._trainer), "run", watched)
        build(at).fit()
    learnt = seen["minimax"]["labelled"]
    assert len(learnt) == 18
    assert set(learnt) < set(at.labelled)
    assert at.minimax.classifier.temperature != pytest.approx(0.05)


@pytest.mark.parametrize("overrides", [["minimax.held_out=0.99"], ["minimax.held_out=1"], ["minimax.average=1"]])
def test_shares_that_leave_nothing_are_refused(overrides: list[str]) -> None:
    with pytest.raises(ValueError, match=overrides[0].partition("=")[0]):
        compose_sweep(["dataset=digits", *overrides])
