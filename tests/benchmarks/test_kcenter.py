"""The check of k-center's picks at sizes where nobody computes them plainly: right for the greedy ones and no other."""

import numpy as np

from benchmarks.kcenter import features, is_greedy
from mal.acquisition import kcenter_greedy


def test_greedy_picks_pass_and_others_do_not() -> None:
    points = features(3000, 16)
    labelled, candidates = points[:100], points[100:]
    picks = kcenter_greedy(candidates, labelled, 200)
    assert is_greedy(candidates, labelled, picks)
    assert not is_greedy(candidates, labelled, np.roll(picks, 1))
    assert not is_greedy(candidates, labelled, np.arange(200))
    assert not is_greedy(candidates, labelled, picks[50:])
