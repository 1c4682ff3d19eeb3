"""The GPUs of this machine for local sweeps, by nvidia-smi: which there are, and how many chains one carries."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mal.config.schema import Chain
from mal.run import folder as run_folder

CONTEXT_MIB = 700  # of a process on a GPU besides its tensors: CUDA's context, kernels, cuBLAS's and cuDNN's workspaces
SPARE = 1.1  # of what a chain was seen to take: the next round has more labels


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in visible.split(",")]
        # As CUDA reads it: what is behind the first name that is not a GPU's does not count.
        wrong = next((i for i, name in enumerate(names) if not _is_gpu(name)), len(names))
        return names[:wrong]
    return [line.split(",")[0].strip() for line in _ask("index")]


def require_gpu(chains: Sequence[Chain]) -> None:
    """ValueError where torch finds no GPU here and the keys of a chain ask for one."""
    asked = ["device=cuda" for chain in chains if chain.device == "cuda"]
    asked += ["cuda_graphs=true" for chain in chains if chain.cuda_graphs]
    if asked:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"{asked[0]} needs a GPU, and torch {torch.__version__} finds none here.")


def free_mib(names: Sequence[str]) -> dict[str, int]:
    """The free memory of GPUs by name, as far as nvidia-smi tells."""
    found = {}
    for line in _ask("index,uuid,memory.free"):
        index, uuid, free = (word.strip() for word in line.split(","))
        for name in names:
            if free.isdecimal() and (name == index or (not name.isdecimal() and uuid.startswith(name))):
                found[name] = int(free)
    return found


def chains_on_each(free: Mapping[str, int], measured: Sequence[int], cores: int) -> int:
    """How many chains a GPU carries at a time: by the memory that chains of the sweep took, one where none has run.

    free: MiB of each GPU; measured: MiB of chains; cores: that all chains share, at least one each.
    """
    if not free or not measured:
        return 1
    fitting = min(free.values()) // int(SPARE * max(measured) + CONTEXT_MIB)
    return max(1, min(fitting, cores // len(free)))


def measured_mib(chains: Sequence[Path]) -> list[int]:
    """The most that each chain has taken of a GPU, by the provenance of its last committed round, where it says so."""
    found = []
    for chain in chains:
        if committed := run_folder.committed_rounds(chain):
            provenance = run_folder.read_json(run_folder.round_folder(chain, committed - 1) / run_folder.PROVENANCE)
            if isinstance(taken := provenance.get("reserved_device_mib"), int):
                found.append(taken)
    return found


def _is_gpu(name: str) -> bool:
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))


def _ask(columns: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
