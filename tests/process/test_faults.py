"""Whose an error is decides what becomes of a job: only the code's own errors are recorded at once."""

import errno

import pytest

from mal.process.distributed import ProcessFailed
from mal.process.faults import Fault, Misplaced, fault_of

ERRORS = [
    (Fault.PLACE, RuntimeError("CUDA error: uncorrectable ECC error encountered")),
    (Fault.PLACE, RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronous")),
    (Fault.PLACE, RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")),
    (Fault.PLACE, RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`")),
    (Fault.PLACE, RuntimeError("No CUDA GPUs are available")),
    (Fault.PLACE, RuntimeError("Found no NVIDIA driver on your system.")),
    (Fault.PLACE, RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error")),
    (Fault.PLACE, RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized")),
    (Fault.PLACE, ImportError("libcudnn.so.9: cannot open shared object file: No such file or directory")),
    (Fault.PLACE, ProcessFailed("process 1 on n2: AcceleratorError: CUDA error: uncorrectable ECC error encountered")),
    (Fault.PLACE, Misplaced("3 processes share the work, but the job asked for 4.")),
    (Fault.MEMORY, RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
    (Fault.MEMORY, RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")),
    (Fault.MEMORY, RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly")),
    (Fault.MEMORY, RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. out of shared memory")),
    (Fault.STORAGE, OSError(errno.ESHUTDOWN, "Cannot send after transport endpoint shutdown")),
    (Fault.STORAGE, OSError(errno.ESTALE, "Stale file handle")),
    (Fault.STORAGE, RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")),
    (Fault.STORAGE, RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")),
    (Fault.STORAGE, ProcessFailed("process 1 on n2: OSError: [Errno 5] Input/output error: '/shared/x'")),
    (Fault.CODE, RuntimeError("CUDA error: device-side assert triggered")),
    (Fault.CODE, RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!")),
    (Fault.CODE, ValueError("budget=3 is more than the 2 images of the pool.")),
    (Fault.CODE, RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")),
]


@pytest.mark.parametrize(("fault", "error"), ERRORS, ids=[str(error)[:40] for _, error in ERRORS])
def test_an_error_is_of_the_code_the_memory_the_storage_or_the_place(fault: Fault, error: Exception) -> None:
    assert fault_of(error) is fault


def test_what_an_error_was_raised_from_counts() -> None:
    """A writer's error that hides a full disk."""
    error = RuntimeError("the archive was not written")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert fault_of(error) is Fault.STORAGE
