"""Simple classifiers beside task models: read, compared by the same chains, warned of, tabled and drawn."""

from pathlib import Path

import numpy as np
import pytest

from analysis import floor
from analysis.figures import FLOOR, draw_curves
from analysis.floor import Floor, floor_of
from tests.made_up_runs import read, run, write_chain


def write(runs: Path, method: str, seed: int, values: list[float], **of: float | None) -> None:
    write_chain(runs, method, seed, values, metrics={"floor": of} if of else {})


def only(runs: Path) -> Floor:
    loaded, (panel,) = read(runs)
    found = floor_of(panel, loaded.rounds)
    assert found is not None
    return found


def test_a_task_model_is_compared_with_the_best_mean_over_the_same_chains(tmp_path: Path) -> None:
    write(tmp_path, "mal", 0, [60.0, 80.0], **{"1nn": 62.0, "logistic": None, "svm": 70.0})
    write(tmp_path, "mal", 1, [70.0, 90.0], **{"1nn": 74.0, "logistic": None, "svm": 64.0})
    write(tmp_path, "mal", 2, [0.0, 0.0])  # an older round without a floor is in no comparison
    write(tmp_path, "random", 0, [75.0, 76.0], **{"1nn": 50.0, "logistic": None, "svm": 74.5})
    found = only(tmp_path)
    assert list(found.of) == ["1nn", "svm"], "what no round computed is not there"
    np.testing.assert_allclose(found.value, [[68, 68], [74.5, 74.5]])  # means over seeds: 68 of 1-NN, 67 of the SVM
    np.testing.assert_allclose(found.difference, [[65 - 68, 85 - 68], [0.5, 1.5]])
    assert found.below.tolist() == [[True, False], [False, False]]
    assert [found.name(0, 0), found.name(1, 0)] == ["1-NN", "RBF SVM"]
    np.testing.assert_allclose(found.line, [69.5, 69.5])  # the SVM over all three chains; 1-NN has 62


def test_a_mean_below_is_the_first_warning_and_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        write(tmp_path / "runs", "mal", seed, [60.0, 80.0], **{"1nn": 71.0, "svm": 70.0})
        write(tmp_path / "runs", "random", seed, [72.0, 75.0], **{"1nn": 71.0, "svm": 70.0})
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures") == 0
    text = (tmp_path / "sweep" / "report.md").read_text()
    warnings = text.partition("## Warnings")[2].splitlines()
    assert warnings[2].startswith("- **below the floor**: Digits: the task model's mean is below a simple classifier")
    assert "MAL in 1 of 2 rounds (worst at 100 labels: 60.0% against 71.0% of 1-NN)" in warnings[2]
    assert "Random" not in warnings[2]
    assert warnings[2].endswith(floor.ABOUT)
    assert "| MAL − best | −11.00 | +9.00 |" in text
    assert "| 1-NN | 71.00 | 71.00 |" in text
    assert text.index("## Warnings") < text.index("## Audit") < text.index("## Learning curves")
    assert "warning (below the floor)" in capsys.readouterr().out


def test_models_at_the_floor_or_above_are_not_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "mal", 0, [70.0, 80.0], svm=70.0)
    assert floor.finding(only(tmp_path)) is None


def test_rounds_without_a_floor_have_none(tmp_path: Path) -> None:
    write_chain(tmp_path, "mal", 0, [70.0, 80.0], metrics={"floor": None})
    loaded, (panel,) = read(tmp_path)
    assert floor_of(panel, loaded.rounds) is None


def test_curves_show_it_as_a_thin_grey_line_that_does_not_flatten_them(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, "mal", seed, [90.0, 95.0 + seed], svm=20.0 + seed)
    found = only(tmp_path)
    figure = draw_curves([found.panel], {}, {"digits": found.line})
    (line,) = (line for line in figure.axes[0].lines if line.get_color() == FLOOR["color"])
    assert line.get_linewidth() < 1
    np.testing.assert_allclose(line.get_ydata(), [20.5, 20.5])
    low, high = figure.axes[0].get_ylim()
    assert low > 80
    assert high > 96
    assert "best simple classifier" in [text.get_text() for text in figure.legends[0].get_texts()]
