"""The launcher: help and bad input without torch, runs, what is missing and nothing else, stopped in every way."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.chain import is_locked, read_failure, run_chain
from mal.config.checks import CONF, choices
from mal.config.compose import compose_sweep
from mal.files import write_json
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.run.heartbeat import read_progress
from sweeps.launch import help_text, main
from tests.chains import ROOT, SHORT, environment, has_trained, launch, outcome, python, write_chain

LAUNCH = ROOT / "sweeps" / "launch.py"
SWEEP = [*SHORT, "cluster=local", "seeds=1"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The runs folder of a sweep that ran to its end, and what the launcher said."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, launch(*SWEEP, "methods=[mal,random]", f"runs={runs}")


@pytest.fixture
def copy(done: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of that folder to tamper with."""
    return Path(shutil.copytree(done[0], tmp_path / "runs"))


# ------------------------------------------------------------------------- help


def test_help_comes_without_torch_and_explains_every_key() -> None:
    ended = python("-X", "importtime", LAUNCH, "--help")
    assert ended.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "mal.config.schema" in imported
    assert not {"torch", "pandas", "sklearn", "matplotlib", "submitit"} & imported
    assert ended.stdout.strip() == help_text().strip()


def test_help_names_every_choice_and_gives_each_key_a_comment() -> None:
    text = help_text()
    for group in ("dataset", "backbone", "method", "cluster", "experiment"):
        assert all(name in text for name in choices(group)), group
    keys = [
        line for line in (CONF / "config.yaml").read_text().splitlines() if ":" in line and not line.startswith("#")
    ]
    settings = [line for line in keys if not line.rstrip().endswith(":") and "- " not in line.split("#")[0]]
    assert len(settings) > 30
    assert [line for line in settings if "#" not in line] == []


