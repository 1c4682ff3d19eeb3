"""prune.py: what it offers to remove, that a dry run removes nothing, and what it never touches."""

import os
import shutil
from pathlib import Path

import pytest

from mal.files import write_json
from mal.run import folder as run_folder
from mal.run.code_copy import CODE, keep_code
from mal.run.lock import hold
from slurm.client import call
from slurm.local import LocalSlurm
from sweeps.launch import main as launch
from sweeps.prune import FRESH_SECONDS, main
from tests.chains import SHORT, chain_config, run_chain_process, write_chain
from tests.slurm_cluster import cluster, shared_cluster

__all__ = ["cluster", "shared_cluster"]

DONE, PART = ("random", "seed-0"), ("random", "seed-1")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def litter(chain: Path, number: int) -> None:
    """What a chain leaves that is killed between a commit and its end, and what its jobs said."""
    write_json(run_folder.round_folder(chain, number) / run_folder.CHECKPOINT / run_folder.PROGRESS, {})
    (run_folder.round_folder(chain, number) / ".query.npy.7.tmp").write_bytes(b"half")
    (chain / run_folder.LOG).write_text("words")
    (chain / "slurm").mkdir(exist_ok=True)
    (chain / "slurm" / "12.log").write_text("words of a job")
    (chain / "slurm" / "attempts.jsonl").write_text("")


def old_copy(sweep: Path, name: str) -> Path:
    """A copy of the code that was made long ago."""
    folder = sweep / CODE / name
    (folder / "mal").mkdir(parents=True)
    (folder / "mal" / "chain.py").write_text("pass\n")
    long_ago = folder.stat().st_mtime - 2 * FRESH_SECONDS
    os.utime(folder, (long_ago, long_ago))
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a chain of two rounds that is done, and one that has not begun."""
    runs = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        folder = write_chain(runs, chain_config(method="random", seed=seed))
    assert run_chain_process(folder.with_name("seed-0")).returncode == 0
    return runs


@pytest.fixture
def runs(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it with litter, without Slurm."""
    monkeypatch.setenv("PATH", str(tmp_path))
    copied = Path(shutil.copytree(ran, tmp_path / "runs"))
    for each in (DONE, PART):
        litter(copied.joinpath("digits", *each), 0)
    return copied


def test_a_dry_run_says_what_would_go_and_removes_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(runs)
    assert main([f"runs={runs}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits: 1 of 2 chains are finished"
    assert lines[1].split() == ["left", "alone", "random/seed-1", "(missing)"]
    assert [line.split()[:2] for line in lines[2:5]] == [["checkpoints", "2"], ["logs", "2"], ["code", "0"]]
    assert "apply=true removes" in lines[5]
    assert files(runs) == before


def test_what_a_finished_chain_needs_no_more_goes_and_its_rounds_stay(runs: Path) -> None:
    done, part = (runs.joinpath("digits", *each) for each in (DONE, PART))
    before = files(part)
    assert main([f"runs={runs}", "name=digits", "apply=true"]) == 0
    left = files(done)
    litter_left = [name for name in left if run_folder.CHECKPOINT in name or name.endswith((".tmp", ".log", "log.txt"))]
    assert litter_left == []
    assert {"windows.jsonl", "config.yaml", "slurm/attempts.jsonl", "round-1/COMMITTED"} <= left.keys()
    assert run_folder.committed_rounds(done) == 2
    for folder in run_folder.round_folders(done):
        run_folder.read_round(folder)  # every hash
    assert files(part) == before
    assert run_chain_process(done).returncode == 0  # which finds nothing to do


def test_what_chains_kept_for_each_other_goes_once_all_are_finished(runs: Path) -> None:
    kept = runs / "digits" / run_folder.SHARED / "seed-0" / "round-1" / "task-0123.ckpt"
    write_json(kept, {})
    assert main([f"runs={runs}", "what=checkpoints", "apply=true"]) == 0
    assert kept.is_file()  # a chain may take it
    shutil.rmtree(runs.joinpath("digits", *PART))
    assert main([f"runs={runs}", "what=checkpoints", "apply=true"]) == 0
    assert not (runs / "digits" / run_folder.SHARED).exists()


def test_a_chain_whose_lock_is_held_is_left_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = runs.joinpath("digits", *DONE)
    before = files(done)
    with hold(done / run_folder.LOCK, 0):
        assert main([f"runs={runs}", "apply=true"]) == 0
    assert "is being worked on: left alone" in capsys.readouterr().out
    assert files(done).keys() == before.keys()


def test_code_goes_that_no_round_names_once_all_chains_are_finished(runs: Path) -> None:
    sweep = runs / "digits"
    named = run_folder.read_round(run_folder.round_folder(sweep.joinpath(*DONE), 0)).provenance["code"]
    keeps, goes = old_copy(sweep, named), old_copy(sweep, "0123456789ab")
    young = keep_code(sweep.with_name("other"))
    shutil.move(young, sweep / CODE / "fedcba987654")
    assert main([f"runs={runs}", "what=code", "apply=true"]) == 0
    assert goes.is_dir()  # a chain is not finished
    shutil.rmtree(sweep.joinpath(*PART))
    assert main([f"runs={runs}", "what=code", "apply=true"]) == 0
    assert sorted(folder.name for folder in (sweep / CODE).iterdir()) == sorted([keeps.name, "fedcba987654"])
    assert (sweep.joinpath(*DONE) / run_folder.LOG).is_file()  # what=code alone


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["appl=true"], "'appl=true' is unknown; did you mean apply?"),
        (["apply=yes"], "apply=yes is neither true nor false"),
        (["what=log"], "what=log is unknown; did you mean logs? Allowed: checkpoints,logs,code"),
        (["name=digit"], "name=digit: no such sweep"),
    ],
)
def test_wrong_options_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main([f"runs={runs}", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_where_slurm_does_not_answer_nothing_goes(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.setitem(call.__kwdefaults__, "wait_s", 0.0)
    before = files(runs)
    assert main([f"runs={runs}", "apply=true"]) == 1
    assert "Slurm does not answer" in capsys.readouterr().err
    assert files(runs) == before


@pytest.mark.slurm
def test_what_a_queued_job_needs_stays(cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.time.digits=10", "+cluster.sbatch.begin=now+1hour")
    assert launch([*SHORT, "methods=[random]", "seeds=1", *later, f"runs={tmp_path}"]) == 0
    (chain,) = run_folder.chain_folders(tmp_path, "digits")
    for number in (0, 1):  # done by another process meanwhile
        folder = run_folder.round_folder(chain, number)
        write_json(folder / run_folder.METRICS, {"seconds": 1.0, "value": 50.0, "metric": "accuracy", "gpus": 0})
        write_json(folder / run_folder.COMMITTED, {})
    (copy,) = (tmp_path / "digits" / CODE).iterdir()
    os.utime(copy, (0, 0))
    capsys.readouterr()
    assert main([f"runs={tmp_path}", "apply=true"]) == 0
    assert "random/seed-0 (a job in the queue)" in capsys.readouterr().out
    assert copy.is_dir()
