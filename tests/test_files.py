"""What other processes read: a command's output whose reader has gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from mal.files import storage_fails
from tests.chains import ROOT, environment
from tests.made_up_runs import write_chain

COMMANDS = {
    "launch": ["sweeps/launch.py", "--help"],
    "status": ["sweeps/status.py", "runs=RUNS"],
    "status --help": ["sweeps/status.py", "--help"],
    "cancel": ["sweeps/cancel.py", "--help"],
    "study": ["sweeps/study.py", "--help"],
    "curves": ["analysis/curves.py", "--help"],
    "tuning": ["analysis/tuning.py", "--help"],
    "prepare": ["-m", "mal.data.prepare", "--help"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_reader_has_gone_ends_without_a_traceback(tmp_path: Path, command: str) -> None:
    write_chain(tmp_path / "runs", "random", 0, [50, 60])
    words = [word.replace("RUNS", str(tmp_path / "runs")) for word in COMMANDS[command]]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()  # before anything is printed
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 141  # as of a process that SIGPIPE ended
    process.stderr.close()


def test_missing_rights_are_not_said_to_pass() -> None:
    assert storage_fails(PermissionError(13, "Permission denied", "/a/b")).startswith("/a/b: you have no right to")
    assert storage_fails(OSError(116, "Stale file handle")).endswith("Run the same command again.")
