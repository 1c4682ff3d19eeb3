"""From run folders to curves.csv, tables, figures and warnings, on made-up runs whose answers are known."""

import csv
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_runs import exactly, example, write_chain

from analysis import checks, class_tables, curves, label_tables, panels, queries, references, style, tables
from analysis.load import Runs, load
from analysis.table import interval, latex_text, mean_std, number
from mal import results

ANALYSIS = Path(curves.__file__).parent


def read(runs: Path, *names: str) -> tuple[Runs, list[panels.Panel]]:
    loaded = load(runs, names or ("sweep",))
    return loaded, panels.panels_of(loaded.rounds)


def findings(runs: Path, *names: str) -> dict[str, list[str]]:
    loaded, drawn = read(runs, *names)
    found: dict[str, list[str]] = {}
    for finding in checks.check(loaded, drawn):
        found.setdefault(finding.kind, []).append(finding.text)
    return found


def run(*arguments: object) -> int:
    return curves.main([str(argument) for argument in arguments])


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
        "digits,random,1,200,25,accuracy,62,2.82843,2",
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
        assert used <= {("mal", "results")}, module


# -- reading


def test_only_committed_rounds_count(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, "random", 0, [50, 60, 70])
    (chain / "round-2" / results.COMMITTED).unlink()
    loaded, _ = read(tmp_path)
    assert loaded.rounds["value"].tolist() == [50, 60]
    assert "random seed 0 (2 of 3, round 2 begun)" in findings(tmp_path)["incomplete chain"][0]


def test_an_edited_or_cut_round_is_left_out_and_named(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, "random", 0, [50, 60, 70])
    write_chain(tmp_path, "random", 1, [50, 60, 70])
    metrics = chain / "round-1" / results.METRICS
    metrics.write_text(metrics.read_text().replace("60", "90"))
    (chain / "round-2" / results.COMMITTED).write_text('{"format": 1,')
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
    write_chain(tmp_path, "random", 0, [50, 60], provenance={"git_commit": "b" * 40, "git_dirty": True})
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
        tmp_path, "mal", 1, [50, 60], name="other", provenance={"git_commit": "c" * 40, "fingerprint": "new"}
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


def test_other_initial_labels_pools_and_budgets_are_named(tmp_path: Path) -> None:
    for seed in range(5):
        write_chain(tmp_path, "random", seed, [50, 60])
        write_chain(
            tmp_path, "mal", seed, [50, 60], initial=100 if seed else 90, provenance={"pool": f"pool-{seed % 4}"}
        )
    found = findings(tmp_path)
    assert found["different initial labels"] == ["Digits, seed 0: not the same initial labels: mal / random"] or found[
        "different initial labels"
    ] == ["Digits, seed 0: not the same initial labels: random / mal"]
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


# -- tables


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
    # random's 70 at 300 labels: MAL is there at 200, 200 and 300, which saves 100, 100 and 0 of 300
    assert saved.rows[1] == ["Random", "70.00 ± 0.00", "300 ± 0", "233 ± 58", "+67 [0, +100]", "+22%"]
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
    assert style.ordered(["random", "my_method", "entropy", "mal_mine", "mal"]) == [
        "mal",
        "mal_mine",
        "entropy",
        "my_method",
        "random",
    ]


# -- the report


class Links(HTMLParser):
    """Everything in a page that could make a browser ask for something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")
        ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    example(folder / "runs")
    assert run(f"runs={folder / 'runs'}", f"out={folder}") == 0
    return folder / "sweep"


def test_report_html_is_self_contained(written: Path) -> None:
    page = (written / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links.found)
    assert not links.tags & {"script", "link", "iframe", "object", "embed", "video", "audio", "base", "form"}
    assert not re.findall(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page
    assert page.count("data:image/png;base64,") == 7


def test_report_has_every_figure_table_and_warning(written: Path) -> None:
    pictures = {"curves", "gain", "hours", "map_digits_imbalanced", "penalty", "query_classes", "query_overlap"}
    for ending in ("png", "pdf"):
        assert {p.stem for p in written.glob(f"*.{ending}")} == pictures
        assert all(p.stat().st_size > 5000 for p in written.glob(f"*.{ending}"))
    names = {"rounds", "area", "labels", "saved", "start", "classes", "cost"}
    stems = {f"{name}_digits_imbalanced" for name in names} | {"penalty", "penalty_holm"}
    for ending in ("csv", "md", "tex"):
        assert {p.stem for p in (written / "tables").glob(f"*.{ending}")} == stems
    text = (written / "report.md").read_text()
    for words in (
        "failed chain",
        "no metric",
        "mixed code",
        "RuntimeError: out of memory",
        "GPU-hours",
        "## Who beats whom",
    ):
        assert words in text
    for picture in pictures:
        assert f"]({picture}.png)" in text
    assert "Left out" not in text


def test_a_partial_sweep_gives_a_figure_and_says_what_is_missing(tmp_path: Path) -> None:
    write_chain(tmp_path / "runs", "mal", 0, [60, 70], planned=5)
    write_chain(tmp_path / "runs", "random", 0, [50], planned=5)
    out = tmp_path / "sweep"
    (out / "tables").mkdir(parents=True)
    before = [out / "gain.png", out / "map_digits.pdf", out / "tables" / "area_other.tex"]
    for path in (*before, out / "notes.txt"):
        path.touch()
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "baseline=entropy") == 0
    assert not any(path.exists() for path in before), "nothing of an earlier report is left"
    assert (out / "notes.txt").exists(), "but what others wrote is"
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "mal seed 0 (2 of 5); random seed 0 (1 of 5)" in text
    assert "one seed" in text
    assert "gains over entropy, which did not run" in text
    assert "pairwise penalties: they need two methods" in text
    assert "map of features" in text
    assert (tmp_path / "sweep" / "curves.png").stat().st_size > 5000


def test_without_figures(tmp_path: Path) -> None:
    for method in ("mal", "random"):
        write_chain(tmp_path / "runs", method, 0, [60, 70])
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures", "targets=[65]") == 0
    written = {p.relative_to(tmp_path / "sweep").as_posix() for p in (tmp_path / "sweep").rglob("*")}
    assert {"curves.csv", "report.md", "report.html", "tables/labels_digits.tex"} <= written
    assert not {name for name in written if name.endswith((".png", ".pdf"))}
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "![" not in text
    assert "| Method | 65% |" in text
