"""Recording and replaying a step on a CPU, in place of a CUDA graph.

What torch computes while a step is recorded is noted, operation by operation with its numbers and tensors, and a replay
makes just these operations again on the same memory: whatever else a step needs from Python is missed, as on a GPU.
What this cannot show: that a GPU's operations can be recorded, and that their replay has the same bits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mal.training import graphed
from mal.training.graphed import Losses


class Recorder(TorchDispatchMode):
    """Notes every operation with its arguments and what it gave, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number is read from the device while a step is recorded")
        given = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, given))
        return given

    @torch.no_grad()
    def replay(self) -> None:
        """The same operations on the same tensors; what they give goes where it was."""
        for function, args, kwargs, given in self.calls:
            for old, new in zip(tree_leaves(given), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def some_steps(update: Callable[[], Losses]) -> None:
    for _ in range(graphed.WARM_UP):
        update()


def noted(update: Any) -> tuple[Callable[[], object], Losses]:
    """In place of `record`: what is computed while it is noted is undone, as a graph's recording computes nothing."""
    with graphed.undone(update.func.__self__), torch.random.fork_rng(), Recorder() as recorder:
        losses = update()
    return recorder.replay, losses


def replay_on_the_cpu(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let `Graphed` record and replay so; put: what changes a module's function."""
    put(graphed, "warm_up", some_steps)
    put(graphed, "record", noted)
