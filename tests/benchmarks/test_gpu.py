"""The script for a GPU, rehearsed on the CPU: the checks that take seconds; `make gpu ARGS="--device cpu"` runs all."""

import json
from pathlib import Path

from benchmarks.gpu.__main__ import CHECKS
from tests.chains import ROOT, python

QUICK = ("stack", "bf16_upsampling_is_bilinear", "augmentation_is_that_of_the_cpu", "one_process_group")


def test_quick_checks_are_rehearsed_and_noted(tmp_path: Path) -> None:
    done = python("-m", "benchmarks.gpu", "--device=cpu", "--out", tmp_path, f"--only={','.join(QUICK)}", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    noted = json.loads((tmp_path / "gpu.json").read_text())
    assert noted["device"] == "cpu"
    assert {name: found["verdict"] for name, found in noted["checks"].items()} == dict.fromkeys(QUICK, "PASS")


def test_a_check_that_fails_or_has_no_time_is_told(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from benchmarks.gpu.checks import Bench, run_all\n"
        "def wrong(bench):\n    raise AssertionError('other bits')\n"
        "def right(bench):\n    return {'a': 1}\n"
        "checks = ((0, wrong), (1e9, right), (0, right))\n"
        f"sys.exit(run_all(checks[:2], Bench('cpu', Path()), Path({str(tmp_path)!r}), 60, []))\n"
    )
    done = python("-c", code, cwd=ROOT)
    assert done.returncode == 1
    assert "1 failed ['wrong'], 1 left out" in done.stdout
    checks = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert checks["wrong"]["why"] == "AssertionError: other bits"
    assert checks["right"]["verdict"] == "NO TIME"


def test_unknown_checks_are_named() -> None:
    done = python("-m", "benchmarks.gpu", "--only=stak", cwd=ROOT)
    assert done.returncode == 2
    assert "stak is unknown. Known: stack," in done.stderr


def test_names_are_unique() -> None:
    names = [function.__name__ for _, function in CHECKS]
    assert len(set(names)) == len(names)
