"""Pictures of queried images: which rounds are shown, what is on them, and the words of segmentation in a report."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis import figures, pictures, style
from mal.run import folder as run_folder
from tests.made_up_runs import read, run, write_chain

NAMES = ["sky", "road", "car"]


def write_queries(folder: Path, count: int = 3, channels: int = 3) -> dict[str, np.ndarray]:
    """queries.npz of a round: half sky, half road, a car, a border that is not counted."""
    random = np.random.default_rng(0)
    truth = np.zeros((count, 12, 16), np.uint8)
    truth[:, 6:], truth[:, 5:8, 3:6], truth[:, :, 0] = 1, 2, 255
    arrays = {
        "indices": np.arange(100, 100 + count),
        "images": random.integers(0, 256, (count, channels, 12, 16), dtype=np.uint8),
        "truth": truth,
        "predicted": np.where(truth == 255, 0, truth),
        "entropy": random.random((count, 12, 16)).astype(np.float16),
    }
    np.savez(folder / run_folder.QUERIES, **arrays)
    return arrays


def write_sweep(runs: Path, names: list[str] | None = NAMES, kept: tuple[int, ...] = (0, 1), channels: int = 3) -> Any:
    section = {"dataset": {"name": "bdd100k", "classes": 3, "class_names": names}}
    found = {}
    for method in ("mal", "random"):
        for seed in (0, 1):
            chain = write_chain(
                runs,
                method,
                seed,
                [30.0, 35.0 + seed, 40.0],
                dataset="bdd100k",
                backbone="drn_d_22",
                metric="miou",
                classes=3,
                config=section,
                metrics={"pool_classes": [9000, 4000, 300]},
            )
            for number in kept:
                found[method, seed, number] = write_queries(chain / f"round-{number}", channels=channels)
    return found


def only(runs: Path) -> list[pictures.Picture]:
    loaded, (panel,) = read(runs)
    return pictures.query_pictures(panel, loaded.rounds, loaded)


def test_the_last_common_round_of_one_seed_is_shown_for_each_method(tmp_path: Path) -> None:
    written = write_sweep(tmp_path)
    found = only(tmp_path)
    assert [(p.method, p.seed, p.number) for p in found] == [("mal", 0, 1), ("random", 0, 1)]
    for name in ("indices", "images", "truth", "predicted", "entropy"):
        assert np.array_equal(getattr(found[0], name), written["mal", 0, 1][name])
    assert found[0].names == NAMES


def test_a_sweep_that_kept_no_queries_has_no_pictures(tmp_path: Path) -> None:
    write_sweep(tmp_path, kept=())
    assert only(tmp_path) == []


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    write_sweep(tmp_path, names=None)
    assert only(tmp_path)[0].names == ["0", "1", "2"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_a_column_a_query_and_names_the_classes_in_it(tmp_path: Path, channels: int) -> None:
    written = write_sweep(tmp_path, channels=channels)
    figures.use_theme()
    figure = pictures.draw_maps(only(tmp_path)[0])
    grid = [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]
    assert len(grid) == 4 * 3
    assert [axes.get_title() for axes in grid[:3]] == ["image 100", "image 101", "image 102"]
    assert [axes.get_ylabel() for axes in grid[::3]] == ["image", "truth", "prediction", "entropy (nats)"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in grid]
    kept = written["mal", 0, 1]
    expected = kept["images"][1].transpose(1, 2, 0) if channels == 3 else kept["images"][1][0]
    assert np.array_equal(shown[1], expected)
    assert np.array_equal(shown[4], np.where(kept["truth"][1] == 255, 3, kept["truth"][1]))  # 3: not counted
    assert np.array_equal(shown[7], kept["predicted"][1])
    assert shown[10] == pytest.approx(kept["entropy"][1].astype(float))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["sky", "road", "car", "not counted"]
    mean = kept["entropy"][2].astype(float).mean()
    assert grid[-1].get_xlabel() == f"mean {mean:.2f}"
    plt.close(figure)


def test_of_classification_there_is_a_row_for_each_method_with_right_and_wrong_told_apart(tmp_path: Path) -> None:
    for method in ("mal", "random"):
        chain = write_chain(tmp_path, method, 0, [30.0, 35.0])
        arrays = {
            "indices": np.arange(12),
            "images": np.full((12, 1, 8, 8), 7, np.uint8),
            "truth": np.arange(12) % 3,
            "predicted": np.zeros(12, np.int64),
            "entropy": np.full(12, 0.5, np.float16),
        }
        np.savez(chain / "round-0" / run_folder.QUERIES, **arrays)
    figures.use_theme()
    found = only(tmp_path)
    ((end, (figure, caption)),) = pictures.draw_queries(found).items()
    assert end == ""
    assert "the first 10 images that round 0 queried" in caption
    grid = np.array(figure.axes).reshape(2, 10)
    assert [row[0].get_ylabel() for row in grid] == [style.method_label(method) for method in ("mal", "random")]
    assert [axes.get_title() for axes in grid[0, :4]] == ["0", "1", "2", "0"]
    assert grid[1, 1].get_xlabel() == "0 0.50"
    assert [axes.xaxis.label.get_color() == pictures.WRONG for axes in grid[0, :4]] == [False, True, True, False]
    plt.close(figure)


@pytest.mark.parametrize("classes", [2, 11, 19, 60])
def test_every_class_has_a_colour_of_its_own(classes: int) -> None:
    assert len({str(colour) for colour in pictures.palette(classes)}) == classes


def test_a_report_on_segmentation_says_mean_iou_and_holds_the_pictures(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs")
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}") == 0
    folder = tmp_path / "out" / "sweep"
    for method in ("mal", "random"):
        assert (folder / f"pictures_bdd100k_{method}.png").stat().st_size > 10_000
        assert (folder / f"pictures_bdd100k_{method}.pdf").is_file()
    text = (folder / "report.md").read_text()
    assert "Mean IoU (%) on BDD100K" in text
    assert "Mean IoU over the budget" in text
    assert "Mean of the classes' IoU" in text
    assert "ccuracy" not in text
    assert "the first 3 images that round 1 queried" in text
    assert style.metric_label("miou") == "Mean IoU (%)"
    # an older picture does not outlive its report
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", "--no-figures") == 0
    assert (folder / "pictures_bdd100k_mal.png").is_file()
    for path in (tmp_path / "runs").rglob(run_folder.QUERIES):
        path.unlink()
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}") == 0
    assert not list(folder.glob("pictures_*"))
