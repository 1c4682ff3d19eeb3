"""Steps recorded once and replayed on a CPU (replaying.py): networks, moments and losses of ordinary steps."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import mal.minimax
import mal.task
from mal.config.schema import Task
from mal.data.loader import MemoryLoader
from mal.methods.vaal import HIDDEN_UNITS, VAALObjective
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import Discriminator, TaskModel
from mal.models.vae import VAE
from mal.process.device import Device
from mal.process.faults import Fault, fault_of
from mal.process.interrupt import Interrupt, Interrupted
from mal.run.checkpoint import copied
from mal.task import FixMatch, Supervised
from mal.training import graphed
from mal.training.graphed import Graphed
from mal.training.objective import Inputs, Objective
from mal.training.optimizers import schedule
from tests.chains import CPU, chain_config, made_up_images, plain_augmentation, trainer_in
from tests.test_chain_maps import scenes_config
from tests.training.replaying import Recorder, replay_on_the_cpu

GRAPHS = Device(CPU.torch, bf16=False, graphs=True)
COUNT, BATCH, STEPS = 22, 8, 7
LABELLED, UNLABELLED = np.arange(0, COUNT, 2), np.arange(1, COUNT, 2)
EXACT = 2.0**-9  # a rate that is the same number in float32


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    replay_on_the_cpu(monkeypatch.setattr)
    # Halved after each quarter: numbers that float32 holds, so that both ways have the same rates.
    for module in (mal.task, mal.minimax):
        monkeypatch.setattr(module, "schedule", lambda name, progress, step=0: 2.0 ** -int(4 * progress))


def task(**changes: Any) -> Task:
    return Task(**(vars(chain_config().task) | {"lr": EXACT, "schedule": "quarters"} | changes))


def model() -> TaskModel:
    return TaskModel(build_backbone({"name": "small_cnn", "width": 2}, 1), 10, dropout=0.3)


def minimax(*words: str, device: Device = CPU, config: Any = chain_config) -> Objective:
    rates = [f"minimax.lr_{name}={EXACT}" for name in "fcd"]
    chosen = config("minimax.schedule=cosine", *rates, *words)
    return MinimaxObjective(build_networks(chosen, device), chosen.minimax, device, STEPS)


def vaal() -> Objective:
    method = chain_config(method="vaal").method | {"lr": EXACT}
    return VAALObjective(VAE(1, 8, 4, 4), Discriminator(4, HIDDEN_UNITS), method, CPU)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "minimax": minimax,
    "minimax_bf16": lambda: minimax(device=Device(CPU.torch, bf16=True)),
    "minimax_sgd": lambda: minimax("minimax.optimizer=sgd", "minimax.d_to_f=0.1", "minimax.d_features=eval"),
    "minimax_maps": lambda: minimax(config=scenes_config),
    "sgd": lambda: Supervised(model(), task(optimizer="sgd", momentum=0.9), CPU),
    "adam": lambda: Supervised(model(), task(optimizer="adam"), CPU),
    "fixmatch": lambda: FixMatch(model(), task(semi="fixmatch", semi_ratio=2, semi_threshold=0.1), CPU),
    "vaal": vaal,
}


def parts(kind: str) -> dict[str, np.ndarray]:
    if kind == "vaal":
        turns = range(chain_config(method="vaal").method["vae_steps"])
        return {f"{name}_{t}": i for name, i in (("labelled", LABELLED), ("unlabelled", UNLABELLED)) for t in turns}
    if kind == "fixmatch":
        return {"labelled": LABELLED, "unlabelled_0": UNLABELLED, "unlabelled_1": UNLABELLED}
    return {"labelled": LABELLED, "unlabelled": UNLABELLED}


def loader(kind: str) -> MemoryLoader:
    if kind == "minimax_maps":
        maps = np.random.default_rng(0).integers(0, 10, (COUNT, 48, 48), dtype=np.uint8)
        return MemoryLoader(made_up_images(COUNT, size=48), maps, CPU.torch)
    return MemoryLoader(made_up_images(COUNT), np.arange(COUNT) % 10, CPU.torch)


def trained(folder: Path, kind: str, device: Device = GRAPHS, stop: int | None = None) -> Any:
    """A phase from its last checkpoint, stopped in its step `stop` from there: networks, moments and losses."""
    torch.manual_seed(3)
    objective, interrupt, begun = OBJECTIVES[kind](), Interrupt(), []
    set_rates = objective.set_rates

    def looked_at(progress: float) -> None:
        begun.append(progress)
        interrupt.cause = "a test" if len(begun) == stop else None
        set_rates(progress)

    objective.set_rates = looked_at  # type: ignore[method-assign]
    augmentation = plain_augmentation(flip=True, pad_crop=1)
    trainer = trainer_in(folder, loader(kind), interrupt, augmentation=augmentation, device=device)
    if stop is None:
        trainer.run("phase", objective, parts(kind), BATCH, STEPS)
    else:
        with pytest.raises(Interrupted):
            trainer.run("phase", objective, parts(kind), BATCH, STEPS)
        assert len(begun) == stop
    networks = {name: module.state_dict() for name, module in objective.modules.items()}
    return copied([networks, graphed._moments(objective), trainer.history])


def same(one: Any, other: Any) -> bool:
    """Whether both have the same bits."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_replayed_steps_are_ordinary_ones_also_when_interrupted(tmp_path: Path, kind: str) -> None:
    ordinary = trained(tmp_path / "ordinary", kind, CPU)
    assert same(trained(tmp_path / "replayed", kind), ordinary)
    for stop in (1, 2, 3):  # in the steps 0, 2 and 5
        trained(tmp_path / "interrupted", kind, stop=stop)
    assert same(trained(tmp_path / "interrupted", kind), ordinary)


