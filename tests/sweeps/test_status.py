"""status.py and cancel.py: what they say of chains on disk and in the queue, and what they refuse."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mal.files import write_json
from mal.run import folder as run_folder
from slurm.attempts import write_end, write_start
from slurm.local import LocalSlurm
from slurm.squeue import read_queue
from sweeps.cancel import main as cancel
from sweeps.launch import main as launch
from sweeps.status import main as status
from tests.chains import ROOT, SHORT, chain_config, python, write_chain
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]


def committed(folder: Path, number: int, value: float = 50.0) -> None:
    """A round that was committed, as far as status.py reads it."""
    metrics = {"seconds": 60.0, "value": value, "metric": "accuracy", "gpus": 0}
    write_json(run_folder.round_folder(folder, number) / run_folder.METRICS, metrics)
    write_json(run_folder.round_folder(folder, number) / run_folder.COMMITTED, {})


def heartbeat(folder: Path, number: int, **state: Any) -> None:
    """A round at work in this process, unless told otherwise."""
    plain = {
        "phase": "task",
        "step": 30,
        "steps": 40,
        "updated": time.time(),
        "host": "elsewhere",
        "pid": 1,
        "seconds": 9,
    }
    write_json(run_folder.round_folder(folder, number) / run_folder.CHECKPOINT / run_folder.PROGRESS, plain | state)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five chains of three rounds, each elsewhere; no Slurm."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for seed in range(5):
        write_chain(tmp_path, chain_config("rounds=3", seed=seed))
    done, at_work, failed, stopped, _ = (run_folder.chain_folder(tmp_path, "digits", "mal", seed) for seed in range(5))
    for number in range(3):
        committed(done, number)
    committed(at_work, 0)
    heartbeat(at_work, 1)
    error = {
        "error": "RuntimeError: shapes do not match\nmat1 and mat2 differ " + "x" * 200,
        "traceback": "",
        "time": "",
    }
    write_json(run_folder.round_folder(failed, 0) / run_folder.FAILED, error)
    (failed / "slurm").mkdir()
    (failed / "slurm" / "12.log").write_text("words")
    heartbeat(stopped, 0, updated=time.time() - 3600)
    return tmp_path


def test_every_chain_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status([f"runs={runs}"]) == 1  # one failed
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(
        "digits: 4/15 rounds committed; chains: 1 done, 1 failed, 2 missing, 1 running, about 1m51s"
    )
    assert "mal/seed-0 ###  3/3   50.00%  done" in out
    assert "mal/seed-1 #>.  1/3   50.00%  running  task 30/40 75%, 1m51s left, heartbeat 0s ago" in out
    assert "mal/seed-2 x..  0/3           failed   mat1 and mat2 differ xxx" in out
    assert "log: digits/mal/seed-2/slurm/12.log" in out
    assert "mal/seed-3 ...  0/3           missing  stopped in task at step 30 of 40" in out
    assert "mal/seed-4 ...  0/3           missing  not started" in out


def test_json_is_for_programs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status([f"runs={runs}", "name=digits", "--json"])
    chains = json.loads(capsys.readouterr().out)["sweeps"]["digits"]
    assert [chain["state"] for chain in chains] == ["done", "running", "failed", "missing", "missing"]
    assert chains[1]["cells"] == ["committed", "running", "missing"]
    assert chains[1]["percent"] == 75
    assert chains[2]["log"].endswith("slurm/12.log")


def test_what_preemption_cost_is_counted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder.chain_folder(runs, "digits", "mal", 4)
    started = write_start(folder, "1", 0, gpus=4)
    heartbeat(folder, 0, updated=started + 7200)
    write_start(folder, "1", 1, gpus=4)
    write_end(folder, "1", 1, started, "done")
    status([f"runs={runs}", "--json"])
    chain = json.loads(capsys.readouterr().out)["sweeps"]["digits"][4]
    assert chain["lost_gpu_hours"] == pytest.approx(8, rel=1e-3)
    assert chain["interruptions"] == {"cut off": 1}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (status, ["run=x"], "'run=x' is unknown; did you mean runs?"),
        (status, ["runs"], "'runs' is not of the form key=value"),
        (status, ["watch=yes"], "watch=yes is neither true nor false"),
        (status, ["name=digts"], "no such sweep under"),
        (cancel, ["nam=digits"], "'nam=digits' is unknown; did you mean name?"),
        (cancel, [], "name= is needed: which sweep? There are: digits"),
        (cancel, ["name=digits", "method=mla"], "method=mla: digits has no such method; did you mean mal?"),
        (cancel, ["name=digits", "seed=9"], "seed=9: digits has no such seed. It has: 0, 1, 2, 3, 4."),
        (cancel, ["name=digits", "seed=one"], "seed=one: a whole number from 0"),
    ],
)
def test_wrong_options_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], command: Any, arguments: list[str], message: str
) -> None:
    where = [] if any("=" not in a or a.startswith("run=") for a in arguments) else [f"runs={runs}"]
    if command is cancel and not where:
        where = [f"runs={runs}"]
    assert command([*arguments, *where]) == 2
    assert message in capsys.readouterr().err


def test_local_workers_are_named_not_killed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cancel([f"runs={runs}", "name=digits"]) == 1
    assert "mal/seed-1 runs as process 1 on elsewhere, not as a job: `kill 1` there" in capsys.readouterr().out


def test_help_needs_no_torch() -> None:
    for script in ("status.py", "cancel.py"):
        done = python(ROOT / "sweeps" / script, "--help")
        assert done.returncode == 0
        assert "runs=DIR" in done.stdout
    code = "import sys, sweeps.status, sweeps.cancel, slurm.job, slurm.submit; sys.exit('torch' in sys.modules)"
    assert python("-c", code).returncode == 0


@pytest.mark.slurm
def test_the_queue_is_told_and_cancelled(
    cluster: LocalSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.time.digits=10", "+cluster.sbatch.begin=now+1hour")
    assert launch([*SHORT, "methods=[mal,random]", "seeds=2", *later, f"runs={tmp_path}"]) == 0
    capsys.readouterr()
    assert status([f"runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits: 0/8 rounds committed; chains: 4 queued"
    assert lines[2].split() == ["mal/seed-0", "qq", "0/2", "queued", "BeginTime"]
    assert cancel([f"runs={tmp_path}", "name=digits", "method=mal", "seed=1"]) == 0
    assert len(read_queue()) == 6
    assert cancel([f"runs={tmp_path}", "name=digits"]) == 0
    wait_until(lambda: not read_queue(), "the queue to drain")
    assert status([f"runs={tmp_path}"]) == 0
    assert "4 missing" in capsys.readouterr().out
    assert os.environ["SLURM_CONF"]
