"""torch's Adam and SGD, fused, that do not import torch's compiler.

A few methods of torch's optimisers are wrapped to keep its compiler (dynamo) out of them, which imports it at the
first call: over a second of every process, for nothing where nothing is compiled. Here are the methods within.
"""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch

Base = TypeVar("Base", bound=torch.optim.Optimizer)
_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def _without_compiler(optimizer: type[Base]) -> type[Base]:
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in _WRAPPED}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), {**methods, "step": step, "__doc__": optimizer.__doc__})


Adam = _without_compiler(torch.optim.Adam)
SGD = _without_compiler(torch.optim.SGD)
