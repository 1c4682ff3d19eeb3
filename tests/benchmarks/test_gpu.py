"""The script for a GPU, rehearsed on the CPU: the checks that take seconds; `make gpu ARGS="--device cpu"` runs all."""

import inspect
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import arithmetic, graphs, processes, speed
from benchmarks.gpu.__main__ import CHECKS
from tests.chains import ROOT, python

QUICK = ("stack", "bf16_upsampling_is_bilinear", "augmentation_is_that_of_the_cpu", "one_process_group")


def test_quick_checks_are_rehearsed_and_noted(tmp_path: Path) -> None:
    done = python("-m", "benchmarks.gpu", "--device=cpu", "--out", tmp_path, f"--only={','.join(QUICK)}", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    noted = json.loads((tmp_path / "gpu.json").read_text())
    assert noted["device"] == "cpu"
    assert {name: found["verdict"] for name, found in noted["checks"].items()} == dict.fromkeys(QUICK, "PASS")


CHECKED = """
import signal, sys, time
from pathlib import Path
from benchmarks.gpu import checks
checks.SLOWER, checks.GRACE = 1, 0.5

def wrong(bench):
    bench.told["a"] = 1
    raise AssertionError("other bits")

def right(bench):
    return {"c": 3}

def slow(bench):
    with bench.process([sys.executable, "-c", "import time; time.sleep(1000)"], bench.work / "log") as process:
        bench.told["pid"] = process.pid
        process.wait()

def slower(bench):
    slow(bench)

def beside(bench):
    def twice():
        for _ in range(2):
            slow(bench)
    bench.side_by_side([lambda: bench.told.update(b=2), twice])

def late(bench):
    pass

def hanging(bench):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    slow(bench)

work, chosen = Path(sys.argv[1]), [word.split(":") for word in sys.argv[2:]]
chosen = [(float(limit), globals()[name]) for limit, name in chosen]
sys.exit(checks.run_all(chosen, checks.Bench("cpu", work), work, 4, []))
"""


def checked(folder: Path, *checks: str) -> tuple[int, str, dict[str, Any]]:
    """Made-up checks, each as SECONDS:NAME, in 4 seconds: the exit status, what was said and what was noted."""
    done = python("-c", CHECKED, folder, *checks, cwd=ROOT)
    noted: dict[str, Any] = json.loads((folder / "gpu.json").read_text())["checks"]
    for found in noted.values():
        if "pid" in found:
            assert not Path("/proc", str(found["pid"])).exists(), "its process is left"
    return done.returncode, done.stdout, noted


def test_each_check_is_noted_with_what_it_found_whatever_becomes_of_it(tmp_path: Path) -> None:
    status, said, noted = checked(tmp_path, "9:wrong", "9:right", "0.5:slow", "9:slower", "9:late")
    assert status == 2
    assert said.endswith("1 passed, 2 failed ['wrong', 'slow'], 2 left out\n")
    assert (noted["wrong"]["a"], noted["wrong"]["why"]) == (1, "AssertionError: other bits")
    assert noted["right"]["c"] == 3
    assert noted["slow"]["why"] == "took more than 0.5 s"
    assert (noted["slower"]["verdict"], noted["late"]["verdict"]) == ("NO TIME", "NO TIME")
    assert "pid" in noted["slower"]


def test_what_runs_side_by_side_ends_with_its_check(tmp_path: Path) -> None:
    status, _, noted = checked(tmp_path, "0.8:beside", "9:right")
    assert (status, noted["beside"]["why"], noted["right"]["c"]) == (1, "took more than 0.8 s", 3)
    assert noted["beside"]["b"] == 2
    assert "pid" in noted["beside"]


def test_a_check_that_does_not_come_back_ends_the_script_and_loses_nothing(tmp_path: Path) -> None:
    status, said, noted = checked(tmp_path, "9:right", "1:hanging", "9:late")
    assert status == 99
    assert said.endswith("hanging does not come back\n")
    assert {name: found["verdict"] for name, found in noted.items()} == {"right": "PASS", "hanging": "HANGS"}


def test_unknown_checks_are_named() -> None:
    done = python("-m", "benchmarks.gpu", "--only=stak", cwd=ROOT)
    assert done.returncode == 2
    assert "stak is unknown. Known: stack," in done.stderr


def test_names_are_unique() -> None:
    names = [function.__name__ for _, function in CHECKS]
    assert len(set(names)) == len(names)


def test_every_check_of_the_modules_is_run() -> None:
    listed = {function for _, function in CHECKS}
    for module in (arithmetic, graphs, processes, speed):
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                takes_a_bench = list(inspect.signature(function).parameters) == ["bench"]
                if takes_a_bench and inspect.signature(function).return_annotation == "Found":
                    assert function in listed, function.__name__
