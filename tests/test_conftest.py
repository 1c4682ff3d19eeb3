"""What the settings for all tests promise: CI does without nothing that is not on a written list."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chains import ROOT, environment

TEST = """
import pytest

def test_of_a_gpu():
    pytest.skip("no CUDA device")

@pytest.mark.skipif(True, reason="no chromium on this machine")
def test_of_a_browser():
    raise AssertionError

def test_of_nothing():
    pass
"""


@pytest.mark.parametrize("ci", [True, False])
def test_a_skip_that_is_not_on_the_list_fails_ci_and_is_named(tmp_path: Path, ci: bool) -> None:
    (tmp_path / "test_some.py").write_text(TEST)
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    env = {key: value for key, value in environment().items() if key != "CI"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ended = subprocess.run(
        command, cwd=tmp_path, env=env | ({"CI": "true"} if ci else {}), capture_output=True, text=True, check=False
    )
    assert ended.returncode == (1 if ci else 0), ended.stdout
    _, _, told = ended.stdout.partition("not on tests/may_be_skipped.txt")
    assert "test_of_a_browser: no chromium on this machine" in told
    assert "test_of_a_gpu" not in told
    assert "1 passed, 2 skipped" in ended.stdout
