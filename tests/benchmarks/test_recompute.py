"""The second computation of the study's figures, on made-up rounds whose answers are known, and on the page."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import claims
from benchmarks import recompute
from tests.made_up_runs import read, run, write_chain

SIGNALS = [f"signals.{name}" for name in ("c_value", "error_auc", "c_error_auc", "d_auc")]
PAGE = Path(__file__).parents[2] / "docs" / "study.md"


def rounds_csv(folder: Path, gains: dict[str, list[float]]) -> None:
    """Three rounds of each method and seed: 50 + seed at 10, 20 and 30 labels, and what the method gains at each."""
    rows = [
        {"method": method, "seed": seed, "labeled": labels, "value": 50 + seed + gain}
        | {"floor.svm": 40, "floor.1nn": 48}
        | dict.fromkeys(SIGNALS, 0.5 + seed / 10)
        for method, of_seed in gains.items()
        for seed, gain in enumerate(of_seed)
        for labels in (10, 20, 30)
    ]
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "rounds.csv", index=False)


def test_known_differences_have_students_interval_and_holms_p(tmp_path: Path) -> None:
    gains = {"random": [0.0, 0, 0], "mal": [1.0, 2, 3], "entropy": [-1.0, 1, 0], "mal_init_random": [3.0, 1, 2]}
    gains["entropy_f"] = [0.0, 3, 3]
    rounds_csv(folder := tmp_path / "study_digits", gains)
    found = recompute.tables(folder)
    # Mean 2, deviation 1, n 3: half width 4.303 / sqrt(3); t = 3.46, p = 0.074, twice that after Holm over two.
    assert found["each of the paper's methods above random"] == [
        "| mal | 53.0 | +2.0 [−0.5, +4.5] | 0.15 |",
        "| entropy | 51.0 | +0.0 [−2.5, +2.5] | 1.00 |",
    ]
    assert found["start"][0] == "| 10 | 53.0 | 51.0 | +2.0 [−0.5, +4.5] | 0.22 |"
    assert found["inside"][0] == "| 10 | 53.0 | 0.6 | 0.60 | 0.60 | 0.60 |"
    assert found["choice, on MAL's start"][0] == "| mal | 53.0 | +0.0 [−4.3, +4.3] | 1.00 |"
    # 1, 2 and 3 above each other: twice 0.074; and 3, 1 and 2 the same.
    assert found["start under each choice"] == [
        "| mal_init_random above random | +2.0 [−0.5, +4.5] | 0.15 |",
        "| entropy_f above entropy | +2.0 [−0.5, +4.5] | 0.15 |",
    ]
    assert found["floor"][0] == "| random | 51.0 (+3.0) | 51.0 (+3.0) | 51.0 (+3.0) |"


def test_the_stated_comparison_has_its_own_p_and_the_others_holms(tmp_path: Path) -> None:
    gains = {"random": [0.0, 0, 0], "f_39063": [1.0, 2, 3], "f_117": [1.0, 2, 3], "ce_117": [-1.0, 1, 0]}
    rows = [
        {"method": arm, "seed": seed, "value": 70 + gain}
        for arm, each in gains.items()
        for seed, gain in enumerate(each)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "cpu.csv", index=False)
    assert recompute.steps(tmp_path / "cpu.csv") == [
        "| 117 | yes | +2.0 [−0.5, +4.5] | 0.15 |",
        "| 117 | no | +0.0 [−2.5, +2.5] | 1.00 |",
        "| 39,063 | yes | +2.0 [−0.5, +4.5] | 0.074 |",
    ]


def test_a_sweep_of_another_backbone_has_order_and_floor(tmp_path: Path) -> None:
    rounds_csv(tmp_path, {"random": [0.0, 0, 0], "mal": [1.0, 2, 3], "vaal": [-1.0, 1, 0]})
    found = recompute.tables(tmp_path)
    assert [len(lines) for lines in found.values()] == [2, 2, 3, 0]
    assert found["MAL above each of the paper's"][0] == "| vaal | 51.0 | +2.0 [−0.5, +4.5] | 0.15 |"


def test_recipes_of_one_file_are_told_apart(tmp_path: Path) -> None:
    rounds_csv(tmp_path / "short", {"random": [0.0, 0, 0], "mal": [4.0, 5, 6.5]})
    rounds_csv(tmp_path / "long", {"random": [0.0, 0, 0], "mal": [1.0, 2, 3], "mal_init_random": [3.0, 1, 2]})
    frames = [pd.read_csv(tmp_path / name / "rounds.csv").assign(sweep=name) for name in ("short", "long")]
    pd.concat(frames).to_csv(tmp_path / "both.csv", index=False)
    found = recompute.by_recipe(tmp_path / "both.csv")
    assert found["short, pairs"] == ["| mal above random | **+5.2 [+2.0, +8.3]** | 0.019 |"]
    assert found["long, pairs"][0] == "| mal above random | +2.0 [−0.5, +4.5] | 0.22 |"
    assert found["difference"] == ["| mal above random | **−3.2 [−3.9, −2.4]** | 0.003 |"]
    assert [len(lines) for lines in found.values()] == [3, 1, 3, 2, 1]
    assert found["long, floor"][1] == "| mal | 53.0 (+5.0) | 53.0 (+5.0) | 53.0 (+5.0) |"


def test_holm_is_step_down_and_bold_is_below_a_twentieth() -> None:
    random = np.random.default_rng(0)
    rows = [(str(k), random.normal(k, 1, 6)) for k in range(4)]
    plain = np.array([stats.ttest_1samp(values, 0).pvalue for _, values in rows])
    adjusted = np.array([line[4] for line in recompute.compare(rows)])
    order = np.argsort(plain)
    expected = np.minimum(1, np.maximum.accumulate(plain[order] * [4, 3, 2, 1]))
    np.testing.assert_allclose(adjusted[order], expected)
    assert recompute.written(1.25, 0.4, 2.1, 0.0312) == "**+1.2 [+0.4, +2.1]** | 0.031"


def test_it_agrees_with_the_reports(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for method in ("mal", "random", "entropy", "coreset"):
        for seed in range(5):
            write_chain(tmp_path / "runs", method, seed, list(random.normal(70, 3, 3)))
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures") == 0
    _, panels = read(tmp_path / "runs")
    table = claims.claims_table("random", claims.comparisons(panels, "random")["random"], 2.0).data
    rounds = recompute.Rounds(tmp_path / "sweep" / "rounds.csv")
    lines = recompute.compare([(m, recompute.differences(rounds, m, "random")) for m in table["above"]])
    for (_, *ours), theirs in zip(lines, table.itertuples(), strict=True):
        assert ours == pytest.approx([theirs.difference, theirs.low, theirs.high, theirs.p_holm])


@pytest.mark.parametrize(
    "page", [PAGE, PAGE.with_name("pretrained.md"), PAGE.parents[1] / "README.md"], ids=lambda page: page.stem
)
def test_every_line_is_on_the_page_and_another_digit_is_found(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recompute.main([str(page)]) == 0, capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    if page == PAGE:
        line = recompute.tables(recompute.STUDY / "study_digits")["start"][0]
    elif page.stem == "README":
        line = recompute.across()["summary"][0]
    else:
        line = recompute.weights(recompute.Rounds(recompute.PRETRAINED))["areas"][0]
    wrong = tmp_path / page.name
    wrong.write_text(text.replace(line, line.replace("[", "[9")), encoding="utf-8")
    assert recompute.main([str(wrong)]) == 1
    assert line in capsys.readouterr().out