# ------------------------------------------------------------------------- bad input


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the launcher answers bad input with."""
    assert main(["cluster=local", *arguments]) == 2
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()
    assert line.startswith("launch.py: ")
    return line


BAD = {
    "bugdet=10": "bugdet",
    "dataset=digit": "did you mean digits",
    "methods=[mal,randm]": "did you mean random",
    "seeds=0": "seeds=0",
    "budget=-10": "budget=-10",
    "budget=5000": "budget=5000",
    "rounds=46": "rounds=46",
    "task.lr=fast": "task.lr",
    "cuda_graphs=true device=cpu": "cuda_graphs=true is for GPUs",
    "cuda_graphs=true minimax.average=0.9": "minimax.average=0.9",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    line = answer(capsys, f"runs={tmp_path / 'runs'}", *override.split())
    assert BAD[override] in line
    assert list(tmp_path.iterdir()) == []


def test_a_typo_is_answered_at_once_without_torch(tmp_path: Path) -> None:
    ended = python("-X", "importtime", LAUNCH, "dataste=digits", cwd=tmp_path)
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("import time:")]
    assert lines == [
        "launch.py: The key 'dataste' is unknown; did you mean dataset or dataset.test? `--help` lists every key."
    ]
    assert "| torch\n" not in ended.stderr
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_missing_and_truncated_data_are_found_before_work_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.data.sources.test_arrays import write_fashion

    runs, data = tmp_path / "runs", tmp_path / "data"
    asked = (f"runs={runs}", f"data={data}", "methods=[random]", "initial=2", "budget=2", "rounds=2")
    assert f"{data}/cifar-100-python/train is missing" in answer(capsys, "dataset=cifar100", *asked)
    write_fashion(data / "fashion-mnist")
    path = data / "fashion-mnist" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    small = ("dataset=fashion_mnist", "dataset.train=30", "dataset.test=20")
    assert f"{path} holds" in answer(capsys, *small, *asked)
    assert files(runs) == {} if runs.exists() else True


def test_a_dry_run_says_what_data_are_missing_and_still_prints_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("experiment=figure4", f"runs={tmp_path / 'runs'}", f"data={tmp_path / 'data'}", "cluster=local")
    assert main([*asked, "dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("A launch would be refused: ")
    assert f"{tmp_path / 'data'}/bdd100k" in lines[0]
    assert len([line for line in lines if line.endswith("0/4 rounds committed, new")]) == 4 * 5
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["a file", "below a file", "not writable"])
def test_a_runs_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    runs = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "runs", "not writable": Path("/proc/runs")}
    line = answer(capsys, *SHORT, "methods=[random]", f"runs={runs[place]}")
    assert f"runs={runs[place]} cannot be written to" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 * 2**20))
    line = answer(capsys, *SHORT, "methods=[random]", f"runs={tmp_path / 'runs'}")
    assert "5 MiB free" in line
    assert "runs=" in line


# ------------------------------------------------------------------------- running


def test_a_sweep_runs_to_its_end_and_says_so_in_plain_lines(done: tuple[Path, Any]) -> None:
    runs, ended = done
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("digits: 10 classes, 1,347 + 450 images")
    assert [line.split()[0] for line in lines[1:3]] == ["mal/seed-0", "random/seed-0"]
    assert all("new" in line for line in lines[1:3])
    assert sum("committed: 20 labels, accuracy" in line for line in lines) == 2
    assert sum("committed: 40 labels, accuracy" in line for line in lines) == 2
    assert "\x1b" not in ended.stdout
    for method in ("mal", "random"):
        folder = run_folder.chain_folder(runs, "digits", method, 0)
        assert run_folder.committed_rounds(folder) == 2
        assert run_folder.read_round(folder / "round-0").metrics["preemptions"] == 0


def test_chains_run_by_the_launcher_are_those_run_alone(done: tuple[Path, Any], tmp_path: Path) -> None:
    for config in compose_sweep([*SWEEP, "methods=[mal,random]"]).chains:
        folder = write_chain(tmp_path, config)
        run_chain(folder, None, Interrupt())
        assert outcome(folder) == outcome(run_folder.chain_folder(done[0], "digits", config.method["name"], 0))


def test_a_second_launch_does_nothing_without_torch(done: tuple[Path, Any]) -> None:
    runs, _ = done
    before = files(runs)
    ended = python("-X", "importtime", LAUNCH, *SWEEP, "methods=[mal,random]", f"runs={runs}")
    assert ended.returncode == 0
    assert ended.stdout.count("2/2 rounds committed, nothing to do") == 2
    assert "0 of 2 chains to run, 0 rounds" in ended.stdout
    assert "| torch\n" not in ended.stderr
    assert files(runs) == before


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWEEP, "methods=[mal,random]", f"runs={tmp_path / 'runs'}", "dry_run=true"]) == 0
    assert "2 of 2 chains to run, 4 rounds" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_of_a_longer_sweep_only_what_is_missing_is_planned(
    done: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wider = [*SWEEP, "methods=[mal,random,entropy]", "seeds=2", f"runs={done[0]}", "dry_run=true"]
    assert main(wider) == 0
    said = capsys.readouterr().out
    assert "4 of 6 chains to run, 8 rounds" in said
    assert main([*SWEEP, "methods=[mal]", "rounds=1", f"runs={done[0]}", "dry_run=true"]) == 0
    assert "0 of 1 chains to run" in capsys.readouterr().out


def test_a_finished_chain_cannot_be_given_more_rounds(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = answer(capsys, *SWEEP, "methods=[mal]", "rounds=3", f"runs={copy}")
    assert "rounds=3" in line
    assert "rounds=2" in line


# ------------------------------------------------------------------------- what is on disk already


def test_a_folder_of_another_configuration_is_refused_naming_the_keys(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(copy)
    line = answer(capsys, *SWEEP, "methods=[mal,random]", "task.lr=0.5", "initial=21", f"runs={copy}")
    assert "task.lr: 0.001 -> 0.5" in line
    assert "initial: 20 -> 21" in line
    assert "name=" in line
    assert files(copy) == before


TAMPER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda chain: cut(chain / "round-0" / "query.npy"), "round-0/query.npy"),
    "edited": (lambda chain: np.save(chain / "round-0" / "labeled.npy", np.arange(20)), "round-0/labeled.npy"),
    "duplicated": (lambda chain: shutil.copytree(chain / "round-1", chain / "round-2"), "round-1 has no query"),
    "removed": (lambda chain: (chain / "round-1" / "labeled.npy").unlink(), "round-1/labeled.npy"),
    "unmarked": (lambda chain: (chain / "round-0" / "COMMITTED").unlink(), "round-0/COMMITTED"),
    "swapped": (lambda chain: swap(chain / "round-0", chain / "round-1"), "round-0"),
    "no configuration": (lambda chain: (chain / "config.yaml").write_text("{"), "config.yaml"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def swap(first: Path, second: Path) -> None:
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)


@pytest.mark.parametrize("kind", TAMPER)
def test_tampered_rounds_are_refused_and_left_as_they_are(
    copy: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tamper, named = TAMPER[kind]
    tamper(copy / "digits" / "mal" / "seed-0")
    before = files(copy)
    assert named in answer(capsys, *SWEEP, "methods=[mal,random]", f"runs={copy}")
    assert files(copy) == before


def test_a_chain_that_runs_elsewhere_is_left_to_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mal.chain import locked

    folder = copy / "digits" / "mal" / "seed-0"
    shutil.rmtree(folder / "round-1")
    write_json(folder / "round-1" / "checkpoint" / "progress.json", {"pid": 4711, "host": "node9"})
    with locked(folder):
        assert main([*SWEEP, "methods=[mal,random]", f"runs={copy}"]) == 0
    said = capsys.readouterr().out
    assert "running already (process 4711 on node9)" in said
    assert "0 of 2 chains to run" in said


# ------------------------------------------------------------------------- stopped, killed, failed


def test_a_failed_chain_does_not_stop_the_others_and_the_exit_status_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # At such a rate F diverges in its first step, and MAL's scores are NaN; random has no F.
    asked = [*SWEEP, "methods=[mal,random]", "minimax.lr_f=1e30", "cluster.workers=1", f"runs={tmp_path}"]
    ended = launch(*asked)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    failed, fine = (run_folder.chain_folder(tmp_path, "digits", method, 0) for method in ("mal", "random"))
    assert run_folder.committed_rounds(fine) == 2
    assert run_folder.committed_rounds(failed) == 0
    failure = read_failure(failed)
    assert failure is not None
    assert "NaN" in failure["error"]
    assert "failed in round 0: ValueError" in ended.stdout
    before = files(tmp_path)
    assert main(asked) == 1
    again = capsys.readouterr().out
    assert "failed in round 0" in again
    assert "retry=true" in again
    assert "0 of 2 chains to run" in again
    assert files(tmp_path) == before
    assert main([*asked, "retry=true", "dry_run=true"]) == 0
    assert "1 of 2 chains to run" in capsys.readouterr().out


def started(arguments: list[str], chain: Path, attempt: int) -> subprocess.Popen[str]:
    """A launcher in the background, once a worker is in the middle of Algorithm 1."""
    command = [sys.executable, str(LAUNCH), *arguments]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while True:
        beat = read_progress(chain / "round-0")
        trains = beat and beat["phase"] == "minimax" and beat["attempts"] == attempt
        if trains and has_trained(chain, "minimax"):
            return process
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no worker began to work: {process.communicate()[0]}")
        time.sleep(0.02)


def test_ctrl_c_and_the_launchers_death_lose_nothing(tmp_path: Path) -> None:
    asked = [*SWEEP, "methods=[mal]", "rounds=1", "minimax.epochs=8"]
    runs, chain = f"runs={tmp_path}", run_folder.chain_folder(tmp_path, "digits", "mal", 0)

    launcher = started([*asked, runs], chain, attempt=1)
    launcher.send_signal(signal.SIGINT)
    said, _ = launcher.communicate(timeout=90)
    assert launcher.returncode == 130, said
    assert "Stopped" in said
    assert "same command" in said
    assert "Traceback" not in said
    assert not is_locked(chain)
    beat = read_progress(chain / "round-0")
    assert beat is not None
    assert beat["interrupted"] == "SIGTERM"
    assert (chain / "round-0" / "checkpoint" / "minimax.ckpt").is_file()

    launcher = started([*asked, runs], chain, attempt=2)
    launcher.kill()
    launcher.communicate(timeout=90)
    deadline = time.monotonic() + 90
    while is_locked(chain):
        assert time.monotonic() < deadline, "the worker outlives its launcher"
        time.sleep(0.05)
    beat = read_progress(chain / "round-0")
    assert beat is not None
    assert beat["interrupted"] == "end of the launcher"
    ended = launch(*asked, runs)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "continues in round 0" in ended.stdout
    (config,) = compose_sweep(asked).chains
    alone = write_chain(tmp_path / "alone", config)
    run_chain(alone, None, Interrupt())
    assert outcome(chain) == outcome(alone)
    assert json.loads((chain / "round-0" / "metrics.json").read_text())["preemptions"] == 2
