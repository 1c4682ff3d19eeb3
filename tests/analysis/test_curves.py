"""From run folders to a frame, curves.csv and warnings, on made-up runs whose answers are known."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import checks, curves, tables
from mal.config.schema import NEUTRAL, PLACE_KEYS
from mal.run import folder as run_folder
from tests.made_up_runs import read, run, write_chain

ANALYSIS = Path(curves.__file__).parent


def findings(runs: Path, *names: str) -> dict[str, list[str]]:
    loaded, drawn = read(runs, *names)
    found: dict[str, list[str]] = {}
    for finding in checks.check(loaded, drawn):
        found.setdefault(finding.kind, []).append(finding.text)
    return found


# -- the contract


def test_curves_csv(tmp_path: Path) -> None:
    for seed, values in enumerate([[50, 60], [52, 64], [54, None]]):
        write_chain(tmp_path / "runs", "random", seed, values, pool=800)
    write_chain(tmp_path / "runs", "mal", 0, [70, 80], pool=800)
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", "figures=false") == 0
    text = (tmp_path / "out" / "sweep" / "curves.csv").read_text().splitlines()
    assert text == [
        "dataset,method,round,labeled,percent,metric,mean,std,n",
        "digits,mal,0,100,12.5,accuracy,70,,1",
        "digits,mal,1,200,25,accuracy,80,,1",
        "digits,random,0,100,12.5,accuracy,52,2,3",
        "digits,random,1,200,25,accuracy,62,2.8284271247461903,2",
    ]


def test_every_sweep_gets_a_report_or_the_named_ones_share_one(tmp_path: Path) -> None:
    for name, dataset in (("one", "digits"), ("two", "fashion_mnist")):
        for seed in range(2):
            write_chain(tmp_path / "runs", "random", seed, [50 + seed, 60], name=name, dataset=dataset)
    quiet = ("figures=false", f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}")
    assert run(*quiet) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"one", "two"}
    assert run(*quiet, "name=[two,one]") == 0
    together = pd.read_csv(tmp_path / "out" / "two+one" / "curves.csv")
    assert together["dataset"].drop_duplicates().tolist() == ["fashion_mnist", "digits"]


def test_help_and_bad_input_answer_without_pandas(tmp_path: Path) -> None:
    script = str(ANALYSIS / "curves.py")
    for arguments, code, text in (
        (["--help"], 0, "runs=DIR"),
        (["nmae=digits"], 2, "did you mean name?"),
        (["--no-figure"], 2, "did you mean --no-figures?"),
        (["figures=perhaps"], 2, "figures=true or figures=false"),
        (["name="], 2, "needs a value"),
        (["targets=[80,x]"], 2, "targets=[80,90]"),
        (["name=../digits"], 2, "not a path"),
        (["out=a", "out=b"], 2, "given twice"),
        ([f"runs={tmp_path / 'none'}"], 2, "no such folder"),
    ):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", script, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        answer = done.stdout if code == 0 else done.stderr
        assert text in answer
        assert "Traceback" not in done.stderr
        imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
        assert not imported & {"pandas", "seaborn", "matplotlib", "scipy", "torch"}


def test_unknown_sweep_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chain(tmp_path, "random", 0, [50], name="digits")
    assert run(f"runs={tmp_path}", "name=digist", f"out={tmp_path / 'out'}") == 2
    assert "did you mean digits?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_committed_is_an_error_that_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chain(tmp_path, "random", 0, [], planned=3, failed="ValueError: no such file")
    assert run(f"runs={tmp_path}", "name=sweep", f"out={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert "none of its 1 chains has a committed round" in error
    assert "ValueError: no such file" in error


def test_imports_only_the_schema_and_shadows_no_module() -> None:
    for module in ANALYSIS.glob("*.py"):
        assert module.stem not in sys.stdlib_module_names, module
        used = set(re.findall(r"^\s*(?:from|import) (mal[\w.]*)(?: import (\w+))?", module.read_text(), re.MULTILINE))
        known = {
            ("mal.run", "folder"),
            ("mal.files", "sha256"),
            ("mal.files", "run_command"),
            ("mal.packages", "REPORTS"),
        }
        assert used <= known, module


# -- reading


def test_only_committed_rounds_count(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, "random", 0, [50, 60, 70])
    (chain / "round-2" / run_folder.COMMITTED).unlink()
    loaded, _ = read(tmp_path)
    assert loaded.rounds["value"].tolist() == [50, 60]
    assert "random seed 0 (2 of 3, round 2 begun)" in findings(tmp_path)["incomplete chain"][0]


def test_an_edited_or_cut_round_is_left_out_and_named(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, "random", 0, [50, 60, 70])
    write_chain(tmp_path, "random", 1, [50, 60, 70])
    metrics = chain / "round-1" / run_folder.METRICS
    metrics.write_text(metrics.read_text().replace("60", "90"))
    (chain / "round-2" / run_folder.COMMITTED).write_text('{"format": 1,')
    loaded, (panel,) = read(tmp_path)
    assert np.isnan(panel.values[0, 0, 1:]).all()
    assert panel.values[0, 1].tolist() == [50, 60, 70]
    assert len(loaded.findings) == 2
    assert "not the file that was committed" in loaded.findings[0].text
    assert "not valid JSON" in loaded.findings[1].text


def test_pairs_are_by_seed_whatever_the_order_of_folders(tmp_path: Path) -> None:
    for seed in (10, 2, 1):
        write_chain(tmp_path, "random", seed, [float(seed)])
    for seed in (1, 2, 7):
        write_chain(tmp_path, "mal", seed, [float(seed) + 5])
    _, (panel,) = read(tmp_path)
    assert (panel.methods, panel.seeds) == (("mal", "random"), (1, 2, 7, 10))
    difference = panel.values[0, :, 0] - panel.values[1, :, 0]
    np.testing.assert_array_equal(difference, [5, 5, np.nan, np.nan])


def test_two_backbones_or_protocols_never_share_a_curve(tmp_path: Path) -> None:
    write_chain(tmp_path, "mal", 0, [1.0], name="a", backbone="resnet18")
    write_chain(tmp_path, "mal", 0, [2.0], name="b", backbone="vgg16_bn")
    write_chain(tmp_path, "mal", 0, [3.0, 4.0], name="c", dataset="cifar100", initial=100)
    write_chain(tmp_path, "random", 0, [5.0, 6.0], name="d", dataset="cifar100", initial=150)
    write_chain(tmp_path, "random", 0, [7.0, 8.0], name="e", dataset="bdd100k")
    write_chain(tmp_path, "mal", 0, [9.0], name="f", dataset="bdd100k")
    _, drawn = read(tmp_path, "a", "b", "c", "d", "e", "f")
    assert [p.key for p in drawn] == ["digits-resnet18", "digits-vgg16_bn", "cifar100-c", "cifar100-d", "bdd100k"]
    assert drawn[0].title == "Digits, ResNet18"
    assert drawn[-1].methods == ("mal", "random"), "one protocol, stopped at different rounds, is one panel"


# -- warnings


def test_clean_runs_warn_of_nothing(tmp_path: Path) -> None:
    for method in ("mal", "random"):
        for seed in range(5):
            write_chain(tmp_path, method, seed, [50.0 + seed, 60.0 + seed])
    assert findings(tmp_path) == {}


def test_missing_results_are_named(tmp_path: Path) -> None:
    for seed in range(5):
        write_chain(tmp_path, "random", seed, [50, 60, 70])
    write_chain(tmp_path, "mal", 0, [50, 60, 70], skip=[1])
    write_chain(tmp_path, "mal", 1, [50, None, 70])
    write_chain(tmp_path, "mal", 2, [50], planned=3, failed="RuntimeError: CUDA out of memory")
    write_chain(tmp_path, "mal", 3, [50, 60], planned=3)
    found = findings(tmp_path)
    assert found["missing round"] == ["mal seed 0 has no round 1, but round 2"]
    assert "mal seed 1, round 1 has no value" in found["no metric"][0]
    assert found["failed chain"] == ["mal seed 2 failed in round 1: RuntimeError: CUDA out of memory"]
    assert found["incomplete chain"] == ["not all rounds are committed: mal seed 0 (2 of 3); mal seed 3 (2 of 3)"]
    assert "seeds 0-3: mal; seeds 0-4: random" in found["unequal seeds"][0]
    assert "at most 4 seeds for mal" in found["few seeds"][0]
    assert set(found) == {
        "missing round",
        "no metric",
        "failed chain",
        "incomplete chain",
        "unequal seeds",
        "few seeds",
    }


def test_mixed_code_and_devices_are_named(tmp_path: Path) -> None:
    for seed in range(5):
        write_chain(tmp_path, "mal", seed, [50, 60])
    write_chain(tmp_path, "random", 0, [50, 60], provenance={"code": "b" * 12, "git_dirty": True})  # at the same commit
    write_chain(tmp_path, "random", 1, [50, 60], metrics={"device": "NVIDIA H200"})
    found = findings(tmp_path)
    assert found["mixed code"] == [
        "2 versions of the code computed the rounds: most aaaaaaaaaa; bbbbbbbbbb: random seed 0 rounds 0-1"
    ]
    assert found["uncommitted code"] == ["2 of 14 rounds ran from a working tree with changes"]
    assert "NVIDIA H200 / cpu" in found["mixed devices"][0]


def test_a_chain_that_went_on_with_another_version_is_named(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, "mal", 0, [50, 60])
    other = write_chain(
        tmp_path,
        "mal",
        1,
        [50, 60],
        name="other",
        provenance={"code": None, "git_commit": "c" * 40, "fingerprint": "new"},
    )
    (chain / "round-1").rename(tmp_path / "old")
    (other / "round-1").rename(chain / "round-1")
    found = findings(tmp_path)
    assert "cccccccccc: mal seed 0 round 1" in found["mixed code"][0]
    assert found["different configuration"] == ["mal seed 0 changed its configuration between rounds"]


def test_differing_configurations_are_named(tmp_path: Path) -> None:
    own = {"task": {"epochs": 5, "init": "from_f"}, "minimax": {"epochs": 9}, "threads": 3}
    for seed in range(5):
        write_chain(tmp_path, "mal", seed, [50, 60], config=own)
        write_chain(tmp_path, "random", seed, [50, 60], config={"task": {"epochs": 5, "init": "scratch"}})
        epochs = 7 if seed == 3 else 6
        write_chain(tmp_path, "entropy", seed, [50, 60], config={"task": {"epochs": 5}, "minimax": {"epochs": epochs}})
        write_chain(tmp_path, "bald", seed, [50, 60], config={"task": {"epochs": 8}})
    assert findings(tmp_path)["different configuration"] == [
        "entropy: minimax.epochs differs between seeds: 6 (seed 0, seed 1, seed 2, seed 4) / 7 (seed 3)",
        "sweep: task.epochs differs between methods: 5 (entropy, mal, random) / 8 (bald)",
    ]


def test_places_and_chains_of_an_older_launch_are_no_other_configuration(tmp_path: Path) -> None:
    older = {"method": {"name": "mal", "query": "entropy_of_unlabeled"}}
    newer = {"method": {"name": "mal", "query": "entropy_of_unlabelled"}}
    places: dict[str, Any] = {}
    for key in PLACE_KEYS:
        section, _, name = key.rpartition(".")
        if key != "rounds":
            (places.setdefault(section, {}) if section else places)[name] = "here"
    places.pop("name")
    places["dataset"] |= {"name": "digits", "classes": 10}
    places["backbone"] |= {"name": "small_cnn"}
    places["task"] = {"epochs": 5}
    for key, value in NEUTRAL.items():
        section, _, name = key.rpartition(".")
        (places.setdefault(section, {}) if section else places).setdefault(name, value)
    for seed in range(5):
        write_chain(tmp_path, "mal", seed, [50, 60], config=newer | places if seed else older)
        write_chain(tmp_path, "random", seed, [50, 60])
    assert "different configuration" not in findings(tmp_path)
    write_chain(tmp_path, "mal", 5, [50, 60], config=older | {"precision": "bf16"})
    (found,) = findings(tmp_path)["different configuration"]
    assert found.startswith("mal: precision differs between seeds")


def test_other_initial_labels_pools_and_budgets_are_named(tmp_path: Path) -> None:
    for seed in range(5):
        write_chain(tmp_path, "random", seed, [50, 60])
        write_chain(
            tmp_path, "mal", seed, [50, 60], initial=100 if seed else 90, provenance={"pool": f"pool-{seed % 4}"}
        )
    found = findings(tmp_path)
    assert found["different initial labels"] == ["Digits, seed 0: not the same initial labels: mal / random"]
    assert len(found["different pool"]) == 1
    assert "seed 4" in found["different pool"][0]
    assert found["different budgets"][0] == "Digits, seed 0, round 0: 90 labels: mal; 100 labels: random"


def test_one_seed_has_no_deviation_and_no_test(tmp_path: Path) -> None:
    for method, values in (("mal", [70, 80]), ("random", [50, 60])):
        write_chain(tmp_path, method, 0, values)
    _, (panel,) = read(tmp_path)
    assert "mal, random" in findings(tmp_path)["one seed"][0]
    table = tables.rounds_table([panel])
    assert table.rows == [["MAL", "70.00", "80.00"], ["Random", "50.00", "60.00"]]
    assert not table.bold
    area = tables.area_table(panel, "random")
    assert area is not None
    assert area.rows[0] == ["MAL", "75.00", "1", "+20.00", "–"]
    assert not tables.penalty_tables([panel])
