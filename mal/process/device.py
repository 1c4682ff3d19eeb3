"""The device of a chain: which one, how many threads, reproducible kernels, mixed precision."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from mal.config.schema import Chain
from mal.process.distributed import ALONE, World
from mal.process.faults import Misplaced
from mal.process.memory import keep_freed_memory
from mal.process.sync_batch_norm import synchronise

Placed = TypeVar("Placed", bound=nn.Module)
_INDICES = re.compile(r"\d|GPU-|MIG-")
_COUNT = re.compile(r"[1-9]|\w+:")  # 4, or a100:4
DRIVER = Path("/sys/module/nvidia/version")
# What gives a process GPUs: CUDA's variable, and Slurm's inside a job.
_GIVEN = {
    "SLURM_STEP_GPUS": _INDICES,
    "SLURM_JOB_GPUS": _INDICES,
    "SLURM_GPUS_ON_NODE": _COUNT,
    "SLURM_GPUS_PER_NODE": _COUNT,
    "SLURM_GPUS": _COUNT,
    "CUDA_VISIBLE_DEVICES": _INDICES,
}


@dataclass(frozen=True)
class Device:
    """A torch device with the precision of the chain, and the processes that have one each.

    graphs: whether steps of training are recorded and replayed (mal/training/graphed.py).
    """

    torch: torch.device
    bf16: bool
    world: World = ALONE
    sync_batch_norm: bool = True
    graphs: bool = False

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


def prepare_device(config: Chain, world: World = ALONE, gpus: int = 0) -> Device:
    """Choose the device and make its arithmetic repeatable: a resumed run must equal an undisturbed one bit for bit.

    gpus: how many the job asked for on each node. Raises ValueError for device=cuda where there is none, and where
    several processes would share a GPU, and for cuda_graphs=true without a GPU or in several processes; `Misplaced`
    where this process has been given GPUs and torch finds none.
    """
    cuda = torch.cuda.is_available() and config.device != "cpu"
    if config.device != "cpu" and not cuda:
        _refuse_missing(config, gpus)
    _check_graphs(config, cuda, world)
    if config.threads:
        torch.set_num_threads(config.threads)
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by deterministic cuBLAS
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = config.tf32
        if world.size > 1:
            torch.cuda.set_device(world.local % torch.cuda.device_count())
            refuse_shared(world.all(f"{socket.gethostname()} {torch.cuda.get_device_properties().uuid}"))
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms, without importing torch's compiler
    keep_freed_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    bf16 = config.precision == "bf16"
    return Device(torch.device("cuda" if cuda else "cpu"), bf16, world, config.sync_batch_norm, config.cuda_graphs)


def gpu_versions() -> dict[str, str | None]:
    """Of the libraries and the driver that compute on NVIDIA's GPUs, as far as they tell."""
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
    return {
        "cudnn": str(torch.backends.cudnn.version()),
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "driver": DRIVER.read_text().strip() if DRIVER.is_file() else None,
    }


def _refuse_missing(config: Chain, gpus: int) -> None:
    """Refuse to compute on the CPU in silence where GPUs were meant."""
    given = f"the job asked for {gpus} GPUs on each node" if gpus else held_gpus()
    if given:
        raise Misplaced(
            f"{given}, and torch {torch.__version__} finds none on {socket.gethostname()}: no driver, an older one "
            "than this torch needs, a broken device, or a torch for CPUs only. device=cpu or cluster.gpus_per_node=0 "
            "compute without."
        )
    if config.device == "cuda":
        raise ValueError("device=cuda, but torch finds no CUDA device: use device=auto or device=cpu.")


def _check_graphs(config: Chain, cuda: bool, world: World) -> None:
    if config.cuda_graphs and (not cuda or world.size > 1):
        where = f"in {world.size} processes" if cuda else "without a GPU"
        raise ValueError(f"cuda_graphs=true does not go {where}: set cuda_graphs=false.")


def held_gpus() -> str:
    """How the environment says that this process has been given GPUs; empty where it has been given none."""
    jobs = _GIVEN if "SLURM_JOB_ID" in os.environ else {"CUDA_VISIBLE_DEVICES": _GIVEN["CUDA_VISIBLE_DEVICES"]}
    held = (f"{name}={os.environ[name]} gives GPUs" for name, words in jobs.items() if words.match(_value(name)))
    return next(held, "")


def _value(name: str) -> str:
    return os.environ.get(name, "").strip()


def refuse_shared(places: Sequence[str]) -> None:
    """ValueError where two processes have one GPU, which NCCL refuses; places: of each process, "HOST GPU"."""
    for place, count in Counter(places).items():
        if count > 1:
            host, _, name = place.partition(" ")
            raise ValueError(
                f"{count} of {len(places)} processes share a GPU ({name} of {host}): start at most one process per "
                "GPU, e.g. cluster.tasks_per_node=null, or ask for more GPUs with cluster.gpus_per_node."
            )
