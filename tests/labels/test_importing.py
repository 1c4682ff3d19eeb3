"""Files of labels in their real formats, merged, and every kind of bad file: a clear error, and nothing taken."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.labels import store
from mal.labels.asking import TO_LABEL, Asked
from mal.labels.formats import Said, read_file
from mal.labels.importing import Merger, find_image, import_files
from mal.run import folder as run_folder
from sweeps import label
from tests.labels.exports import cvat_xml, datumaro, label_studio, label_studio_min, skip, written, zipped
from tests.labels.pools import NAMES, filled, truth
from tests.made_up_pools import png_of, write_mask_folder


def chain_of(sweep: Path) -> Path:
    return run_folder.chain_folders(sweep.parent, sweep.name)[0]


def asked(sweep: Path) -> list[tuple[int, str]]:
    rows = store.read_rows(chain_of(sweep) / "initial" / TO_LABEL)
    return [(int(row[0]), row[1]) for row in rows]


def answered(sweep: Path) -> dict[int, str]:
    return {int(row[0]): row[2] for folder in store.batches(sweep) for row in store.read_rows(folder / store.TABLE)}


# ------------------------------------------------------------------------- real formats

FORMATS: dict[str, Callable[[Path, dict[str, str]], Path]] = {
    "label studio": lambda to, a: written(to / "project-3.json", label_studio(a)),
    "label studio, an address": lambda to, a: written(to / "p.json", label_studio(a, "https://example.org/pool/{}")),
    "label studio, min": lambda to, a: written(to / "min.json", label_studio_min(a)),
    "cvat xml": lambda to, a: written(to / "annotations.xml", cvat_xml(a)),
    "cvat zip": lambda to, a: zipped(to / "task.zip", "annotations.xml", cvat_xml(a)),
    "datumaro": lambda to, a: written(to / "default.json", datumaro(a)),
    "datumaro zip": lambda to, a: zipped(to / "task.zip", "annotations/default.json", json.dumps(datumaro(a))),
    "csv of a spreadsheet": lambda to, a: written(
        to / "filled.csv", "\ufeffPath;Label;remark\r\n" + "".join(f"{p};{c};sure\r\n" for p, c in a.items())
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_labels(sweep: Path, tmp_path: Path, name: str) -> None:
    answers = {path: truth(path) for _, path in asked(sweep)}
    taken = import_files(sweep, [FORMATS[name](tmp_path, answers)])
    assert answered(sweep) == {index: truth(path) for index, path in asked(sweep)}
    assert taken.missing == []
    assert taken.before == 0


def test_a_file_uploaded_to_label_studio_is_known_by_the_name_behind_its_mark(tmp_path: Path) -> None:
    asked = Asked({3: "ant/1a2b3c4d-x.png", 5: "bee/y.png"}, [3, 5])
    for name, index in (("e875f554-y.png", 5), ("e875f554-1a2b3c4d-x.png", 3)):
        (said,) = read_file(written(tmp_path / "a.json", label_studio({name: "bee"}, "/data/upload/3/{}")))
        assert find_image(said, asked) == index


def test_a_task_of_label_studio_that_all_skipped_cannot_be_told_and_a_skip_beside_an_answer_says_nothing(
    sweep: Path, tmp_path: Path
) -> None:
    (first, p), (second, q), (_, unseen), *_ = asked(sweep)
    tasks = label_studio({p: "ant", q: "ant", unseen: "ant"})
    tasks[0]["annotations"] += [skip(tasks[0], 2)]
    tasks[1]["annotations"] = [skip(tasks[1], 1), skip(tasks[1], 2), skip(tasks[1], 2)]
    tasks[2]["annotations"] = []  # only a prediction and a draft
    import_files(sweep, [written(tmp_path / "project.json", tasks)])
    assert answered(sweep) == {first: "ant", second: "cannot tell"}


def test_tasks_and_images_that_nobody_answered_yet_say_nothing(sweep: Path, tmp_path: Path) -> None:
    (first, p), (_, q), *_ = asked(sweep)
    (tmp_path / "a.xml").write_text(cvat_xml({p: "ant"}).replace("another/9.png", q))
    for path in (written(tmp_path / "a.json", label_studio_min({p: "ant", q: ""})), tmp_path / "a.xml"):
        import_files(sweep, [path])
        assert answered(sweep) == {first: "ant"}


def test_annotators_are_merged_by_majority_and_disagreements_told(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, p), (second, q), *_ = asked(sweep)
    says = [("ant", "ant"), ("ant", "bee"), ("wasp", "cannot tell")]
    files = [
        written(tmp_path / f"{n}.csv", f"index,label\n{first},{a}\n{second},{b}\n") for n, (a, b) in enumerate(says)
    ]
    assert label.main([f"runs={sweep.parent}", f"name={sweep.name}", f"import={','.join(map(str, files))}"]) == 0
    told = capsys.readouterr().out
    assert f"{p}: 2 x ant, 1 x wasp" in told
    assert f"{q}: 1 x ant, 1 x bee, 1 x cannot tell" in told
    assert "5 images still lack an answer" in told
    assert "waits for 6 labels (1 given)" in told
    assert answered(sweep) == {first: "ant"}
    task = label_studio({p: "bee"})[0]
    task["annotations"] += [skip(task, 2)]
    with pytest.raises(ValueError, match="was labelled ant before"):  # the two of a task: one skipped it
        import_files(sweep, [written(tmp_path / "two.json", [task])])


def test_the_same_file_again_adds_nothing(sweep: Path, tmp_path: Path) -> None:
    path = filled(chain_of(sweep), tmp_path / "filled.csv")
    import_files(sweep, [path])
    taken = import_files(sweep, [path])
    assert (len(taken.rows), taken.before, len(store.batches(sweep))) == (0, 6, 1)


# ------------------------------------------------------------------------- bad files

ROW = "index,path,label\n"
BAD: dict[str, tuple[str, str | bytes | Callable[[dict[str, str]], Any], str]] = {
    "not there": ("gone.csv", "", "gone.csv cannot be read (No such file or directory)"),
    "of another kind": ("labels.xlsx", b"PK", "labels.xlsx is none of the files that are read"),
    "not text": (
        "a.csv",
        b"index,label\n0,caf\xe9\n",
        "a.csv is not UTF-8 text (invalid continuation byte at",
    ),
    "no titles": ("a.csv", "0,ant\n", "line 1: the columns are ['0', 'ant'], without `label`"),
    "a title twice": ("a.csv", "index,label,label\n", "line 1: a column's title is there twice"),
    "a row cut": ("a.csv", ROW + "0,ant/0.png,ant\n10\n", "line 3: 1 columns where line 1 has 3"),
    "a quote left open": ("a.csv", ROW + '0,"ant/0.png,ant\n', "not a CSV (unexpected end of data)"),
    "no index": ("a.csv", "index,label\none,ant\n", "line 2: index 'one' is not a whole number from 0"),
    "no image": ("a.csv", "index,label\n,ant\n", "line 2: neither an index nor a path says which image is meant"),
    "nothing filled in": ("a.csv", "index,label\n0,\n", "no image has a label there"),
    "a class unknown": ("a.csv", "index,label\n0,wsap\n", "line 2: 'wsap' is no class; did you mean wasp?"),
    "another's index": ("a.csv", "index,label\n0,ant\n1,ant\n", "line 3: index 1 was not asked for"),
    "another's path": ("a.csv", "path,label\nant/1.png,ant\n", "line 2: ant/1.png was not asked for"),
    "index and path apart": ("a.csv", ROW + "0,bee/0.png,ant\n", "line 2: index 0 is ant/0.png, not bee/0.png"),
    "a path for two": ("a.csv", "path,label\n0.png,ant\n", "0.png may be ant/0.png or bee/0.png"),
    "an image twice": ("a.csv", "index,label\n0,ant\n0,ant\n", "line 3: the image is there twice, first in"),
    "a contradiction": ("a.csv", "index,label\n0,ant\n0,bee\n", "which says 'ant', not 'bee'"),
    "json cut": ("a.json", '[{"id": 1, "data": {"im', "a.json is not valid JSON"),
    "other json": ("a.json", '{"images": [], "annotations": []}', "neither Label Studio's JSON (a list of tasks) nor"),
    "two choices": (
        "a.json",
        lambda a: _changed(label_studio(a), lambda r: r["value"].update(choices=["ant", "bee"])),
        "task 1: 2 classes for one image: ant, bee",
    ),
    "two answers in min": (
        "a.json",
        '[{"image": "ant/0.png", "id": 1, "choice": "ant", "sure": "yes", "annotator": 1}]',
        "task 1: 2 answers (choice, sure): labels are those of one Choices",
    ),
    "min of texts": (
        "a.json",
        lambda a: [task | {"choice": ["a", {}]} for task in label_studio_min(a)],
        "task 1: choice is not a choice: labels are those of image classification",
    ),
    "boxes": (
        "a.json",
        lambda a: _changed(label_studio(a), lambda r: r.update(type="rectanglelabels")),
        "task 1: rectanglelabels is not a choice",
    ),
    "xml cut": ("a.xml", lambda a: cvat_xml(a)[:-30], "a.xml is not valid XML"),
    "xml of another kind": ("a.xml", "<annotation><object/></annotation>", "is not CVAT's XML of images"),
    "xml with entities": ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "defines entities"),
    "boxes in xml": ("a.xml", lambda a: cvat_xml(a, '<box label="ant"/>'), "box is not a label of the whole image"),
    "label_id out of range": (
        "a.json",
        lambda a: json.loads(json.dumps(datumaro(a)).replace('"label_id": 0', '"label_id": 7')),
        "label_id 7 is not one of the 3 labels",
    ),
    "not a zip": ("a.zip", b"PK\x03\x04 cut", "a.zip is not a readable zip"),
    "a zip without labels": ("a.zip", b"", "a.zip is not a readable zip"),
}


def _changed(export: list[dict[str, Any]], change: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    change(export[0]["annotations"][0]["result"][0])
    return export


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_and_nothing_is_taken(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    name, content, words = BAD[kind]
    path = tmp_path / name
    if callable(content):
        written(path, content({p: truth(p) for _, p in asked(sweep)}))
    elif name != "gone.csv":
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert label.main([f"runs={sweep.parent}", f"name={sweep.name}", f"import={path}"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.startswith("label.py: ")
    assert store.batches(sweep) == []
    assert not list((sweep / store.FOLDER).glob("batch-*")) if (sweep / store.FOLDER).exists() else True


def test_a_good_line_beside_bad_ones_is_not_taken_and_all_are_told(sweep: Path, tmp_path: Path) -> None:
    rows = ["0,ant", "1,ant", "10,be", "20,ant", "20,bee"]
    path = written(tmp_path / "a.csv", "index,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=r"(?s)3 faults, so nothing was taken:.*line 3.*line 4.*line 6"):
        import_files(sweep, [path])
    assert answered(sweep) == {}


def test_what_was_taken_does_not_change(sweep: Path, tmp_path: Path) -> None:
    import_files(sweep, [written(tmp_path / "a.csv", "index,label\n0,ant\n10,cannot tell\n")])
    for row, was in (("0,bee", "ant"), ("10,ant", "cannot tell")):
        with pytest.raises(ValueError, match=f"was labelled {was} before"):
            import_files(sweep, [written(tmp_path / "b.csv", f"index,label\n{row}\n20,ant\n")])
    assert answered(sweep) == {0: "ant", 10: "cannot tell"}


def test_a_store_that_was_edited_is_named(sweep: Path, tmp_path: Path) -> None:
    import_files(sweep, [written(tmp_path / "a.csv", "index,label\n0,ant\n")])
    table = store.batches(sweep)[0] / store.TABLE
    table.write_text(table.read_text().replace(",ant", ",bee"))
    with pytest.raises(run_folder.DamagedRun, match=r"answers\.csv is not the file that was committed"):
        store.read(sweep, NAMES)


MAPS: dict[str, tuple[bytes, str]] = {
    "size": (png_of(np.zeros((45, 79), np.uint8)), "it is 79 x 45, and its image 80 x 45"),
    "class": (png_of(np.full((45, 80), 7, np.uint8)), "it has the classes [7], not 0 to 2 or 255"),
    "no image": (b"\x89PNG cut", "it cannot be read as a map"),
}


@pytest.mark.parametrize("kind", MAPS)
def test_a_bad_map_is_named_and_nothing_is_taken(tmp_path: Path, kind: str) -> None:
    from mal.config.compose import compose_sweep
    from mal.data.dataset import load
    from mal.labels.asking import asking_folder
    from mal.labels.sheet import request
    from tests.chains import write_chain

    write_mask_folder(tmp_path / "streets")
    words = ["dataset=mask_folder", f"dataset.root={tmp_path / 'streets'}", "dataset.size=32", "backbone=small_drn"]
    words += ["oracle=files", "initial=2", "budget=2", "methods=[random]", f"data={tmp_path / 'data'}"]
    (config,) = compose_sweep(words).chains
    chain = write_chain(tmp_path / "runs", config)
    files = request(load(config.dataset, tmp_path, 0).train, np.array([0, 1]), "", ["", ""], ["", ""])  # type: ignore[arg-type]
    run_folder.commit(asking_folder(chain, 0), {run_folder.QUERY: np.array([0, 1]), **files})
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "0.png").write_bytes((tmp_path / "streets" / "masks" / "train" / "0.png").read_bytes())
    (drawn / "1.png").write_bytes(MAPS[kind][0])
    with pytest.raises(ValueError, match="1 faults") as told:
        import_files(chain.parents[1], [drawn])
    assert MAPS[kind][1] in str(told.value)
    assert store.batches(chain.parents[1]) == []


def test_many_answers_are_merged_in_one_pass() -> None:
    paths = {index: f"folder-{index % 97}/{index}.png" for index in range(20_000)}
    asked = Asked(paths, list(paths))
    said = [Said("a", "a", None, path, NAMES[index % 3]) for index, path in paths.items()]
    none = store.Answers(np.empty(0, np.int64), np.empty(0, np.int64), {})
    taken = Merger(asked, none, NAMES).merge(said)
    assert [row.label for row in taken.rows] == [NAMES[index % 3] for index in paths]


def test_our_own_csv_reads_back(sweep: Path, tmp_path: Path) -> None:
    path = filled(chain_of(sweep), tmp_path / "filled.csv")
    assert [each.label for each in read_file(path)] == [truth(p) for _, p in asked(sweep)]
    text = io.StringIO(path.read_text(), newline="")
    assert next(csv.reader(text)) == ["index", "path", "rank", "guess", "reason", "label"]
