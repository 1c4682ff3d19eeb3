"""What training says of each window: log, windows.jsonl, heartbeat; a diverged chain is named, a good one is not."""

import json
import math
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mal.chain import run_chain
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.run.windows import FILE, diverged
from sweeps import status
from tests.chains import chain_config, run_chain_process, write_chain


def windows(chain: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (chain / FILE).read_text().splitlines()]


@pytest.mark.parametrize(
    ("first", "value", "told"),
    [
        (2.3, 2.0, ""),
        (2.3, 22.0, ""),
        (2.3, 24.0, "loss x is 24, it began with 2.3"),
        (2.3, math.nan, "loss x is nan"),
        (2.3, math.inf, "loss x is inf"),
        (1e-6, 0.5, ""),  # it began near nothing
        (0.009, 9.0, ""),  # an entropy over 8,142 classes
        (1e-6, 10.5, "loss x is 10.5, it began with 1e-06"),
    ],
)
def test_what_counts_as_diverged(first: float, value: float, told: str) -> None:
    assert diverged({"x": first}, {"x": value}) == told


def test_each_window_is_told_and_is_what_the_history_has(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, chain_config("rounds=1"))
    run_chain(chain, None, Interrupt())
    told = windows(chain)
    history = run_folder.read_json(chain / "round-0" / run_folder.HISTORY)
    for phase, each in history.items():
        mine = [line for line in told if line["phase"] == phase]
        assert [line["losses"] for line in mine] == [
            {name: curve[at] for name, curve in each["losses"].items()} for at in range(len(mine))
        ]
        assert mine[-1]["step"] <= mine[-1]["steps"]
        assert all(line["images_per_s"] > 0 and line["diverged"] == "" for line in mine)
    assert len(told) > 2
    assert "diverged" not in run_folder.read_json(chain / "round-0" / run_folder.METRICS)


def test_a_diverged_chain_is_named_in_the_log_in_metrics_and_in_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write_chain(tmp_path, chain_config("rounds=1", "task.optimizer=sgd", "task.lr=1e6", method="random"))
    ended = run_chain_process(chain)
    assert ended.returncode == 0, ended.stderr
    assert "DIVERGED: loss cross_entropy is" in ended.stderr
    (found,) = run_folder.read_json(chain / "round-0" / run_folder.METRICS)["diverged"]
    assert found.startswith("task: loss cross_entropy is")
    assert status.main([f"runs={tmp_path}"]) == 0
    assert f"DIVERGED: round 0, {found}"[:60] in capsys.readouterr().out


def test_a_chain_that_ended_without_a_trace_is_shown_with_the_end_of_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os
    import sys

    from tests.chains import ROOT, environment

    chain = write_chain(tmp_path, chain_config("rounds=1", "task.epochs=2000", method="random"))
    command = [sys.executable, "-m", "mal.chain", str(chain)]
    with (chain / run_folder.LOG).open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (chain / FILE).is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    status.main([f"runs={tmp_path}"])
    said = capsys.readouterr().out
    assert "log: " in said
    assert "task" in said.rpartition("log: ")[2]
