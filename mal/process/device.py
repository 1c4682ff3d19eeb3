"""The device of a chain: which one, how many threads, reproducible kernels, mixed precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from mal.config.schema import Chain
from mal.process.distributed import ALONE, World
from mal.process.memory import keep_freed_memory
from mal.process.sync_batch_norm import synchronise

Placed = TypeVar("Placed", bound=nn.Module)


@dataclass(frozen=True)
class Device:
    """A torch device with the precision of the chain, and the processes that have one each."""

    torch: torch.device
    bf16: bool
    world: World = ALONE
    sync_batch_norm: bool = True

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 autocast for forward passes where precision=bf16, else nothing."""
        return torch.autocast(self.torch.type, dtype=torch.bfloat16, enabled=self.bf16)

    def place(self, module: Placed, channels_last: bool = True) -> Placed:
        """Put a network on the device, its convolutions channels_last: faster on CPUs and on GPUs' tensor cores."""
        if self.world.size > 1 and self.sync_batch_norm:
            synchronise(module, self.world, cuda=self.torch.type == "cuda")
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return module.to(self.torch, memory_format=memory_format)  # type: ignore[call-overload]

    def seed(self, seed: int) -> None:
        """Seed what torch's own modules draw from (initialisation, dropout), on the host and on the device."""
        torch.default_generator.manual_seed(seed)
        if self.torch.type == "cuda":
            torch.cuda.manual_seed(seed)

    @property
    def name(self) -> str:
        """For people: cpu, or the GPU's model."""
        return torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else "cpu"


def prepare_device(config: Chain, world: World = ALONE) -> Device:
    """Choose the device and make its arithmetic repeatable: a resumed run must equal an undisturbed one bit for bit.

    Raises ValueError for device=cuda where there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no CUDA device: use device=auto or device=cpu.")
    cuda = torch.cuda.is_available() and config.device != "cpu"
    if config.threads:
        torch.set_num_threads(config.threads)
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by deterministic cuBLAS
        torch.backends.cudnn.benchmark = False
        if world.size > 1:
            torch.cuda.set_device(world.local % torch.cuda.device_count())
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms, without importing torch's compiler
    keep_freed_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    bf16 = config.precision == "bf16"
    return Device(torch.device("cuda" if cuda else "cpu"), bf16, world, config.sync_batch_norm)
