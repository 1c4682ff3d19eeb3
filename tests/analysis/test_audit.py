"""The audit of a report: each line passed, failed or unknown on made-up runs whose answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import audit
from analysis.options import Options
from analysis.report import _floors
from tests.made_up_runs import exactly, read, run, write_chain

FLAT = np.exp(-np.arange(40) / 4).tolist()  # the last fifth of it has 0.04% of the fall
FALLING = np.linspace(2, 1, 40).tolist()  # a quarter of the fall between the last two fifths


def history(losses: list[float], window: int = 2, **own: int) -> dict[str, Any]:
    """own: steps of other phases."""
    others = {phase: {"window": 1, "losses": {"loss": [1.0] * steps}} for phase, steps in own.items()}
    return {"task": {"window": window, "losses": {"cross_entropy": losses}}} | others


def good(runs: Path, name: str = "sweep", dataset: str = "digits", **of: Any) -> None:
    """Two methods with five seeds, a difference with a deviation of 0.5 and everything recorded."""
    init = of.pop("init", {"mal": "from_f", "mal_init_random": "from_f", "random": "scratch"})
    pool_classes, losses = of.pop("pool_classes", [300, 30]), of.pop("losses", {})
    signals = of.pop("signals", {})
    noise = exactly(2.0, of.pop("std", 0.5), 5)
    for method in init:
        for seed in range(5):
            value = 70.0 + seed + (noise[seed] if method == "mal" else 0)
            metrics = {"floor": {"svm": 65.0}, "pool_classes": pool_classes, "signals": signals}
            config = {"task": {"epochs": 5, "init": init[method]}}
            told = history(*losses.get(method, (FLAT,)))
            more: dict[str, Any] = {"name": name, "dataset": dataset, "metrics": metrics, "history": told}
            write_chain(runs, method, seed, [value, value + 5], config=config, classes=2, **more, **of)


def lines(runs: Path, *names: str, **options: Any) -> dict[str, audit.Line]:
    loaded, panels = read(runs, *names)
    found = audit.audit(loaded, panels, _floors(loaded, panels), Options(runs=runs, **options))
    return {line.check: line for line in found}


def tuned(runs: Path, **trials: int) -> None:
    for method, count in trials.items():
        for number in range(count):
            write_chain(runs, f"{method}_t{number:02}", 100, [50], name="sweep-tuning")


def test_good_runs_pass_every_line(tmp_path: Path) -> None:
    good(tmp_path)
    good(tmp_path, "other", "fashion_mnist")
    good(tmp_path, "larger", "fashion_mnist", initial=200, budget=200)
    tuned(tmp_path, mal=3, random=3)
    found = lines(tmp_path, "sweep", "other", "larger")
    assert {check: line.result for check, line in found.items()} == dict.fromkeys(found, audit.PASSED)
    assert len(found) == 11
    assert found["equal tuning"].figure == "3 trials: MAL, Random"
    assert "100 labels + 100 per round, 200 labels + 200 per round" in found["several budget regimes"].figure


def test_runs_that_tell_nothing_are_unknown(tmp_path: Path) -> None:
    write_chain(tmp_path, "mal", 0, [50])
    found = lines(tmp_path)
    assert {check for check, line in found.items() if line.result == audit.FAILED} == {"several datasets"}
    assert not [check for check, line in found.items() if line.result == audit.PASSED]


def test_a_loss_that_still_falls_and_one_that_never_fell_are_not_converged(tmp_path: Path) -> None:
    good(tmp_path, losses={"mal": (FALLING,)})
    line = lines(tmp_path)["training converged"]
    assert line.result == audit.FAILED
    assert line.figure.startswith(
        "loss still falling in 2 of 6 mean curves: the last fifth of the steps has up to 25% of"
    )
    assert line.figure.endswith("(MAL, round 0), at a loss of up to 1.09")
    good(tmp_path / "rising", losses={"random": (FALLING[::-1],)})
    assert "has up to 100% of the fall (Random" in lines(tmp_path / "rising")["training converged"].figure


@pytest.mark.parametrize(("accuracy", "result"), [(99.4, audit.PASSED), (97.0, audit.FAILED)])
def test_a_training_accuracy_is_told_where_it_is_recorded(tmp_path: Path, accuracy: float, result: str) -> None:
    good(tmp_path, signals={"train_value": accuracy})
    line = lines(tmp_path)["training converged"]
    assert line.result == result
    assert f"training accuracy from {accuracy:.1f}%" in line.figure


def test_other_steps_trials_and_starts_fail_with_their_figures(tmp_path: Path) -> None:
    good(tmp_path, losses={"random": (FLAT, 4)}, init={"mal": "from_f", "random": "scratch"})
    tuned(tmp_path, mal=4, random=1)
    found = lines(tmp_path)
    steps = found["the same training for all methods"]
    assert (steps.result, steps.figure) == (audit.FAILED, "in one round about 80 steps (MAL) to 160 (Random)")
    assert found["equal tuning"].result == audit.FAILED
    assert found["equal tuning"].figure == "1 trial: Random; 4 trials: MAL"
    start = found["the same start of the task model"]
    assert start.result == audit.FAILED
    assert start.figure.startswith("from_f: MAL; scratch: Random; mal_init_random would tell")


def test_own_networks_are_trained_for_as_many_steps(tmp_path: Path) -> None:
    check = "the same steps of other networks"
    for seed in range(2):
        write_chain(tmp_path, "mal", seed, [50, 60], history=history(FLAT, minimax=100))
        write_chain(tmp_path, "vaal", seed, [50, 60], history=history(FLAT, vaal=100))
        write_chain(tmp_path, "random", seed, [50, 60], history=history(FLAT))
    line = lines(tmp_path)[check]
    assert (line.result, line.figure) == (audit.PASSED, "about 100 steps per round, equal between methods")
    write_chain(tmp_path, "vaal", 2, [50, 60], history=history(FLAT, vaal=19))
    assert lines(tmp_path)[check].result == audit.FAILED


def test_only_methods_with_keys_of_their_own_need_trials(tmp_path: Path) -> None:
    good(tmp_path, init={"mal": "from_f", "random": "scratch", "coreset": "scratch", "coreset_f": "from_f"})
    tuned(tmp_path, mal=3, random=3)
    line = lines(tmp_path)["equal tuning"]
    assert (line.result, line.figure) == (audit.PASSED, "3 trials: MAL, Random; no keys of their own: Coreset")
    own = {"method": {"name": "vaal", "acquisition": "vaal", "beta": 1.0}}
    write_chain(tmp_path, "vaal", 0, [70, 75], config=own)
    line = lines(tmp_path)["equal tuning"]
    assert (line.result, line.figure[:14]) == (audit.FAILED, "0 trials: VAAL")


def test_other_initial_labels_fail(tmp_path: Path) -> None:
    for seed in range(4):
        write_chain(tmp_path, "mal", seed, [50, 60], initial=100 if seed else 90)
        write_chain(tmp_path, "random", seed, [50, 60])
    line = lines(tmp_path)["the same initial labels"]
    assert (line.result, line.figure) == (audit.FAILED, "1 of 4 seeds with different ones")


def test_seeds_needed_follow_from_the_deviation_and_the_difference(tmp_path: Path) -> None:
    good(tmp_path, std=2.0, init={"mal": "from_f", "random": "scratch"})
    line = lines(tmp_path)["enough seeds"]  # an effect of one deviation needs ten pairs, of two and a half four
    assert (line.result, line.figure) == (
        audit.FAILED,
        "80% power for 2 points of area needs 10 seeds (most: MAL); 5 are there",
    )
    assert lines(tmp_path, difference=5.0)["enough seeds"].result == audit.PASSED


def test_balanced_pools_and_task_models_below_the_floor_fail(tmp_path: Path) -> None:
    good(tmp_path, pool_classes=[100, 99])
    assert lines(tmp_path)["class imbalance"].result == audit.FAILED
    write_chain(tmp_path, "entropy", 0, [60, 80], metrics={"floor": {"svm": 65.0}})
    line = lines(tmp_path)["task models above simple classifiers"]
    assert (line.result, line.figure) == (
        audit.FAILED,
        "1 of 8 means below the best of them; the least is −5.0 points, Entropy at 100 labels",
    )


def test_the_report_and_its_csv_have_the_lines(tmp_path: Path) -> None:
    good(tmp_path / "runs")
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures") == 0
    table = pd.read_csv(tmp_path / "sweep" / "tables" / "audit.csv")
    assert set(table["result"]) <= {audit.PASSED, audit.FAILED, audit.UNKNOWN}
    text, page = ((tmp_path / "sweep" / name).read_text() for name in ("report.md", "report.html"))
    for line in table.itertuples():
        assert f"- **{line.result}**, {line.check}: {line.figure}" in text
        assert f'<span class="{line.result}">{line.result}</span> <strong>{line.check}</strong>' in page
    for title in (
        "Navigating the Pitfalls",
        "Towards Robust and Reproducible",
        "Deep Batch Active Learning by Diverse",
    ):
        assert title in text
