"""Chains on maps of classes: what they leave, interrupted and resumed, what they keep for the report, two processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.chain import run_chain
from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.data.dataset import load
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.run.heartbeat import read_progress
from tests.chains import StopsAt, chain_config, outcome, write_chain
from tests.process.test_distributed import run_chain as run_as_job
from tests.process.test_distributed import together

SCENES = (
    *("dataset=digit_scenes", "dataset.train=40", "dataset.test=10", "backbone.width=2", "backbone.discriminator=4"),
    *("rounds=2", "initial=8", "budget=8", "minimax.batch=8", "minimax.epochs=2", "task.batch=8", "task.epochs=2"),
    *("device=cpu", "threads=1"),
)


def scenes_config(*overrides: str, method: str = "mal") -> Chain:
    return compose_sweep([*SCENES, f"methods=[{method}]", "seeds=[0]", *overrides]).chains[0]


def finished(runs: Path, config: Chain) -> Path:
    folder = write_chain(runs, config)
    run_chain(folder, None, Interrupt())
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("undisturbed"), scenes_config("keep_queries=3", "keep_features=true"))


def metrics(folder: Path, number: int) -> Any:
    return json.loads((folder / f"round-{number}" / "metrics.json").read_text())


def test_metrics_are_mean_iou_and_count_pixels(undisturbed: Path) -> None:
    config = scenes_config()
    dataset = load(config.dataset, Path("nowhere"), 0)
    counts = np.bincount(dataset.train.labels[dataset.pool].ravel(), minlength=11)
    for number in (0, 1):
        found = metrics(undisturbed, number)
        assert (found["metric"], found["classes"]) == ("miou", 11)
        assert (found["labeled"], found["pool"]) == (8 * (number + 1), 40)
        assert found["value"] == pytest.approx(np.mean([v for v in found["per_class"] if v is not None]))
        assert found["pool_classes"] == counts.tolist()
        assert sum(found["pool_classes"]) == 40 * 48 * 48
        assert {"confidence", "calibration", "c_value", "c_calibration"} <= found["signals"].keys()
        assert 0 < found["signals"]["confidence"] < 100
    query = run_folder.read_round(undisturbed / "round-0").query
    assert query is not None
    expected = np.bincount(dataset.train.labels[query].ravel(), minlength=11)
    assert metrics(undisturbed, 0)["query_classes"] == expected.tolist()


def test_interrupted_wherever_it_looks_it_ends_as_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    folder = write_chain(tmp_path, scenes_config())
    phases, attempts = set(), 0
    while run_folder.committed_rounds(folder) < 2:
        attempts += 1
        try:
            run_chain(folder, None, StopsAt(4 + attempts % 9))
        except Interrupted:
            beat = read_progress(run_folder.round_folder(folder, run_folder.committed_rounds(folder)))
            phases.add(beat["phase"] if beat else "between rounds")
        assert attempts < 60
    assert attempts > 3
    assert {"minimax", "task"} <= phases
    assert outcome(folder) == outcome(undisturbed)


@pytest.mark.parametrize("method", ["vaal_small", "bald", "coreset", "entropy", "margin"])
def test_other_methods_run_on_maps_and_start_alike(tmp_path: Path, undisturbed: Path, method: str) -> None:
    brief = ("minimax.epochs=0.2", "task.epochs=0.4", *(("method.width=2",) if method == "vaal_small" else ()))
    found = outcome(finished(tmp_path, scenes_config(*brief, method=method)))
    assert found["round-0"]["labeled"] == outcome(undisturbed)["round-0"]["labeled"]
    assert len(np.frombuffer(found["round-1"]["labeled"])) > len(np.frombuffer(found["round-0"]["labeled"]))


def test_two_processes_compute_what_one_does(tmp_path: Path, undisturbed: Path) -> None:
    # A padded crop makes the shares' numbers of counted pixels unequal, so the loss is weighted by them.
    assert scenes_config().dataset.pad_crop > 0
    folder = write_chain(tmp_path, scenes_config())
    assert together(2, run_as_job, folder) == [0, 0]
    for number in (0, 1):
        one, two = (json.loads((f / f"round-{number}" / "history.json").read_text()) for f in (undisturbed, folder))
        for phase in ("minimax", "task"):
            for loss, curve in one[phase]["losses"].items():
                close = pytest.approx(curve, rel=0.02 if number == 0 else 0.2)
                assert two[phase]["losses"][loss] == close, (phase, loss)


def test_kept_queries_are_images_truth_prediction_and_entropy(undisturbed: Path) -> None:
    config = scenes_config()
    dataset = load(config.dataset, Path("nowhere"), 0)
    query = run_folder.read_round(undisturbed / "round-0").query
    assert query is not None
    with np.load(undisturbed / "round-0" / run_folder.QUERIES, allow_pickle=False) as kept:
        assert np.array_equal(kept["indices"], query[:3])
        assert np.array_equal(kept["images"], dataset.train.images[query[:3]])
        assert np.array_equal(kept["truth"], dataset.train.labels[query[:3]])
        assert (kept["predicted"].shape, kept["predicted"].dtype) == ((3, 48, 48), np.uint8)
        assert kept["predicted"].max() < 11
        assert (kept["entropy"].shape, kept["entropy"].dtype) == ((3, 48, 48), np.float16)
        assert 0 <= kept["entropy"].min() <= kept["entropy"].max() <= np.log(11) + 1e-2
    assert not (undisturbed / "round-1" / run_folder.QUERIES).exists()
    with np.load(undisturbed / "round-0" / run_folder.FEATURES, allow_pickle=False) as kept:
        assert kept["features"].shape == (40, 8)


def test_keeping_samples_changes_no_result_and_is_no_other_configuration(undisturbed: Path) -> None:
    assert scenes_config("keep_queries=3").fingerprint() == scenes_config().fingerprint()
    assert chain_config().keep_queries == 0
