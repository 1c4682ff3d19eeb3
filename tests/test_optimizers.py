"""Adam and SGD are torch's, bit for bit, and bring no compiler into the process."""

from collections.abc import Callable

import pytest
import torch
from chains import python
from torch import nn

from mal import optimizers

KINDS: dict[
    str, tuple[Callable[..., torch.optim.Optimizer], Callable[..., torch.optim.Optimizer], dict[str, float]]
] = {
    "adam": (optimizers.Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "sgd": (optimizers.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
}


def trained(
    build: Callable[..., torch.optim.Optimizer], options: dict[str, float], reload_at: int | None
) -> list[bytes]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer = build(model.parameters(), fused=True, **options)
    inputs = torch.randn(7, 5)
    for t in range(6):
        if t == reload_at:
            state = optimizer.state_dict()
            optimizer = build(model.parameters(), fused=True, **options)
            optimizer.load_state_dict(state)
        optimizer.zero_grad(set_to_none=True)
        assert all(parameter.grad is None for parameter in model.parameters())
        model(inputs).square().sum().backward()
        optimizer.step()
    assert torch.is_grad_enabled()
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reload_at", [None, 3])
def test_steps_are_those_of_torch(kind: str, reload_at: int | None) -> None:
    ours, theirs, options = KINDS[kind]
    assert trained(ours, options, reload_at) == trained(theirs, options, None)


def test_a_second_group_of_parameters_has_its_own_rate() -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = optimizers.SGD([one], lr=0.5)
    optimizer.add_param_group({"params": [two], "lr": 0.25})
    (one + two).backward()
    optimizer.step()
    assert (one.item(), two.item()) == (0.5, 0.75)


TRAINS = """
import sys, torch
from mal.optimizers import SGD, Adam
from mal.compose import compose_sweep
from mal.device import prepare_device
(chain,) = compose_sweep(["seeds=1", "methods=[random]", "device=cpu", "threads=1"]).chains
prepare_device(chain)
assert torch.get_deterministic_debug_mode() == 2
model = torch.nn.Linear(2, 2)
for kind in (Adam, SGD):
    optimizer = kind(model.parameters(), lr=0.1, fused=True)
    optimizer.zero_grad(set_to_none=True)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_training_imports_no_compiler() -> None:
    ended = python("-c", TRAINS)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr
