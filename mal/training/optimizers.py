"""torch's Adam and SGD, fused: the same updates bit for bit, at less cost.

Two things are avoided. A few methods of torch's optimisers are wrapped to keep its compiler (dynamo) out of them, which
imports it at the first call: over a second of every process, for nothing where nothing is compiled. And the fused Adam
of CPUs copies each channels_last gradient into another order of memory (torch 2.6 to 2.15), and pairs wrong elements
where a gradient's order is not its weight's: here it sees both as contiguous, in the weight's order.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, TypeVar

import torch
from torch import Tensor

Base = TypeVar("Base", bound=torch.optim.Optimizer)
_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def _without_compiler(optimizer: type[Base]) -> type[Base]:
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in _WRAPPED}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), {**methods, "step": step, "__doc__": optimizer.__doc__})


class _InMemoryOrder(torch.optim.Adam):
    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> Any:
        outcome = super()._init_group(group, *lists)
        for at, weight in enumerate(lists[0]):
            if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
                for tensors in lists[:-1]:  # all but the counts of steps; those not in use are empty
                    if tensors:
                        tensors[at] = _by_channel(tensors[at])
        return outcome


def _by_channel(tensor: Tensor) -> Tensor:
    """(N, C, H, W) as contiguous (N, H, W, C): a view where it is channels_last."""
    return tensor.permute(0, 2, 3, 1).contiguous()


Adam = _without_compiler(_InMemoryOrder)
SGD = _without_compiler(torch.optim.SGD)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """The learning rate of a group of an optimiser's parameters."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def rates_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Make an optimiser's steps ones that can be recorded: they read the learning rates, float32, on the device."""
    optimizer._warned_capturable_if_run_uncaptured = True  # those before it are meant
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), float(group["lr"]), dtype=torch.float32, device=device)
        if "capturable" in group:  # SGD needs no such promise
            group["capturable"] = True


def schedule(name: str, progress: float, step: int = 0) -> float:
    """The factor on a learning rate at a share of training, in [0, 1).

    constant; cosine; quarters: a tenth after each quarter (VAAL's code); inverse: (1 + 0.0001 step)^-0.75 (MME's code).
    """
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if name == "quarters":
        return float(0.1 ** int(progress * 4))
    if name == "inverse":
        return float((1 + 1e-4 * step) ** -0.75)
    assert name == "constant", name
    return 1.0
