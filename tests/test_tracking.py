"""Trackers: one run per chain however often it is interrupted, no gap, no step twice; a broken one costs nothing.

PREEMPTIONS=20 interrupts more often than by default. Each tracker is tested where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mal.chain import run_chain
from mal.config.checks import TRACKERS
from mal.files import write_json
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.run.windows import FILE
from mal.tracking import follow
from mal.tracking.entries import Reader
from mal.tracking.trackers import TRACKERS as MAKERS
from mal.tracking.trackers import run_id, run_name
from sweeps.launch import main
from tests.chains import SHORT, StopsAt, chain_config, write_chain

PREEMPTIONS = int(os.environ.get("PREEMPTIONS", "3"))
INSTALLED = [name for name in TRACKERS if importlib.util.find_spec(name)]
CONFIG = ("rounds=3", "keep_queries=2", "minimax.epochs=1")
Curves = dict[str, list[tuple[int, float]]]  # by name: step or labels, value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that nothing happened to."""
    chain = write_chain(tmp_path_factory.mktemp("whole"), chain_config(*CONFIG))
    run_chain(chain, None, Interrupt())
    return chain


def curves(chain: Path) -> Curves:
    """What a tracker must have of a chain."""
    found: Curves = {}
    for entry in Reader(chain).new():
        for name, value in entry.values.items():
            if not name.endswith(("images_per_s", "round/seconds")):
                found.setdefault(name, []).append((entry.step if entry.labeled is None else entry.labeled, value))
    return found


def interrupted(chain: Path, times: int) -> None:
    """Run a chain that is stopped so many times."""
    for time in range(times):
        with pytest.raises(Interrupted):
            run_chain(chain, None, StopsAt(5 + time % 4))
    run_chain(chain, None, Interrupt())


def test_entries_are_those_of_the_windows_and_rounds_in_order(whole: Path) -> None:
    entries = Reader(whole).new()
    steps = [entry.step for entry in entries if entry.labeled is None]
    windows = [json.loads(line) for line in (whole / FILE).read_text().splitlines()]
    assert len(steps) == len(windows)
    assert steps == sorted(set(steps))
    phases = {(window["round"], window["phase"]): window["steps"] for window in windows}
    assert steps[-1] == sum(phases.values())
    rounds = [entry for entry in entries if entry.labeled is not None]
    assert [entry.labeled for entry in rounds] == [20, 40, 60]
    assert [len(entry.pictures) for entry in rounds] == [2, 2, 0]
    metrics = json.loads((whole / "round-1" / "metrics.json").read_text())
    assert rounds[1].values["round/accuracy"] == metrics["value"]
    assert entries.index(rounds[0]) == sum(window["round"] == 0 for window in windows)


def test_a_resumed_chain_has_the_same_entries_and_a_cut_line_none(whole: Path, tmp_path: Path) -> None:
    chain = write_chain(tmp_path, chain_config(*CONFIG))
    reader, found = Reader(chain), []
    for left in range(PREEMPTIONS):
        with pytest.raises(Interrupted):
            run_chain(chain, None, StopsAt(5 + left % 4))
        content = (chain / FILE).read_bytes()
        (chain / FILE).write_bytes(content[:-5])  # a line that is being written
        found += reader.new()
        (chain / FILE).write_bytes(content)
    run_chain(chain, None, Interrupt())
    found += reader.new()
    assert curves(chain) == curves(whole)
    assert sorted(entry.step for entry in found) == sorted(entry.step for entry in Reader(whole).new())


def read_tensorboard(folder: Path, chain: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = folder / run_name(chain)
    assert len(list(place.iterdir())) == 1
    events = EventAccumulator(str(place), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert len(events.Images("query/00")) == 2
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log_records(content: bytes, block: int = 2**15) -> Iterator[bytes]:
    """The records of W&B's file: a log as LevelDB writes it, in blocks, behind seven bytes of its own."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or a last part
            yield parts
            parts = b""


def read_wandb(folder: Path, chain: Path) -> Curves:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (folder / "wandb").glob(f"offline-run-*-{run_id(chain)}/*.wandb")
    found: Curves = {}
    for data in log_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if "/" in name and not name.startswith("query/"):
                step = row["labeled"] if name.startswith("round/") else row["_step"]
                found.setdefault(name, []).append((step, value))
    return found


def read_mlflow(folder: Path, chain: Path) -> Curves:
    from mlflow import MlflowClient

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = MlflowClient(tracking_uri=folder.absolute().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name(chain.parents[1].name).experiment_id])
    assert run.data.params["seed"] == "0"
    assert len(client.list_artifacts(run.info.run_id)) == 2
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(point.step, point.value) for point in points] for name, points in history.items()}


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}


@pytest.mark.skipif(not INSTALLED, reason="no tracker is installed (pip install .[tensorboard])")
def test_an_interrupted_chain_leaves_one_unbroken_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "END_SECONDS", 600)  # a busy machine takes its time to import trackers
    chain = write_chain(tmp_path, chain_config(*CONFIG, f"tracker=[{','.join(INSTALLED)}]"))
    interrupted(chain, PREEMPTIONS)
    expected = curves(whole)
    for name in INSTALLED:
        found = READERS[name](chain.parents[1] / follow.FOLDER / name, chain)
        told = {key: points for key, points in found.items() if not key.endswith(("images_per_s", "round/seconds"))}
        assert told.keys() == expected.keys(), name
        for key, points in expected.items():
            assert [step for step, _ in told[key]] == [step for step, _ in points], (name, key)
            assert [v for _, v in told[key]] == pytest.approx([v for _, v in points], rel=1e-6), (name, key)


def test_a_broken_tracker_is_said_once_and_left(whole: Path, monkeypatch: pytest.MonkeyPatch, caplog: object) -> None:
    read, write = os.pipe()
    os.close(write)
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    told: list[int] = []

    class Full:
        """A tracker whose disk is full after three entries."""

        def __init__(self, folder: Path, chain: Path, config: dict[str, object]) -> None:
            assert config["task.batch"] == 64

        def write(self, entry: object) -> None:
            told.append(1)
            if len(told) > 3:
                raise OSError(28, "No space left on device")

        def flush(self) -> None:
            """Nothing."""

        def close(self) -> None:
            """Nothing."""

    monkeypatch.setitem(MAKERS._entries, "full", Full)
    follow.mirror(whole, ["full"], look=0.1)
    assert len(told) == 4
    (record,) = caplog.records  # type: ignore[attr-defined]
    assert "tracker full is left, as it fails: OSError" in record.getMessage()


def test_a_chain_whose_trackers_cannot_start_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = write_chain(tmp_path, chain_config(method="random"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with follow.followed(chain, ["tensorboard"], Interrupt()):
        write_json(chain / "x.json", {})
    run_chain(chain, None, Interrupt())
    assert run_folder.committed_rounds(chain) == 2


def test_unknown_and_missing_trackers_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [*SHORT, "cluster=local", "seeds=1", f"runs={tmp_path}"]
    assert main([*arguments, "tracker=tensorbord"]) == 2
    assert "tracker=tensorbord is unknown; did you mean tensorboard?" in capsys.readouterr().err
    for name in set(TRACKERS) - set(INSTALLED):
        assert main([*arguments, f"tracker=[{name}]"]) == 2
        assert f"pip install .[{name}]" in capsys.readouterr().err
