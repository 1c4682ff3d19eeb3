"""Chains whose labels people give: the same rounds as by the built-in oracle, whenever they are interrupted."""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.chain import run_chain
from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.labels import store
from mal.labels.asking import INITIAL, SHEET, TO_LABEL, awaited
from mal.labels.importing import import_files
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.run.ledger import read_history
from tests.chains import StopsAt, outcome, run_chain_process, write_chain
from tests.labels.exports import cvat_xml, label_studio, written, zipped
from tests.labels.pools import Label, chain_of, filled, truth, waits, write_pool
from tests.made_up_pools import write_mask_folder


def label_all(chain: Path, config: Chain, label: Label = truth) -> None:
    """An annotator beside a chain, until it is done."""
    while run_folder.committed_rounds(chain) < config.rounds:
        run_chain(chain, None, Interrupt())
        if waits(chain, config):
            import_files(chain.parents[1], [filled(chain, chain.parents[2] / "filled.csv", label)])


def science(chain: Path) -> dict[str, Any]:
    """What is to be the same, but for the classes of queries, which nobody knows when they are asked for."""
    return {name: {k: v for k, v in each.items() if k != "query_classes"} for name, each in outcome(chain).items()}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="module")
def built_in(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By the built-in oracle."""
    found = {}
    for method in ("mal", "entropy"):
        chain = write_chain(tmp_path_factory.mktemp("runs"), chain_of(pool, method=method, oracle="truth"))
        run_chain(chain, None, Interrupt())
        found[method] = science(chain)
    return found


@pytest.mark.parametrize("method", ["mal", "entropy"])
def test_an_annotator_who_knows_gives_the_rounds_of_the_built_in_oracle(
    pool: Path, built_in: dict[str, Any], tmp_path: Path, method: str
) -> None:
    config = chain_of(pool, method=method)
    chain = write_chain(tmp_path, config)
    label_all(chain, config)
    assert science(chain) == built_in[method]
    for number in range(3):
        assert run_folder.read_round(chain / f"round-{number}").metrics["refused"] == 0
    assert {TO_LABEL, SHEET} <= set(run_folder.verify_hashes(chain / "round-0"))
    assert {TO_LABEL, SHEET} <= set(run_folder.verify_hashes(chain / INITIAL))
    assert "http" not in (chain / "round-0" / SHEET).read_text()
    row = store.read_rows(chain / "round-0" / TO_LABEL)[0]
    assert row[1].endswith(".png")
    assert row[2] == "1"
    assert row[3] in ("ant", "bee", "wasp")
    assert row[4].startswith(f"{method}: entropy ")


def test_a_stop_at_any_look_changes_nothing(pool: Path, built_in: dict[str, Any], tmp_path: Path) -> None:
    config = chain_of(pool, "checkpoint_minutes=0.0001")
    for looks in (2, 9):
        chain = write_chain(tmp_path / str(looks), config)
        while run_folder.committed_rounds(chain) < config.rounds:
            with contextlib.suppress(Interrupted):
                run_chain(chain, None, StopsAt(looks))
            looks += 2
            if waits(chain, config):
                import_files(chain.parents[1], [filled(chain, tmp_path / "filled.csv")])
        assert science(chain) == built_in["entropy"]


OURS = (INITIAL, run_folder.ANSWERS, store.FOLDER, TO_LABEL, SHEET, run_folder.COMMITTED)


def killed_at(operation: int, work: Any) -> bool:
    """Whether `work`, in a copy of this process, was killed before its n-th change of a file of labels."""
    child = os.fork()
    if child == 0:
        left = [operation]

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event in ("os.rename", "os.remove") or (
                event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if writes and any(name in str(arguments[0]) for name in OURS):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def test_a_kill_before_any_change_of_labels_files_loses_and_doubles_nothing(
    pool: Path, built_in: dict[str, Any], tmp_path: Path
) -> None:
    config = chain_of(pool)
    chain, sweep = write_chain(tmp_path, config), tmp_path / config.name
    operation, kills = 0, 0
    while run_folder.committed_rounds(chain) < config.rounds:
        if killed_at(operation, lambda: run_chain(chain, None, Interrupt())):
            kills, operation = kills + 1, operation + 2
            continue
        operation = 0
        while waits(chain, config):
            filled(chain, tmp_path / "filled.csv")
            before = len(store.batches(sweep))
            if killed_at(operation, lambda: import_files(sweep, [tmp_path / "filled.csv"])):
                kills, operation = kills + 1, operation + 1
                assert len(store.batches(sweep)) - before in (0, 1)
        operation = 0
    assert kills > 20
    assert science(chain) == built_in["entropy"]
    assert len(store.batches(sweep)) == 3


def label_studio_project(chain: Path, to: Path) -> Path:
    """The whole project of Label Studio, with the rounds before: its JSON."""
    return written(to / "project-3.json", label_studio(asked_so_far(chain)))


def cvat_task(chain: Path, to: Path) -> Path:
    """The same from CVAT: a zip with its XML."""
    return zipped(to / "task.zip", "annotations.xml", cvat_xml(asked_so_far(chain)))


def asked_so_far(chain: Path) -> dict[str, str]:
    """What an annotator who knows says of all that was asked for: label by path."""
    return {row[1]: truth(row[1]) for path in sorted(chain.glob(f"*/{TO_LABEL}")) for row in store.read_rows(path)}


@pytest.mark.parametrize("method", ["mal", "entropy"])
def test_exports_of_label_studio_and_cvat_give_the_rounds_of_the_built_in_oracle_killed_in_between(
    pool: Path, built_in: dict[str, Any], tmp_path: Path, method: str
) -> None:
    config = chain_of(pool, method=method)
    chain, sweep = write_chain(tmp_path, config), tmp_path / config.name
    for number, export in enumerate((label_studio_project, cvat_task, label_studio_project)):
        run_chain(chain, None, Interrupt())
        assert waits(chain, config)
        assert run_folder.committed_rounds(chain) == number
        answers = export(chain, tmp_path)
        assert killed_at(1, lambda answers=answers: import_files(sweep, [answers]))  # type: ignore[misc]
        assert waits(chain, config), "an import that was killed gave nothing"
        taken = import_files(sweep, [answers])
        assert (len(taken.rows), taken.before) == ((6, 0), (5, 6), (5, 11))[number]
        assert killed_at(1, lambda: run_chain(chain, None, Interrupt()))
        assert run_folder.committed_rounds(chain) == number
    run_chain(chain, None, Interrupt())
    assert science(chain) == built_in[method]


def test_some_labels_are_enough_and_refused_images_leave_the_pool(pool: Path, tmp_path: Path) -> None:
    config = chain_of(pool, "labels.enough=0.6", "rounds=4")
    chain = write_chain(tmp_path, config)

    def hesitant(path: str) -> str:
        number = int(Path(path).stem)
        return "Cannot tell" if number % 5 == 0 else "" if number % 5 == 1 else truth(path)

    run_chain(chain, None, Interrupt())
    found = awaited(chain, config)
    assert str(found) == "waits for 6 labels (0 given, 4 are enough)"
    label_all(chain, config, hesitant)
    refused: set[int] = set()
    for number in range(4):
        committed = run_folder.read_round(chain / f"round-{number}")
        assert committed.refused is not None
        assert refused <= set(committed.refused.tolist())
        refused = set(committed.refused.tolist())
        assert committed.metrics["refused"] == len(refused)
        assert committed.metrics["pool"] == 60 - len(refused)
        assert not refused & set(committed.labeled.tolist())
        if committed.query is not None:
            assert not refused & set(committed.query.tolist())
    assert refused
    read_history(chain, 4)
    # What was left unanswered may come late, as images that were not asked for may not.
    late = tmp_path / "late.csv"
    asked = [row for n in range(3) for row in store.read_rows(chain / f"round-{n}" / TO_LABEL)]
    left = {row[0]: row[1] for row in asked if int(Path(row[1]).stem) % 5 == 1}
    late.write_text("index,label\n" + "".join(f"{index},{truth(path)}\n" for index, path in left.items()))
    assert len(import_files(chain.parents[1], [late]).rows) == len(left) > 0


def test_known_labels_are_there_at_first(pool: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.csv"
    known.write_text("path,label\n" + "".join(f"{name}/{n}.png,{name}\n" for name in ("ant", "bee") for n in (1, 2)))
    config = chain_of(pool, f"dataset.train_list={known}")
    chain = write_chain(tmp_path, config)
    label_all(chain, config)
    assert len(store.read_rows(chain / INITIAL / TO_LABEL)) == 2
    first = run_folder.read_round(chain / "round-0").labeled
    assert {1, 2, 12, 13} & set(first.tolist())
    assert len(first) == 6
    more = known.read_text() + "".join(f"wasp/{n}.png,wasp\n" for n in range(5))
    known.write_text(more)
    config = chain_of(pool, f"dataset.train_list={known}", "name=all-known", "rounds=1")
    chain = write_chain(tmp_path, config)
    run_chain(chain, None, Interrupt())  # nobody is asked: there are nine labels, and six were wanted
    assert len(run_folder.read_round(chain / "round-0").labeled) == 9


def test_maps_come_as_png_files(tmp_path: Path) -> None:
    root = tmp_path / "streets"
    write_mask_folder(root)
    words = ["dataset=mask_folder", f"dataset.root={root}", "dataset.size=32", "backbone=small_drn", "rounds=2"]
    words += [
        "initial=3",
        "budget=2",
        "task.epochs=1",
        "minimax.epochs=1",
        "device=cpu",
        "threads=1",
        "methods=[entropy]",
    ]

    found = {}
    for oracle in ("truth", "files"):
        (config,) = compose_sweep(
            [*words, f"data={tmp_path / 'data'}", "seeds=[0]", f"oracle={oracle}", f"name={oracle}"]
        ).chains
        chain = write_chain(tmp_path, config)
        while run_folder.committed_rounds(chain) < 2:
            run_chain(chain, None, Interrupt())
            if waits(chain, config):
                number = run_folder.committed_rounds(chain)
                rows = store.read_rows((chain / INITIAL if number == 0 else chain / "round-0") / TO_LABEL)
                drawn = tmp_path / f"drawn-{number}"
                drawn.mkdir()
                for row in rows:
                    mask = root / "masks" / "train" / Path(row[1]).with_suffix(".png")
                    (drawn / mask.name).write_bytes(mask.read_bytes())
                import_files(chain.parents[1], [drawn])
        found[oracle] = science(chain)
    assert found["files"] == found["truth"]


def test_a_process_that_waits_leaves_at_once_and_says_so(pool: Path, tmp_path: Path) -> None:
    config = chain_of(pool)
    chain = write_chain(tmp_path, config)
    for _ in range(2):
        ended = run_chain_process(chain)
        assert ended.returncode == 0, ended.stderr
        assert "waits for 6 labels (0 given)" in ended.stderr
    assert np.load(chain / INITIAL / run_folder.QUERY).shape == (6,)
