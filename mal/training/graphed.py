"""A phase's step recorded once as a CUDA graph and replayed: one launch in place of one for each of its kernels.

What differs between steps is data that the recorded kernels read on the device: the batches, copied to the same memory
before each replay; the learning rates, in float32; the seed, which torch hands to a graph at each replay. The steps
that a recording needs before it are undone, so every step of a phase is a replay, also after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from mal.process.device import Device
from mal.run.checkpoint import copied
from mal.training.objective import Inputs, Objective
from mal.training.optimizers import rates_on_device

WARM_UP = 3  # steps, after which libraries have their workspaces and optimisers their state
Losses = dict[str, Tensor]


class Graphed(Objective):
    """An objective whose update is recorded at the first step."""

    def __init__(self, objective: Objective, device: Device) -> None:
        self.objective, self.device = objective, device.torch
        self.modules, self.optimizers, self.strong = objective.modules, objective.optimizers, objective.strong
        self._inputs: dict[str, Inputs] = {}
        self._replay: Callable[[], object] | None = None
        self._losses: Losses = {}
        for optimizer in self.optimizers.values():
            rates_on_device(optimizer, self.device)

    def set_rates(self, progress: float) -> None:
        """See `Objective`."""
        self.objective.set_rates(progress)

    def update(self, inputs: Mapping[str, Inputs]) -> Losses:
        """See `Objective`; the next update overwrites the losses.

        ValueError where the step cannot be recorded, as it copies from the host or reads a number from the device.
        """
        if self._replay is None:
            self._replay = self._recorded(inputs)
        for name, part in inputs.items():
            _fill(self._inputs[name], part)
        self._replay()
        return self._losses

    def _recorded(self, inputs: Mapping[str, Inputs]) -> Callable[[], object]:
        self._inputs = {name: _apart(part) for name, part in inputs.items()}
        update = partial(self.objective.update, self._inputs)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), undone(self):
            warm_up(update)
        try:
            replay, self._losses = record(update)
        except RuntimeError as error:
            if "captur" not in str(error):
                raise
            raise ValueError(
                f"cuda_graphs=true: this step cannot be recorded ({str(error).splitlines()[0]}). "
                "Launch with cuda_graphs=false, under another name=."
            ) from error
        return replay


def warm_up(update: Callable[[], Losses]) -> None:
    """Some steps on a stream of their own, as torch asks for before a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            update()
    torch.cuda.current_stream().wait_stream(stream)


def record(update: Callable[[], Losses]) -> tuple[Callable[[], object], Losses]:
    """What makes the recorded step, and where its losses are then; records it without making it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loaders' threads may use the device meanwhile
        losses = update()
    return graph.replay, losses


@contextmanager
def undone(objective: Objective) -> Iterator[None]:
    """Puts networks and optimisers back, in the same memory; the state that an optimiser did not have yet is zeros."""
    networks = [tensor for module in objective.modules.values() for tensor in module.state_dict().values()]
    before = copied(networks)  # on the host: the device's memory may be short
    moments = {id(tensor): copied(tensor) for tensor in _moments(objective)}
    yield
    with torch.no_grad():
        for tensor, value in zip(networks, before, strict=True):
            tensor.copy_(value)
        for tensor in _moments(objective):
            tensor.copy_(moments[id(tensor)]) if id(tensor) in moments else tensor.zero_()


def _moments(objective: Objective) -> list[Tensor]:
    """All tensors of the optimisers' state."""
    states = [state for optimizer in objective.optimizers.values() for state in optimizer.state.values()]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _apart(part: Inputs) -> Inputs:
    """The same inputs in memory of their own."""
    strong = None if part.strong is None else part.strong.clone()
    return Inputs(part.images.clone(), part.labels.clone(), part.weight, strong)


def _fill(part: Inputs, new: Inputs) -> None:
    """Put the inputs of another step, of the same sizes, where those of the recorded step were."""
    sizes = [(inputs.weight, inputs.images.shape, inputs.labels.shape) for inputs in (part, new)]
    assert sizes[0] == sizes[1], f"all batches of a phase are full: {sizes}"
    part.images.copy_(new.images)
    part.labels.copy_(new.labels)
    if part.strong is not None and new.strong is not None:
        part.strong.copy_(new.strong)
