"""The study: what its presets compare, what untuned methods take over, and that a stopped one ends like any other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mal.chain import run_chain
from mal.config.compose import PAPER_METHODS, compose_sweep
from mal.config.conf_folders import CONF
from mal.config.frozen import load_chain
from mal.config.schema import flat
from mal.config.tuning import draw_trials
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from sweeps import study
from tests.chains import StopsAt, outcome

PRESETS = sorted(path.stem for path in CONF.glob("experiment/study_*.yaml"))
WITH_F = "methods=[vaal,coreset,entropy,bald,vaal_f,coreset_f,entropy_f,bald_f]"
SPACES = ["study", "study_scenes"]  # presets that say what is tried
TOY = """\
# @package _global_
defaults: [{override /dataset: digits}, _self_]
name: toy
methods: [mal, mal_no_minimax, bald, random]
seeds: 1
rounds: 2
device: cpu
threads: 1
backbone: {width: 4}
minimax: {epochs: 0.2}
task: {epochs: 0.2}
tuning: {random: {task.lr: [0.01]}, mal: {minimax.lr_d: [0.01]}, bald: {method.passes: [5]}}
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, ./conf, which presets can be written to."""
    folder = tmp_path / "conf"
    (folder / "experiment").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_with_its_seeds_and_name(preset: str) -> None:
    sweep = compose_sweep([f"experiment={preset}", "methods=[mal]"])
    assert sweep.seeds[:3] == [0, 1, 2]
    assert sweep.name == preset


@pytest.mark.parametrize("preset", SPACES)
def test_the_papers_methods_can_be_tuned_in_as_many_trials_each(preset: str, conf: Path) -> None:
    file = yaml.safe_load((CONF / "experiment" / f"{preset}.yaml").read_text())
    paper = {name: {"method": name} for name in PAPER_METHODS["classification"] if name in file["tuning"]}
    assert set(file["tuning"]) == set(paper) >= {"mal", "vaal", "random"}
    assert len(draw_trials(file["tuning"], paper, 8)) == 8 * len(paper)
    every = {}  # each method with the last value of each of its keys
    for method in paper:
        last = {key: values[-1] for key, values in file["tuning"][method].items()}
        every[method] = file["variants"].get(method, paper[method]) | last
    file = {"defaults": [preset, "_self_"], "variants": every}
    text = f"# @package _global_\n{yaml.safe_dump(file)}"
    (conf / "experiment" / "every.yaml").write_text(text)
    sweep = compose_sweep(["experiment=every", f"methods=[{','.join(paper)}]", "seeds=1"])
    for chain in sweep.chains:
        values, wanted = flat(chain.science()), every[chain.method["name"]]
        assert {key: values[key] for key in wanted if key != "method"} == {
            key: value for key, value in wanted.items() if key != "method"
        }


def test_the_studys_baselines_with_f_differ_from_the_baselines_in_their_start_alone() -> None:
    chains = {
        chain.method["name"]: chain for chain in compose_sweep(["experiment=study_digits", "seeds=1", WITH_F]).chains
    }
    for name in ("vaal", "coreset", "entropy", "bald"):
        plain, from_f = (flat(chains[each].science()) for each in (name, f"{name}_f"))
        changed = {key for key in plain if plain[key] != from_f[key]}
        assert changed == {"method.name", "task.init"}
        assert from_f["task.init"] == "from_f"


def test_untuned_methods_follow_mal_except_in_what_makes_them_what_they_are() -> None:
    sweep = compose_sweep(["experiment=study_digits", "seeds=1"])
    chosen: dict[str, Any] = {
        "mal": {
            "method": "mal", "task.lr": 0.003, "minimax.entropy_weight": 0.3, "method.query": "rank_sum",
            "minimax.temperature": 0.5,
        },
        "vaal": {"method": "vaal", "task.lr": 0.0003, "method.beta": 0.1},
        "bald": {"method": "bald", "method.dropout": 0.25},
        "random": {"method": "random", "task.lr": 0.0003},
    }  # fmt: skip
    chosen = dict(sorted(chosen.items()))  # as analysis/tuning.py writes them
    found = {name: study.follow(name, sweep, chosen, "mal") for name in sweep.methods if name not in chosen}
    shared = {"task.lr": 0.003, "minimax.temperature": 0.5}
    weighed = {**shared, "minimax.entropy_weight": 0.3}
    assert found["mal_no_minimax"] == {**shared, "method.query": "rank_sum"}
    assert found["mal_entropy_query"] == found["mal_diversity_query"] == found["mal_init_random"] == weighed
    assert found["entropy_f"] == found["coreset_f"] == weighed
    assert found["vaal_f"] == {**weighed, "method.beta": 0.1}
    assert found["bald_f"] == {**weighed, "method.dropout": 0.25}


def test_without_trials_a_preset_is_run_as_it_is(tmp_path: Path, conf: Path, in_process: list[int]) -> None:
    (conf / "experiment" / "plain.yaml").write_text("\n".join(TOY.splitlines()[:-1]).replace("toy", "plain"))
    places = [f"{key}={tmp_path / key}" for key in ("runs", "figures", "docs")]
    assert (
        study.main([*places, "presets=[plain]", "tune=0", "cluster=local", "methods=[random]", "steps=[tune,run]"]) == 0
    )
    (folder,) = run_folder.chain_folders(tmp_path / "runs", "plain")
    assert run_folder.committed_rounds(folder) == 2
    assert not list((conf / "experiment").glob("plain_*"))


@pytest.mark.parametrize("argument", ["steps=[fly]", "tune=-1", "tune=few", "steps=[]"])
def test_what_is_no_step_or_number_is_refused(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([argument]) == 2
    assert argument in capsys.readouterr().err


def test_ablations_and_choices_on_the_same_start_are_reports_of_their_own() -> None:
    sweep = compose_sweep(["experiment=study_digits", "seeds=1"])
    paper = ["mal", "vaal", "coreset", "entropy", "bald", "random"]
    ablations = ["mal", "mal_no_minimax", "mal_entropy_query", "mal_diversity_query"]
    choice = ["mal", "mal_init_random", "mal_plus", "vaal_f", "coreset_f", "entropy_f", "bald_f", "margin_f", "random"]
    assert study.reports(sweep, paper) == {
        "tuned": (paper, "random"),
        "ablations": (ablations, "mal"),
        "choice": (choice, "mal_init_random"),
    }
    two = compose_sweep(["experiment=study_digits", "seeds=1", "methods=[mal,random]"])
    assert list(study.reports(two, ["mal", "random"])) == ["tuned"]


def test_a_report_is_kept_without_what_is_large(tmp_path: Path) -> None:
    small = ("curves.csv", "rounds.csv", "curves.png", "report.md", "tables/a.csv")
    for name in (*small, "curves.pdf", "report.html", "tables/a.tex"):
        path = tmp_path / "figures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    picture = np.repeat(np.linspace(0, 255, 3000).astype(np.uint8).reshape(50, 60, 1), 3, axis=2)  # all greys, and
    picture[0, :5], picture[9, 9] = (0, 114, 178), (0, 158, 115)  # a marker's blue and green
    Image.fromarray(picture).save(tmp_path / "figures" / "curves.png")
    study.copy(tmp_path / "figures", tmp_path / "docs")
    kept = {p.relative_to(tmp_path / "docs").as_posix() for p in (tmp_path / "docs").rglob("*") if p.is_file()}
    assert kept == set(small)
    assert (tmp_path / "docs" / "tables" / "a.csv").read_text() == "tables/a.csv"
    with Image.open(tmp_path / "docs" / "curves.png") as kept_picture:
        error = np.abs(np.asarray(kept_picture.convert("RGB")).astype(int) - picture).max()
        assert kept_picture.mode == "P"
    assert error <= 24


@pytest.fixture
def in_process(conf: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chains run in this process.

    Returns a list whose last number, where there is one, is taken off by each launch: the looks until it stops.
    """
    (conf / "experiment" / "toy.yaml").write_text(TOY)
    stops: list[int] = []

    def run_local(plans: list[Any], *_: Any) -> int:
        interrupt = StopsAt(stops.pop()) if stops else Interrupt()
        for plan in plans:
            if plan.to_run:
                try:
                    run_chain(plan.folder, plan.target, interrupt)
                except Interrupted:
                    return 130
        return 0

    monkeypatch.setattr("sweeps.local.run_local", run_local)
    return stops


