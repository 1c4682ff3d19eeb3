"""Two processes with gloo share a step, and say what it cost."""

import pytest

from benchmarks.scaling import run


@pytest.mark.slow
def test_two_processes_share_a_step_and_tell_what_went_into_exchanges() -> None:
    found = run(2, batch=4, steps=1)
    assert len(found) == 2
    for each in found:
        assert 0 < each["exchanges"][0] < each["step"][0]
        assert 0 < each["gradients"][1] < each["step"][1]
