"""The cause of an error: the code, the memory, the storage, or the place, which is the node that it happened on.

Only an error of the code comes back wherever and whenever the work is tried again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

from mal.process.distributed import ProcessLost


class Fault(Enum):
    """Whose an error is."""

    CODE = "code"
    MEMORY = "memory"
    STORAGE = "storage"
    PLACE = "place"


class Misplaced(Exception):
    """What a process was started for and what it finds are not the same: its GPUs, its code, its number of tasks."""


# torch on a GPU, cuBLAS, torch on the host, C++, the kernel; a loader's process, which the kernel kills first. Each
# also as another process tells of it.
_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|ALLOC_FAILED|can.t allocate memory|bad_alloc|Cannot allocate memory|MemoryError"
    r"|DataLoader worker .*(killed by signal|exited unexpectedly)|out of shared memory"
    r"|process pool was terminated abruptly|loader process .* ended"
)
# Files as torch, numpy, safetensors and other processes tell of them.
_STORAGE = re.compile(
    r"\[Errno \d+\]|OSError|No space left|StorageFull|Disk quota|quota exceeded|Stale file handle|Input/output error"
    r"|Remote I/O|Read-only file system|file write failed|failed (writing|finding|reading) |unexpected pos \d"
    r"|Transport endpoint|PytorchStreamWriter|Os \{ code"
)
# Drivers, devices and the network between them in any words, also where no GPU is named; libraries that a node lacks.
_PLACE = re.compile(
    r"cuda|cudnn|cublas|nccl|nvidia|nvml|\bECC\b|\bHIP\b|hip error|rocm|\bXid\b|AcceleratorError|\bGPUs?\b|nvlink"
    r"|unspecified launch failure|launch timed out|hardware stack error|busy or unavailable|\bMPS (client|server)"
    r"|\bDist(Backend|Network|Store)?Error\b"
    r"|ImportError|ModuleNotFoundError|cannot open shared object|GLIBC|illegal instruction|Misplaced",
    re.IGNORECASE,
)
# What GPUs and their libraries say of wrong arguments, and torch of tensors that do not go together.
_OF_THE_CODE = re.compile(
    r"device-side assert|same device|indices should be|illegal memory access|misaligned address"
    r"|invalid (argument|configuration|resource handle|texture)|deterministic (implementation|behavior)"
    r"|stream is capturing|(during|graph) capture"
    r"|STATUS_(INVALID_VALUE|NOT_SUPPORTED|BAD_PARAM)|should be the same|not implemented for|cuda\.\w*Tensor",
    re.IGNORECASE,
)
# Raised for what somebody wrote, whatever the words; also as another process tells of them.
_WRITTEN = (ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError, ArithmeticError)
_WRITTEN_ELSEWHERE = re.compile(
    r"ProcessFailed: process \d+ on \S+: "
    r"(Value|Type|Key|Index|Attribute|Assertion|NotImplemented|ZeroDivision|Overflow|FloatingPoint)Error:"
)


def fault_of(error: BaseException) -> Fault:
    """Whose an error is, by its type, its words, and those of what it was raised from."""
    chain = list(_causes(error))
    words = " / ".join(f"{type(each).__name__}: {each}" for each in chain)
    if _MEMORY.search(words):
        return Fault.MEMORY
    if any(isinstance(each, OSError) and not isinstance(each, ProcessLost) for each in chain) or _STORAGE.search(words):
        return Fault.STORAGE
    if any(isinstance(each, Misplaced) for each in chain):
        return Fault.PLACE
    if isinstance(error, _WRITTEN) or _WRITTEN_ELSEWHERE.search(words):
        return Fault.CODE
    return Fault.PLACE if _PLACE.search(words) and not _OF_THE_CODE.search(words) else Fault.CODE


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was explicitly raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
