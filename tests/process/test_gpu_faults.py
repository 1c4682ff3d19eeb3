"""Whose an error is, by the words in which torch, CUDA, NCCL and the system tell of it."""

import pytest
import torch
from torch.distributed import DistBackendError, DistNetworkError

from mal.process.distributed import ProcessFailed, ProcessLost
from mal.process.faults import Fault, Misplaced, fault_of

# As torch 2.6 to 2.15 words them, shortened behind what tells.
OF_THE_PLACE = [
    RuntimeError(
        "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported"
    ),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("unspecified launch failure"),
    RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
    RuntimeError("CUDA error: the launch timed out and was terminated"),
    RuntimeError("CUDA error: uncorrectable NVLink error detected during the execution"),
    RuntimeError("CUDA error: hardware stack error"),
    RuntimeError("CUDA error: system not yet initialized"),
    RuntimeError("CUDA error: unknown error"),
    RuntimeError("CUDA error: invalid device ordinal"),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
    RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver"),
    RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu."),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("CUDA error: MPS client failed to connect to the MPS control daemon or the MPS server"),
    RuntimeError("MPS server is not ready to accept new MPS client requests"),
    DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:2251, unhandled system error"),
    DistBackendError("NCCL communicator was aborted on rank 1."),
    DistBackendError("Watchdog caught collective operation timeout"),
    DistNetworkError("The client socket has timed out after 600000ms"),
    ProcessFailed("process 3 on gpu07: RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    ProcessFailed("process 1 on gpu07: DistBackendError: remote process exited"),
    ProcessFailed("process 1 on gpu07: Misplaced: torch finds no GPU"),
    ProcessLost("Process 0 of 2 has lost the others: NCCL"),
    Misplaced("anything"),
    ImportError("libcudart.so.13: cannot open shared object file"),
]
OF_THE_CODE = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    RuntimeError("CUDA error: operation failed due to a previous error during capture"),
    RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned."),
    RuntimeError("Offset increment outside graph capture encountered unexpectedly."),
    RuntimeError("CUDA error: invalid configuration argument"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    RuntimeError("Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same"),
    RuntimeError("adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set"),
    RuntimeError("\"nll_loss2d_forward_out_cuda_template\" not implemented for 'Half'"),
    ValueError("2 processes share a GPU: start one process per GPU"),
    AssertionError("the GPU's picks are others"),
    ProcessFailed("process 1 on gpu07: ValueError: 2 processes share a GPU: start one process per GPU"),
    ProcessFailed("process 1 on gpu07: ZeroDivisionError: a mean over the GPUs"),
    ZeroDivisionError("made up"),
]
OF_THE_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ProcessFailed("process 1 on gpu07: OutOfMemoryError: CUDA out of memory."),
]
CASES = [(Fault.PLACE, OF_THE_PLACE), (Fault.CODE, OF_THE_CODE), (Fault.MEMORY, OF_THE_MEMORY)]


@pytest.mark.parametrize(
    ("whose", "error"),
    [(whose, error) for whose, errors in CASES for error in errors],
    ids=lambda value: str(value)[:50],
)
def test_whose_an_error_is(whose: Fault, error: Exception) -> None:
    assert fault_of(error) is whose
