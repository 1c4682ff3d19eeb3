"""What a round keeps for the report besides its metrics, in classification; of maps: test_chain_maps.py."""

from pathlib import Path

import numpy as np

from mal.chain import run_chain
from mal.data.dataset import load
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from tests.chains import chain_config, outcome, write_chain


def test_kept_queries_are_the_first_in_order_of_choice_and_change_nothing(tmp_path: Path) -> None:
    kept_by, without = (
        write_chain(tmp_path / name, chain_config(*keys, method="entropy"))
        for name, keys in (("kept", ("keep_queries=5",)), ("without", ()))
    )
    for folder in (kept_by, without):
        run_chain(folder, None, Interrupt())
    assert outcome(kept_by) == outcome(without)
    images = load(chain_config().dataset, Path("nowhere"), 0).train
    query = run_folder.read_round(kept_by / "round-0").query
    assert query is not None
    with np.load(kept_by / "round-0" / run_folder.QUERIES, allow_pickle=False) as kept:
        assert np.array_equal(kept["indices"], query[:5])
        assert np.array_equal(kept["images"], images.images[query[:5]])
        assert np.array_equal(kept["truth"], images.labels[query[:5]])
        assert kept["predicted"].shape == (5,)
        assert np.all(np.diff(kept["entropy"]) <= 0)  # as entropy sampling chose them
    assert not (kept_by / "round-1" / run_folder.QUERIES).exists()
    assert not (without / "round-0" / run_folder.QUERIES).exists()
