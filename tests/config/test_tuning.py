"""Variants of methods, the trials of a tuning, and what is read from them."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis import tuning
from analysis.reading import load
from mal.config.compose import compose_sweep
from mal.config.tuning import draw_trials
from tests.made_up_runs import write_chain

BASE = ["dataset=digits", "seeds=[100,101]"]
GRID = "tuning={all:{task.lr:[0.1,0.2]},mal:{minimax.temperature:[0.5,1.0]}}"


def test_a_variant_is_its_method_with_other_keys_under_its_own_name() -> None:
    chains = compose_sweep(
        [*BASE, "variants={warm:{method:mal,task.lr:0.5,method.query:rank_sum}}", "methods=[warm,mal]"]
    ).chains
    warm, plain = chains[0], chains[2]
    assert (warm.method["name"], warm.method["acquisition"], warm.method["query"]) == ("warm", "mal", "rank_sum")
    assert (warm.task.lr, warm.task.init) == (0.5, plain.task.init)
    assert plain.method["name"] == "mal"
    assert plain.task.lr != 0.5


def test_the_command_line_goes_before_a_variant() -> None:
    (chain, _) = compose_sweep(
        [*BASE, "variants={warm:{method:mal,task.lr:0.5}}", "methods=[warm]", "task.lr=0.7"]
    ).chains
    assert chain.task.lr == 0.7


def test_trials_are_as_many_for_each_method_all_different_and_the_first_is_the_preset() -> None:
    sweep = compose_sweep([*BASE, "methods=[mal,random]", GRID, "tune=3"])
    assert sweep.name == "digits-tuning"
    chains = {chain.method["name"]: chain for chain in sweep.chains if chain.seed == 100}
    assert list(chains) == ["mal_t00", "mal_t01", "mal_t02", "random_t00", "random_t01", "random_t02"]
    (preset, _) = compose_sweep([*BASE, "methods=[mal]"]).chains
    assert (chains["mal_t00"].task, chains["mal_t00"].minimax) == (preset.task, preset.minimax)
    settings = [(c.task.lr, c.minimax.temperature) for name, c in chains.items() if name.startswith("mal_")]
    assert len(set(settings)) == 3
    assert all(lr in (0.1, 0.2) and t in (0.5, 1.0) for lr, t in settings[1:])
    assert {c.task.lr for name, c in chains.items() if name.startswith("random_t0")} >= {0.1, 0.2}


def test_a_trial_has_the_same_shared_settings_for_every_method_and_no_setting_comes_twice() -> None:
    space = {
        "all": {"task.lr": [1, 2, 3], "task.batch": [8, 16]},
        "mal": {"minimax.lr_f": [1, 2], "minimax.lr_c": [3, 4]},
    }
    methods = {name: {"method": name} for name in ("mal", "random", "entropy")}
    drawn = draw_trials(space, methods, 7)
    for trial in range(7):
        shared = [
            {key: drawn[f"{name}_t{trial:02d}"].get(key) for key in ("task.lr", "task.batch")} for name in methods
        ]
        assert shared[0] == shared[1] == shared[2]
    every = draw_trials(space, {"mal": {}}, 25)
    settings = {tuple(sorted(variant.items())) for variant in every.values()}
    assert len(settings) == 25  # 6 x 4 pairs, and the preset
    assert len({(v.get("minimax.lr_f"), v.get("minimax.lr_c")) for v in list(every.values())[1:5]}) == 4


def test_trials_start_from_the_presets_own_variant_of_a_method() -> None:
    drawn = draw_trials({"all": {"task.lr": [1, 2]}}, {"mal": {"method": "mal", "task.momentum": 0.5}}, 2)
    assert drawn["mal_t00"] == {"method": "mal", "task.momentum": 0.5}
    assert drawn["mal_t01"]["task.momentum"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tune=3"], "tuning"),
        (["tune=-1", GRID], "tune=-1"),
        (["tune=9", GRID, "methods=[mal]"], "tune=9: mal has 4"),
        (["tune=2", GRID, "methods=[mal]", "seeds=[3,100]"], r"seeds=\[3\]"),
        (["tune=2", "tuning={mall:{task.lr:[0.1]}}"], "tuning.mall: there is no such method; did you mean mal"),
        (["tune=2", "tuning={all:{task.lr:0.1}}"], "tuning.all"),
        (["tune=2", "tuning={all:{task.lrr:[0.1]}}"], "task.lrr"),
        (["variants={x:{task.lr:1}}", "methods=[x]"], "variants.x"),
        (["variants={x:{method:mall}}", "methods=[x]"], "variants.x"),
        (["variants={x:{method:random,method.query:entropy}}", "methods=[x]"], "method.query"),
        (["variants={x:{method:random,dataset.pad_crop:2}}", "methods=[x]"], "dataset.pad_crop of the variant x"),
        (
            ["variants={x:{method:random,cluster.time.x:2}}", "methods=[x]"],
            "cluster.time.x of the variant",
        ),
        (["tune=2", "tuning={all:{dataset.pad_crop:[1,2]}}"], "dataset.pad_crop of the variant"),
        (["variants=3"], "variants=3"),
        (["variants={x/y:{method:mal}}", "methods=[x/y]"], "x/y"),
    ],
)
def test_what_is_no_tuning_is_refused_by_its_key(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compose_sweep([*BASE, *overrides])


def write_trial(
    runs: Path, method: str, trial: int, lr: float, values: list[float], planned: int | None = None
) -> None:
    for seed in (100, 101):
        config = {"task": {"lr": lr}}
        write_chain(
            runs, f"{method}_t{trial:02d}", seed, [v + seed - 100 for v in values], config=config, planned=planned
        )


def test_the_best_finished_trial_of_each_method_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = tmp_path / "runs", tmp_path / "figures"
    write_trial(runs, "mal", 0, 0.1, [50, 60, 70])
    write_trial(runs, "mal", 1, 0.2, [50, 64, 70])
    write_trial(runs, "mal", 2, 0.3, [90, 90], planned=3)
    write_trial(runs, "random", 0, 0.1, [40, 50, 60])
    write_trial(runs, "random", 1, 0.2, [40, 49, 60])
    trials = tuning.read_trials(load(runs, ["sweep"]))
    assert [round(trial.mean, 6) for trial in trials] == [60.5, 62.5, 90.5, 50.5, 50.0]
    assert trials[0].std == pytest.approx(np.sqrt(0.5))
    assert [trial.number for trial in tuning.choose(trials).values()] == [1, 0]
    assert tuning.main([f"runs={runs}", f"out={out}", "name=sweep"]) == 0
    chosen = yaml.safe_load((out / "sweep" / "chosen.yaml").read_text())["variants"]
    assert chosen == {"mal": {"method": "mal", "task.lr": 0.2}, "random": {"method": "random"}}
    assert "mal, trial 2 is not finished" in capsys.readouterr().out


def test_a_sweep_without_trials_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chain(tmp_path, "mal", 0, [50, 60])
    assert tuning.main([f"runs={tmp_path}", "name=sweep", f"out={tmp_path / 'f'}"]) == 2
    assert "no trials" in capsys.readouterr().err
