"""Tables against the paper's and against answers worked out by hand."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from analysis import class_tables, label_tables, queries, references, style, tables
from analysis.table import interval, latex_text, mean_std, number
from tests.made_up_runs import exactly, read, write_chain


def paper_runs(runs: Path) -> list[dict[str, str]]:
    """Five seeds of each curve of the paper's Table 2, with exactly its means and deviations."""
    with references.FILE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "Table 2"]
    for method in ("mal", "vaal"):
        for backbone in ("resnet18", "vgg16_bn"):
            mine = [row for row in rows if (row["method"], row["backbone"]) == (method, backbone)]
            values = np.array([exactly(float(row["mean"]), float(row["std"]), 5) for row in mine])
            for seed in range(5):
                write_chain(
                    runs,
                    method,
                    seed,
                    values[:, seed].tolist(),
                    name=backbone,
                    dataset="cifar100",
                    backbone=backbone,
                    initial=1000,
                    budget=1000,
                    pool=50_000,
                    classes=100,
                )
    return rows


def test_table_2_of_the_paper_cell_by_cell(tmp_path: Path) -> None:
    rows = paper_runs(tmp_path)
    _, drawn = read(tmp_path, "resnet18", "vgg16_bn")
    (group,) = tables.by_protocol(drawn)
    table = tables.rounds_table(group)
    assert table.columns == ["Method", "2%", "4%", "6%", "8%", "10%"]
    printed = {  # as the paper prints it
        "VAAL-VGG16": ["25.67 ± 0.98", "35.67 ± 0.42", "44.23 ± 1.32", "47.89 ± 0.83", "49.23 ± 0.61"],
        "MAL-VGG16": ["28.72 ± 0.73", "39.84 ± 1.20", "46.66 ± 0.91", "49.97 ± 0.56", "51.02 ± 0.76"],
        "VAAL-ResNet18": ["24.18 ± 0.48", "32.44 ± 0.40", "38.47 ± 0.25", "40.89 ± 0.27", "41.64 ± 0.39"],
        "MAL-ResNet18": ["26.14 ± 0.58", "35.42 ± 0.32", "39.56 ± 0.23", "42.44 ± 0.63", "44.81 ± 0.40"],
    }
    assert {row[0]: row[1:] for row in table.rows} == printed
    bold = {(table.rows[r][0], c) for r, c in table.bold}
    assert bold == {(name, c) for name in ("MAL-VGG16", "MAL-ResNet18") for c in range(1, 6)}, "the paper's bold cells"
    assert r"MAL-VGG16 & $\mathbf{28.72 \pm 0.73}$ & $\mathbf{39.84 \pm 1.20}$" in table.latex()
    assert r"VAAL-VGG16 & $25.67 \pm 0.98$ & $35.67 \pm 0.42$" in table.latex()
    assert "| **26.14 ± 0.58** |" in table.markdown()
    assert len(rows) == len(table.data) == 20
    for row in rows:
        cell = table.data.query(
            f"dataset == 'cifar100-{row['backbone']}' and method == '{row['method']}' and labeled == {row['labeled']}"
        )
        assert cell["mean"].item() == pytest.approx(float(row["mean"]))
        assert cell["std"].item() == pytest.approx(float(row["std"]))


def test_published_curves_stand_beside_the_same_protocol_only(tmp_path: Path) -> None:
    paper_runs(tmp_path)
    write_chain(
        tmp_path,
        "mal",
        0,
        [20, 30, 40],
        name="vaal",
        dataset="cifar100",
        backbone="resnet18",
        initial=5000,
        budget=2500,
        pool=50_000,
    )
    write_chain(
        tmp_path,
        "mal",
        0,
        [20, 30],
        name="part",
        dataset="cifar100",
        backbone="resnet18",
        initial=1000,
        budget=1000,
        pool=10_000,
    )
    write_chain(
        tmp_path,
        "mal",
        0,
        [20, 30],
        name="short",
        dataset="cifar100",
        backbone="resnet18",
        initial=1000,
        budget=1000,
        pool=50_000,
    )
    write_chain(tmp_path, "mal", 0, [20, 30], name="small", dataset="cifar100", initial=1000, budget=1000, pool=50_000)
    write_chain(tmp_path, "mal", 0, [20, 30], name="other")
    published = references.read()

    def beside(name: str) -> tuple[list[str], str]:
        found, reason = references.matching(read(tmp_path, name)[1][0], published)
        return [f"{r.method} {len(r.mean)}" for r in found], reason

    assert beside("resnet18") == (["mal 5", "vaal 5"], "")
    assert beside("short") == (["mal 5", "vaal 5"], "")
    assert beside("vaal")[0] == []
    assert "rounds differ" in beside("vaal")[1]
    assert beside("part")[0] == [], "the same counts of another pool"
    assert "resnet18, vgg16_bn, not small_cnn" in beside("small")[1]
    assert beside("other") == ([], "")