def test_what_stays_in_python_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = trained(tmp_path / "ordinary", "adam", CPU)
    monkeypatch.setattr(graphed, "rates_on_device", lambda *_: None)
    assert not same(trained(tmp_path / "replayed", "adam"), ordinary)


def test_steps_before_the_recording_count_where_they_are_not_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = trained(tmp_path / "ordinary", "sgd", CPU)
    monkeypatch.setattr(graphed, "undone", lambda objective: contextlib.nullcontext())
    assert not same(trained(tmp_path / "replayed", "sgd"), ordinary)


def test_rates_are_those_of_the_schedule_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mal.task, "schedule", schedule)
    objective = Supervised(model(), task(lr=0.1, schedule="cosine"), CPU)
    step, rates = Graphed(objective, CPU), []
    inputs = {"labelled": Inputs(torch.rand(4, 1, 8, 8), torch.arange(4))}
    for t in range(4):
        before = copied(list(objective.model.parameters()))
        step.step(inputs, t / 4)
        moved = [(old - new).abs().sum() for old, new in zip(before, objective.model.parameters(), strict=True)]
        rates.append(float(objective.optimizer.param_groups[0]["lr"]))
        assert all(moved), "each step moves every weight"
    assert rates == [float(np.float32(0.1 * schedule("cosine", t / 4))) for t in range(4)]


def test_another_batch_size_is_refused() -> None:
    objective = Graphed(Supervised(model(), task(), CPU), CPU)
    objective.step({"labelled": Inputs(torch.rand(4, 1, 8, 8), torch.arange(4))}, 0.0)
    with pytest.raises(AssertionError, match="are full"):
        objective.step({"labelled": Inputs(torch.rand(1, 1, 8, 8), torch.arange(1))}, 0.0)


def test_reading_a_number_from_the_device_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="read from the device"), Recorder():
        float(torch.ones(1).sum())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture\nmore"), ValueError),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), ValueError),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), RuntimeError),
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
    ],
)
def test_a_step_that_cannot_be_recorded_names_the_key(
    error: RuntimeError, told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(update: Any) -> Any:
        raise error

    monkeypatch.setattr(graphed, "record", fails)
    objective = Graphed(Supervised(model(), task(), CPU), CPU)
    with pytest.raises(told) as caught:
        objective.step({"labelled": Inputs(torch.rand(4, 1, 8, 8), torch.arange(4))}, 0.0)
    assert type(caught.value) is told
    recorded = told is ValueError
    assert ("Launch with cuda_graphs=false, under another name=." in str(caught.value)) == recorded
    assert not recorded or ("\n" not in str(caught.value) and fault_of(caught.value) is Fault.CODE)