def test_a_study_that_was_stopped_ends_as_an_undisturbed_one(
    tmp_path: Path, conf: Path, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "TUNING_SEEDS", (100,))

    def command(name: str) -> list[str]:
        places = [f"{key}={tmp_path / name / key}" for key in ("runs", "figures", "docs")]
        return [*places, "presets=[toy]", "tune=2", "steps=[tune,run]", "cluster=local"]

    preset = conf / "experiment" / "toy_tuned.yaml"
    assert study.main(command("undisturbed")) == 0
    written = preset.read_bytes()
    preset.unlink()
    in_process += [20, 10**9, 60]  # the last is taken first: a stop while tuning, one after it
    statuses = []
    while 0 not in statuses:
        statuses.append(study.main(command("stopped")))
        assert len(statuses) < 9
    assert statuses == [130, 130, 0]
    assert preset.read_bytes() == written
    variants = yaml.safe_load(written)["variants"]
    assert set(variants) == {"mal", "bald", "mal_no_minimax", "random"}
    assert variants["mal_no_minimax"].get("minimax.lr_d") == variants["mal"].get("minimax.lr_d")
    tuning = run_folder.chain_folders(tmp_path / "stopped" / "runs", "toy-tuning")
    tried = [load_chain(folder / run_folder.CONFIG) for folder in tuning if folder.parent.name[:6] != "random"]
    final = compose_sweep(["experiment=toy_tuned"]).chains
    assert len({str(replace(chain.task, init="")) for chain in [*tried, *final]}) == 1, "one recipe of M"
    for name, count in (("toy-tuning", 6), ("toy", 4)):
        folders = [run_folder.chain_folders(tmp_path / run / "runs", name) for run in ("undisturbed", "stopped")]
        assert [len(found) for found in folders] == [count, count]
        for ours, theirs in zip(*folders, strict=True):
            assert outcome(ours) == outcome(theirs)
            assert ours.parent.name == theirs.parent.name
    assert {p.name for p in run_folder.chain_folders(tmp_path / "stopped" / "runs", "toy")} == {"seed-0"}
