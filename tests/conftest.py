"""Settings for all tests, and what happens where Slurm, FFCV or a GPU is missing."""

import importlib.util
import os
import shutil
from functools import cache

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, a test that cannot run here; in CI only a GPU may be missing."""
    for marker in ("slurm", "ffcv", "gpu"):
        reason = missing(marker) if item.get_closest_marker(marker) else None
        if reason is None:
            continue
        if marker != "gpu" and os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this test: {reason}", pytrace=False)
        pytest.skip(reason)
