"""What notebooks read: `from analysis import load`, its tidy frame, and rounds.csv with every bit."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.chains import ROOT
from tests.made_up_runs import run, write_chain

FLOOR = {"1nn": 61.25, "logistic": None, "svm": 70.1 / 3}


def write(runs: Path) -> None:
    more = {"signals": {"confidence": 80.5, "d_auc": None}, "floor": FLOOR, "per_class": [50.0, None]}
    for name, dataset in (("one", "digits"), ("two", "fashion_mnist")):
        write_chain(runs, "mal", 0, [100 / 3, None], name=name, dataset=dataset, classes=2, metrics=more)
        write_chain(runs, "random", 0, [50, 60], name=name, dataset=dataset, planned=3)


def test_a_notebook_reads_a_sweep_several_or_all(tmp_path: Path) -> None:
    from analysis import load

    write(tmp_path)
    assert set(load(tmp_path, "one").rounds["sweep"]) == {"one"}
    assert set(load(str(tmp_path), ["two", "one"]).rounds["sweep"]) == {"one", "two"}
    assert len(load(tmp_path).tidy) == 8
    with pytest.raises(ValueError, match="name=on: no such sweep; did you mean one"):
        load(tmp_path, "on")
    with pytest.raises(ValueError, match="no such folder"):
        load(tmp_path / "none")


def test_the_example_of_the_readme_runs_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text().partition("In a notebook, from the checkout's folder:\n\n")[2]
    *statements, last = dedent(text.partition("\n\n")[0]).splitlines()
    for seed, value in enumerate((50, 70)):
        write_chain(tmp_path / "runs", "mal", seed, [value, 80], name="digits")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(statements), names)
    shown = eval(last, names)
    assert shown.loc["mal"]["mean"].tolist() == [60, 80]
    assert shown.loc["mal"]["count"].tolist() == [2, 2]


def test_the_tidy_frame_has_a_column_for_each_signal_and_classifier(tmp_path: Path) -> None:
    from analysis import load

    write(tmp_path)
    mal, _, random, _ = (row for _, row in load(tmp_path, "one").tidy.iterrows())
    assert (mal["floor.1nn"], mal["floor.svm"], mal["signals.confidence"]) == (61.25, FLOOR["svm"], 80.5)
    assert {"floor.logistic", "signals.d_auc"}.isdisjoint(mal.index), "what no round has"
    assert random[["floor.1nn", "signals.confidence"]].isna().all()
    assert (mal["planned"], random["planned"]) == (2, 3)
    assert json.loads(mal["per_class"]) == [50.0, None]


def test_rounds_csv_reads_back_to_the_same_bits(tmp_path: Path) -> None:
    from analysis import load

    write(tmp_path / "runs")
    assert run(f"runs={tmp_path / 'runs'}", "name=one", f"out={tmp_path}", "--no-figures") == 0
    read = pd.read_csv(tmp_path / "one" / "rounds.csv")
    expected = load(tmp_path / "runs", "one").tidy
    assert list(read.columns) == list(expected.columns)
    for column in expected.select_dtypes("number"):
        np.testing.assert_array_equal(read[column], expected[column], err_msg=column)
    assert read["value"].iloc[0] == 100 / 3
    assert read["folder"].iloc[0] == "one/mal/seed-0/round-0", "of the runs folder, not of this machine"
    tables = pd.read_csv(tmp_path / "one" / "tables" / "rounds_digits.csv")
    assert tables["mean"].iloc[0] == 100 / 3


@pytest.mark.parametrize("floor", [{"1nn": 120}, {"svm": "70"}, [70.0], {"svm": -1}])
def test_a_floor_that_is_none_is_not_believed(tmp_path: Path, floor: object) -> None:
    from analysis import load

    write_chain(tmp_path, "mal", 0, [50], metrics={"floor": floor})
    (finding,) = load(tmp_path).findings
    assert "percentages by name are allowed" in finding.text


def test_a_history_that_was_changed_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {"task": {"window": 1, "losses": {"cross_entropy": [2.0, 1.0]}}}
    chain = write_chain(tmp_path / "runs", "mal", 0, [50, 60], history=losses)
    path = chain / "round-1" / "history.json"
    path.write_text(path.read_text().replace("2.0", "9.0"))
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures") == 2
    assert f"{path} is not the file that was committed" in capsys.readouterr().err
