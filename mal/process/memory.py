"""Memory of this process: freed blocks kept for the next step; what is resident; peaks on the host and the device."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")  # of Linux
GROUPS, OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 2**31 - 1  # at the top of the heap, before any is given back
LARGEST_BYTES = 2**30  # of a block that comes from the heap


def keep_freed_memory() -> bool:
    """Let malloc reuse the large blocks of a training step in the next one, instead of returning them to the system.

    Each step would otherwise have its activations and gradients mapped, zeroed and faulted in anew. The peak stays the
    same. Returns whether the C library took it: glibc does, others have no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_M_MMAP_THRESHOLD, LARGEST_BYTES), (_M_TRIM_THRESHOLD, KEPT_BYTES))
    return mallopt is not None and all(mallopt(setting, value) == 1 for setting, value in settings)


def peak_host_mib() -> int:
    """The most memory that this process has had resident so far, in MiB."""
    # getrusage's peak is also that of the process that started this one, so it is the second choice.
    with contextlib.suppress(OSError), STATUS.open() as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def resident_mib() -> int:
    """What this process has resident now, in MiB."""
    return psutil.Process().memory_info().rss // 2**20


def peak_device_mib(device: torch.device) -> int | None:
    """The most memory that tensors have had on a GPU so far, in MiB; None on the CPU, where it is the host's."""
    import torch

    return torch.cuda.max_memory_allocated(device) // 2**20 if device.type == "cuda" else None


def reserved_device_mib(device: torch.device) -> int | None:
    """The most memory of a GPU that this process has held so far, freed blocks kept for reuse too, in MiB."""
    import torch

    return torch.cuda.max_memory_reserved(device) // 2**20 if device.type == "cuda" else None


def available_memory() -> int:
    """Bytes that this process may still take: the machine's free memory, or what its control groups leave of it."""
    return max(0, min([int(psutil.virtual_memory().available), *_left_by_groups()]))


def _left_by_groups(groups: Path = GROUPS, process: Path = OF_PROCESS) -> Iterator[int]:
    """Bytes that this process's control group and those around it leave, of version 1 and 2; none without a limit.

    What the kernel keeps of files counts as free: it gives that up first.
    """
    with contextlib.suppress(OSError):
        for line in process.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                base, names = groups, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                base, names = (
                    groups / "memory",
                    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
                )
            else:
                continue
            for group in (base / path.lstrip("/"), *(base / path.lstrip("/")).parents):
                if group.is_relative_to(base):
                    yield from _left_by(group, *names)


def _left_by(group: Path, limit: str, used: str, kept: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        most, taken = int((group / limit).read_text()), int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield most - taken + int(statistics.get(kept, 0))
