"""Two processes with gloo share a step, and say what it cost."""

import contextlib
import os
import shutil

import pytest

from benchmarks.scaling import nodes, run


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_two_processes_share_a_step_and_tell_what_went_into_exchanges(apart: bool) -> None:
    if apart and (shutil.which("ip") is None or os.geteuid() != 0):
        pytest.skip("network namespaces need root and iproute2")
    with nodes(2) if apart else contextlib.nullcontext([]) as places:
        found = run(2, batch=4, steps=1, places=places)
    assert len(found) == 2
    for each in found:
        assert 0 < each["exchanges"][0] < each["step"][0]
        assert 0 < each["gradients"][1] < each["step"][1]
