"""Claims of a report: who is compared, over which chains, and the figures of each line."""

from pathlib import Path

import numpy as np
import pytest

from analysis import claims, sequential, stats
from tests.made_up_runs import exactly, read, run, write_chain

SEEDS = 5


def write(runs: Path, name: str, dataset: str, gains: dict[str, np.ndarray]) -> None:
    """Chains of two rounds whose area is 60 + seed + gain."""
    for method, gain in gains.items():
        for seed in range(SEEDS):
            write_chain(runs, method, seed, [50 + seed, 70 + seed + 2 * gain[seed]], name=name, dataset=dataset)


def test_a_claim_spans_the_datasets_and_holm_all_of_its_lines(tmp_path: Path) -> None:
    nothing = np.zeros(SEEDS)
    write(tmp_path, "a", "digits", {"mal": exactly(2, 1, 5), "entropy": exactly(0.5, 2, 5), "random": nothing})
    write(tmp_path, "b", "fashion_mnist", {"mal": exactly(1, 0.3, 5), "random": nothing})
    _, panels = read(tmp_path, "a", "b")
    found = claims.comparisons(panels, "random")
    assert {name: [line.text for line in lines] for name, lines in found.items()} == {
        "mal": [
            "Digits: MAL above Entropy",
            "Digits: MAL above Random",
            "Fashion-MNIST: MAL above Random",
        ],
        "random": [
            "Digits: MAL above Random",
            "Digits: Entropy above Random",
            "Fashion-MNIST: MAL above Random",
        ],
    }
    table = claims.claims_table("random", found["random"], points=1.5)
    data = table.data
    np.testing.assert_allclose(data["difference"], [2, 0.5, 1])
    np.testing.assert_allclose(data["std"], [1, 2, 0.3])
    half = 2.776445105 * data["std"] / np.sqrt(5)  # Student's 97.5% quantile of four degrees of freedom
    np.testing.assert_allclose(data["high"] - data["difference"], half)
    np.testing.assert_allclose(data["p_holm"], stats.holm(data["p"].to_numpy()))
    np.testing.assert_allclose(data["seeds_needed"], stats.seeds_needed(data["std"].to_numpy(), 1.5))
    np.testing.assert_allclose(data["evidence_over_all"], sequential.over_all(data["evidence"].to_numpy()))
    assert table.rows[2][1:3] == ["5", "+1.00 [+0.63, +1.37]"]
    assert data["claimed"].tolist() == [False, False, True]
    assert [row[-1] for row in table.rows] == ["not yet", "not yet", "yes"]


def test_only_finished_chains_count_so_that_every_look_is_at_the_same_areas(tmp_path: Path) -> None:
    for seed in range(3):
        write_chain(tmp_path, "random", seed, [50, 60, 70])
        write_chain(tmp_path, "mal", seed, [60, 70, 80][: 3 if seed else 2], planned=3)
    (lines,) = (found["random"] for found in [claims.comparisons(read(tmp_path)[1], "random")])
    np.testing.assert_allclose(lines[0].differences, [np.nan, 10, 10])


def test_without_a_finished_pair_there_is_no_claim(tmp_path: Path) -> None:
    for method in ("mal", "random"):
        write_chain(tmp_path / "runs", method, 0, [50, 60], planned=3)
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures") == 0
    assert "claims: they need two methods with a finished chain" in (tmp_path / "sweep" / "report.md").read_text()
    assert not list((tmp_path / "sweep" / "tables").glob("claims_*"))


def test_the_difference_asked_for_is_that_of_the_seeds_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "runs", "sweep", "digits", {"mal": exactly(2, 1, 5), "random": np.zeros(5)})
    places = f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures"
    assert run(*places, "difference=1") == 0
    assert (
        "| Digits: MAL above Random | 5 | +2.00 [+0.76, +3.24] | 0.011 | 10 / 10 |"
        in (tmp_path / "sweep" / "report.md").read_text()
    )
    assert run(*places, "difference=0") == 2
    assert "points of the metric above 0" in capsys.readouterr().err