def test_labels_needed_and_saved_by_hand(tmp_path: Path) -> None:
    for seed, shift in enumerate((0, 0, 10)):
        write_chain(tmp_path, "random", seed, [50, 60, 70])
        write_chain(tmp_path, "mal", seed, [60 - shift, 70 - shift, 80 - shift])
    write_chain(tmp_path, "entropy", 0, [40, 50], planned=3)
    _, (panel,) = read(tmp_path)
    table = label_tables.labels_table(panel, [60, 75, 90])
    assert table is not None
    assert table.rows == [
        ["MAL", "133 ± 58", "not reached (1 of 3 seeds)", "not reached"],
        ["Entropy", "not yet", "not yet", "not yet"],
        ["Random", "200 ± 0", "not reached", "not reached"],
    ]
    assert table.data.query("method == 'mal' and target == 75")["labels"].tolist() == [250, 250, math.inf]
    saved = label_tables.saved_table(panel)
    assert saved is not None
    # random's 70 at 300 labels: MAL is there at 200, 200 and 300, which saves 100, 100 and 0 of 300; the half width of
    # Student's interval is 4.303 * 57.7 / sqrt(3) = 143
    assert saved.rows[1] == ["Random", "70.00 ± 0.00", "300 ± 0", "233 ± 58", "+67 [−77, +210]", "+22%"]
    assert saved.rows[0] == ["Entropy", "50.00", "200", "≤ 100", "+100", "+50%"]


def test_a_method_that_never_gets_there_saves_nothing(tmp_path: Path) -> None:
    for seed in range(3):
        write_chain(tmp_path, "random", seed, [50, 90])
        write_chain(tmp_path, "mal", seed, [50, 60 if seed else 95])
    saved = label_tables.saved_table(read(tmp_path)[1][0])
    assert saved is not None
    assert saved.rows[0][3:] == ["not reached (2 of 3 seeds)", "not reached (2 of 3 seeds)", "–"]


def test_start_is_told_from_choice(tmp_path: Path) -> None:
    for seed in range(3):
        write_chain(tmp_path, "random", seed, [50 + seed, 60 + seed])
        write_chain(tmp_path, "mal", seed, [60 + seed, 80 + seed])
        write_chain(tmp_path, "mal_init_random", seed, [60 + seed, 70 + seed])
    table = label_tables.start_table(read(tmp_path)[1][0], "random")
    assert table is not None
    assert table.rows[0][2:] == [
        "20.00 ± 0.00",
        "+10.00 [+10.00, +10.00]",
        "+5.00 [+5.00, +5.00]",
        "+15.00 [+15.00, +15.00]",
    ]
    assert table.rows[1][3:5] == ["+10.00 [+10.00, +10.00]", "0.00 [0.00, 0.00]"]
    assert "MAL's query against a random one: +5.00 [+5.00, +5.00] in area" in table.note


def test_areas_span_what_every_method_has(tmp_path: Path) -> None:
    for seed in range(3):
        write_chain(tmp_path, "random", seed, [50, 60, 70])
        write_chain(tmp_path, "mal", seed, [60, 70, 80][: 3 if seed == 0 else 2], planned=3)
        write_chain(tmp_path, "entropy", seed, [55], planned=3)
    _, (panel,) = read(tmp_path)
    assert panel.horizon == 2
    np.testing.assert_allclose(panel.areas(), [[65, 65, 65], [np.nan] * 3, [55, 55, 55]])


