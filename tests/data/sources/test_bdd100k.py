"""BDD100K with DRN-D-22 from files in their real format: two rounds, and what the preset of Figure 4 asks for."""

import json
from pathlib import Path

import numpy as np
import pytest

from mal.chain import run_chain
from mal.config.compose import compose_sweep
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from tests.chains import write_chain
from tests.made_up_data import write_bdd100k


@pytest.mark.parametrize("loader", ["memory", "torch"])
def test_two_rounds_on_a_folder_in_the_real_format(tmp_path: Path, loader: str) -> None:
    write_bdd100k(tmp_path / "data" / "bdd100k")
    asked = ("dataset=bdd100k", "backbone=drn_d_22", "methods=[mal]", "seeds=[0]", f"data={tmp_path / 'data'}")
    small = ("dataset.train=12", "dataset.test=6", "dataset.size=40", "rounds=2", "initial=4", "budget=3")
    brief = ("minimax.epochs=0.1", "task.epochs=0.1", "minimax.batch=2", "task.batch=2", "device=cpu", "threads=1")
    sweep = compose_sweep([*asked, *small, *brief, f"loader={loader}", "keep_queries=2"])
    folder = write_chain(tmp_path / "runs", sweep.chains[0])
    run_chain(folder, None, Interrupt())
    for number in (0, 1):
        metrics = json.loads((folder / f"round-{number}" / "metrics.json").read_text())
        assert (metrics["metric"], metrics["labeled"]) == ("miou", 4 + 3 * number)
        assert 0 <= metrics["value"] <= 100
        assert sum(metrics["pool_classes"]) < 12 * 40 * 40  # the border is not counted
    with np.load(folder / "round-0" / run_folder.QUERIES) as kept:
        assert kept["images"].shape == (2, 3, 40, 40)
        assert (kept["truth"] == 255).any()


def test_figure_4_is_the_papers_protocol() -> None:
    sweep = compose_sweep(["experiment=figure4"])
    assert (sweep.name, sweep.methods) == ("figure4", ["mal", "vaal", "entropy", "random"])
    assert sweep.seeds == [0, 1, 2, 3, 4]
    for chain in sweep.chains:
        assert (chain.initial, chain.budget, chain.rounds) == (350, 350, 4)
        assert (chain.backbone["name"], chain.dataset.size, chain.dataset.classes) == ("drn_d_22", 224, 19)
        assert (chain.dataset.train, chain.dataset.test, chain.dataset.flip) == (7000, 1000, True)
        assert (chain.task.optimizer, chain.dataset.resize) == ("adam", "stretch")
