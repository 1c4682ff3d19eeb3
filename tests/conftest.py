"""Settings for all tests, and what happens where Slurm, FFCV or a GPU is missing."""

import importlib.util
import os
import shutil
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# Before numpy and torch are imported: tests run beside each other and beside other work on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A slow machine is no failure, and a failure must come back when the test is run again.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@cache
def missing(marker: str) -> str | None:
    """What `marker` needs and this machine does not have; None where it can run."""
    if marker == "slurm":
        # Debian puts daemons where only root's PATH looks.
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        needed = ("slurmctld", "slurmd", "munged", "sbatch")
        absent = [name for name in needed if shutil.which(name, path=path) is None]
        return f"no {', '.join(absent)} on this machine (Debian: slurm-wlm, munge)" if absent else None
    if marker == "ffcv":
        return None if importlib.util.find_spec("ffcv") else "ffcv is not installed (make test installs it)"
    if marker == "gpu":
        import torch

        return None if torch.cuda.is_available() else "no CUDA device"
    return None


def may_be_skipped(test: str, reason: str) -> bool:
    """Whether tests/may_be_skipped.txt says that CI can do without a test, for a reason."""
    lines = (Path(__file__).parent / "may_be_skipped.txt").read_text().splitlines()
    allowed = [line.split(" | ") for line in lines if line and not line.startswith("#")]
    return any(fnmatch(test, pattern) and fnmatch(reason, why) for pattern, why in allowed)


SKIPPED: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what CI must not do without."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not may_be_skipped(report.nodeid, reason):
            SKIPPED.append(f"{report.nodeid}: {reason}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """The same for a file that was skipped as a whole."""
    if report.skipped:
        SKIPPED.append(f"{report.nodeid}: {report.longrepr}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """CI fails where a test was skipped that is not on the list."""
    if SKIPPED and os.environ.get("CI") == "true":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name them, in CI and elsewhere."""
    if SKIPPED:
        terminalreporter.section("skipped, and not on tests/may_be_skipped.txt: CI fails")
        for line in SKIPPED:
            terminalreporter.line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no core is left with the longest of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, a test that cannot run here; in CI only a GPU may be missing."""
    for marker in ("slurm", "ffcv", "gpu"):
        reason = missing(marker) if item.get_closest_marker(marker) else None
        if reason is None:
            continue
        if marker != "gpu" and os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this test: {reason}", pytrace=False)
        pytest.skip(reason)