def test_head_middle_and_tail(tmp_path: Path) -> None:
    sizes = [5, 500, 50, 400, 40, 4]
    per_class = [10.0, 90.0, 50.0, 80.0, 40.0, None]
    assert class_tables.groups_of(np.array(sizes)).tolist() == [2, 0, 1, 0, 1, 2]
    for seed in range(2):
        write_chain(
            tmp_path,
            "mal",
            seed,
            [50, 60],
            dataset="digits_imbalanced",
            classes=6,
            metrics={"pool_classes": sizes, "per_class": per_class, "query_classes": [1, 4, 2, 1, 1, 1]},
        )
    loaded, (panel,) = read(tmp_path)
    table, reason = class_tables.classes_table(panel, loaded.rounds)
    assert table is not None
    assert reason == ""
    assert table.rows == [
        [
            "MAL",
            *(f"{v} ± 0.00" for v in ("85.00", "45.00", "10.00")),
            *(f"{v} ± 0.0" for v in ("50.0", "30.0", "20.0")),
        ]
    ]


def test_imbalanced_pool_of_unknown_sizes_is_said_to_be_left_out(tmp_path: Path) -> None:
    write_chain(tmp_path, "mal", 0, [50], dataset="digits_imbalanced")
    loaded, (panel,) = read(tmp_path)
    table, reason = class_tables.classes_table(panel, loaded.rounds)
    assert table is None
    assert "how many images of each class" in reason


def test_overlap_and_balance_of_queries(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(1000)  # what seed 0 starts from
    rest = order[100:]
    first = {"mal": rest[:100], "entropy": rest[50:150], "random": rest[500:600]}
    for method, query in first.items():
        write_chain(
            tmp_path,
            method,
            0,
            [50, 60],
            queries=[query, query],
            metrics={"query_classes": [100] + [0] * 9} if method == "mal" else {},
        )
    loaded, (panel,) = read(tmp_path)
    shared = queries.overlap(panel, loaded.rounds)
    assert shared is not None
    np.testing.assert_allclose(shared.first, [[100, 50, 0], [50, 100, 0], [0, 0, 100]])
    np.testing.assert_allclose(shared.all, shared.first)
    assert shared.first_chance == pytest.approx(100 * 100 / 900)
    balance = queries.balance(panel, loaded.rounds)
    assert balance is not None
    assert balance.evenness[0, 0, 0] == 0.0, "a single class"
    assert 0.9 < balance.evenness[2, 0, 0] <= 1.0
    assert balance.lift[0].tolist() == [10.0] + [0.0] * 9


def test_text_of_numbers() -> None:
    assert mean_std(41.918, 0.7499) == "41.92 ± 0.75"
    assert mean_std(41.9, math.nan) == "41.90"
    assert mean_std(math.nan, math.nan) == "–"
    assert number(-0.001, sign=True) == "0.00"
    assert number(12345.6, 0) == "12,346"
    assert interval(-1.5, -2, -1) == "−1.50 [−2.00, −1.00]"
    assert latex_text("a_b & 5%") == r"a\_b \& 5\%"
    assert latex_text("12,346 ± 3", bold=True) == r"$\mathbf{12{,}346 \pm 3}$"


def test_looks_are_told_apart_and_do_not_depend_on_the_sweep() -> None:
    assert len({look.colour for look in style.LOOKS.values()}) == len(style.LOOKS)
    assert len({look.marker for look in style.LOOKS.values()}) == len(style.LOOKS)
    assert style.look("my_method") == style.look("my_method")
    assert style.ordered(["random", "my_method", "entropy_f", "entropy", "mal_mine", "mal"]) == [
        "mal",
        "mal_mine",
        "entropy",
        "entropy_f",
        "my_method",
        "random",
    ]
    on_f = style.look("entropy_f")
    assert (on_f.label, on_f.colour) == ("Entropy on MAL's F", style.look("entropy").colour)
    assert on_f.line != style.look("entropy").line
