"""Signals and losses of rounds: what is read, averaged over seeds, drawn and tabled."""

from pathlib import Path

import numpy as np
import pytest

from analysis import diagnostics
from analysis.diagnostic_figures import draw_losses, draw_signals
from tests.made_up_runs import read, run, write_chain

VALUES = [60.0, 70.0, 80.0]


def write(runs: Path, method: str, seed: int, **more: float | None) -> None:
    told = {"confidence": 75.0 + seed, "calibration": 10.0 * (seed + 1), **more}
    losses = {"cross_entropy": [3.0 + seed, 1.0 + seed], "entropy": [0.5, 0.25, 0.125]}
    history = {
        "minimax": {"window": 1, "losses": losses},
        "ensemble-1": {"window": 1, "losses": {"cross_entropy": [1]}},
    }
    write_chain(runs, method, seed, VALUES, metrics={"signals": told}, history=history)


def test_a_confidence_is_told_as_what_it_exceeds_the_accuracy_by(tmp_path: Path) -> None:
    write(tmp_path, "mal", 0, c_value=50.0, c_confidence=95.0, d_auc=0.75)
    runs, (panel,) = read(tmp_path)
    found = diagnostics.signals_of(panel, runs.rounds)
    assert list(found) == ["calibration", "overconfidence", "c_value", "c_overconfidence", "d_auc"]
    assert found["overconfidence"][0, 0].tolist() == [15, 5, -5]
    assert found["c_overconfidence"][0, 0].tolist() == [45, 45, 45]


def test_of_maps_no_confidence_is_compared_with_mean_iou(tmp_path: Path) -> None:
    told = {"confidence": 90.0, "calibration": 3.0, "c_value": 20.0, "c_confidence": 80.0}
    write_chain(tmp_path, "mal", 0, VALUES, metric="miou", metrics={"signals": told})
    runs, (panel,) = read(tmp_path)
    assert list(diagnostics.signals_of(panel, runs.rounds)) == ["calibration", "c_value"]


def test_signals_are_averaged_over_seeds_and_an_unknown_one_has_its_key_for_a_name(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path, "mal", seed, of_my_own=0.5 + seed, d_auc=None)
        write(tmp_path, "random", seed)
    runs, (panel,) = read(tmp_path)
    table = diagnostics.signals_table(panel, diagnostics.signals_of(panel, runs.rounds))
    assert table is not None
    known = ["15.0 → 15.0", "15.5 → −4.5"]
    assert table.columns[1:] == ["Calibration error of M (%)", "Confidence − accuracy of M (%)", "of my own"]
    assert table.rows == [["MAL", *known, "1.0 → 1.0"], ["Random", *known, "–"]]
    row = table.data[(table.data["method"] == "mal") & (table.data["signal"] == "calibration")].iloc[0]
    assert (row["mean"], row["n"], row["labeled"]) == (15, 2, 100)
    assert row["std"] == pytest.approx(np.sqrt(50))


def test_losses_are_means_over_seeds_at_equal_distances_in_each_round(tmp_path: Path) -> None:
    write(tmp_path, "mal", 0)
    write(tmp_path, "mal", 1)
    write_chain(tmp_path, "random", 0, VALUES)
    runs, (panel,) = read(tmp_path)
    found = {each.loss: each for each in diagnostics.losses_of(panel, runs.rounds)}
    assert set(found) == {"cross_entropy", "entropy"}, "members of an ensemble are left out"
    curve = found["cross_entropy"].means
    assert curve.shape == (2, 3, diagnostics.POINTS)
    assert curve[0, 2] == pytest.approx(np.linspace(3.5, 1.5, diagnostics.POINTS))
    assert found["entropy"].means[0, 0, [0, diagnostics.POINTS // 2, -1]].tolist() == [0.5, 0.25, 0.125]
    assert np.isnan(curve[1]).all()


def test_a_figure_has_a_panel_for_each_signal_and_loss(tmp_path: Path) -> None:
    write(tmp_path, "mal", 0, d_auc=0.75)
    write(tmp_path, "random", 0)
    runs, (panel,) = read(tmp_path)
    found, losses = diagnostics.signals_of(panel, runs.rounds), diagnostics.losses_of(panel, runs.rounds)
    titles = [axes.get_title() for axes in draw_signals(panel, found).axes if axes.get_visible()]
    assert titles == [diagnostics.name_of(signal) for signal in found]
    drawn = [axes for axes in draw_losses(panel, losses).axes if axes.get_visible()]
    assert [axes.get_title() for axes in drawn] == ["Algorithm 1: cross entropy", "Algorithm 1: entropy"]
    ends = [(line.get_ydata()[0], line.get_ydata()[-1]) for line in drawn[0].lines if len(line.get_ydata()) > 2]
    assert [end for end in ends if not np.isnan(end).any()] == [(3.0, 1.0)] * 6


def test_rounds_without_signals_or_losses_are_named(tmp_path: Path) -> None:
    write_chain(tmp_path / "runs", "mal", 0, VALUES)
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}") == 0
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "signals: no round recorded" in text
    assert "losses: no round has a history.json" in text


def test_a_report_of_some_methods_holds_those_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("mal", "entropy", "random"):
        write_chain(tmp_path / "runs", method, 0, VALUES)
    places = f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures"
    assert run(*places, "name=sweep", "methods=[mal,random]") == 0
    lines = (tmp_path / "sweep" / "curves.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in lines[1:]} == {"mal", "random"}
    assert run(*places, "name=sweep", "methods=[mall]") == 2
    assert "did you mean mal?" in capsys.readouterr().err
