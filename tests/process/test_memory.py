"""Freed memory stays in the process; peaks are what was used."""

from pathlib import Path

import pytest
import torch

from mal.process import memory
from mal.process.memory import peak_device_mib, peak_host_mib
from tests.chains import CPU, python

ALLOCATES = """
import resource, torch
from mal.process import memory
from mal.process.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(2**24)
given_back = faults()
assert keep_freed_memory()
for _ in range(5):
    faults()  # until the heap has grown around what else is allocated
print(given_back, faults())
"""


def test_freed_blocks_are_reused_instead_of_faulted_in_anew() -> None:
    ended = python("-c", ALLOCATES)
    assert ended.returncode == 0, ended.stderr
    given_back, kept = map(int, ended.stdout.split())
    assert kept < 100 < 5 * 2**26 // 4096 // 600 <= given_back  # pages of 4 KiB, or fewer and larger ones


def test_peaks() -> None:
    before = peak_host_mib()
    block = torch.ones(2**26 + 2**18 * before)  # 256 MiB beyond what there was
    assert peak_host_mib() >= before + 200
    assert block.sum() > 0
    assert peak_device_mib(CPU.torch) is None


def test_a_peak_is_of_this_process_not_of_the_one_that_started_it() -> None:
    large = torch.ones(2**28)  # 1 GiB
    ended = python("-c", "import mal.process.memory; print(mal.process.memory.peak_host_mib())")
    assert ended.returncode == 0, ended.stderr
    assert large.sum() > 0
    assert int(ended.stdout) < 900


@pytest.mark.parametrize(
    ("version", "limit", "used", "kept"),
    [
        (2, "memory.max", "memory.current", "inactive_file"),
        (1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_limits_of_control_groups_of_both_versions_and_of_those_around_are_kept(
    tmp_path: Path, version: int, limit: str, used: str, kept: str
) -> None:
    base = tmp_path / "groups" / ("memory" if version == 1 else "")
    job, step = base / "slurm" / "job_7", base / "slurm" / "job_7" / "step_0"
    step.mkdir(parents=True)
    for group, most in ((job, "5000"), (step, "max" if version == 2 else str(2**63 - 4096))):
        (group / limit).write_text(f"{most}\n")
        (group / used).write_text("3000\n")
        (group / "memory.stat").write_text(f"anon 1000\n{kept} 400\n")
    process = tmp_path / "cgroup"
    lines = {2: "0::/slurm/job_7/step_0\n", 1: "9:cpu,memory:/slurm/job_7/step_0\n2:cpuset:/elsewhere\n"}
    process.write_text(lines[version])
    assert min(memory._left_by_groups(tmp_path / "groups", process)) == 2400
    process.write_text("")
    assert list(memory._left_by_groups(tmp_path / "groups", process)) == []
