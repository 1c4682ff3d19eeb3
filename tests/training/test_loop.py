"""The training loop: interrupted at any step equals undisturbed bit for bit; checkpoints, signals, heartbeats."""

import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mal.config.schema import Task
from mal.data.loader import MemoryLoader
from mal.files import write_atomic
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import checkpoint
from mal.run import folder as run_folder
from mal.run.heartbeat import Progress, read_progress
from mal.task import Supervised
from mal.training.loop import Trainer, steps_of
from mal.training.objective import Inputs, Objective
from tests.chains import CPU, chain_config, made_up_images, plain_augmentation, trainer_in

COUNT, BATCH, STEPS = 22, 8, 7  # batches cross the border of an epoch
INDICES = {"labelled": np.arange(0, COUNT, 2), "unlabelled": np.arange(1, COUNT, 2)}


def loader() -> MemoryLoader:
    return MemoryLoader(made_up_images(COUNT), np.arange(COUNT) % 10, CPU.torch)


def minimax_objective() -> Objective:
    torch.manual_seed(3)
    return MinimaxObjective(build_networks(chain_config("backbone.width=2"), CPU), chain_config().minimax, CPU)


def supervised(**changes: Any) -> Objective:
    torch.manual_seed(3)
    model = TaskModel(build_backbone({"name": "small_cnn", "width": 2}, 1), 10, dropout=0.3)
    return Supervised(model, Task(**(vars(chain_config().task) | changes)), CPU)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "minimax": minimax_objective,
    "sgd": lambda: supervised(optimizer="sgd", momentum=0.9, schedule="quarters"),
    "adam": lambda: supervised(optimizer="adam", schedule="cosine"),
}


class StopAt(Objective):
    """An objective during whose step `at` a stop is asked for, and that notes what it was given."""

    def __init__(self, objective: Objective, interrupt: Interrupt, at: int | None) -> None:
        self.objective, self.interrupt, self.at = objective, interrupt, at
        self.modules, self.optimizers = objective.modules, objective.optimizers
        self.seen: list[tuple[float, dict[str, Tensor]]] = []

    def step(self, inputs: Mapping[str, Inputs], progress: float) -> dict[str, Tensor]:
        self.seen.append((progress, {name: part.images.clone() for name, part in inputs.items()}))
        if self.at is not None and round(progress * STEPS) == self.at:
            self.interrupt.cause = "a test"
        return self.objective.step(inputs, progress)


def attempt(folder: Path, kind: str, at: int | None = None, **changes: Any) -> tuple[StopAt, Trainer]:
    """One process's attempt at the phase, stopped during step `at`; nothing of an earlier one but the disk is known."""
    interrupt = Interrupt()
    objective = StopAt(OBJECTIVES[kind](), interrupt, at)
    trainer = trainer_in(folder, loader(), interrupt, augmentation=plain_augmentation(flip=True, pad_crop=1), **changes)
    torch.manual_seed(os.getpid() + (at or 0))  # what was drawn elsewhere must not matter
    if at is None:
        trainer.run("phase", objective, INDICES, BATCH, STEPS)
    else:
        with pytest.raises(Interrupted, match="a test"):
            trainer.run("phase", objective, INDICES, BATCH, STEPS)
    return objective, trainer


def bits(value: Any) -> Any:
    """Comparable, tensors as their bytes."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, list | tuple) else value


def end(objective: StopAt, trainer: Trainer) -> Any:
    """Weights, running statistics, the optimisers' state and the history."""
    modules = {name: module.state_dict() for name, module in objective.modules.items()}
    optimizers = {name: optimizer.state_dict() for name, optimizer in objective.optimizers.items()}
    return bits({"modules": modules, "optimizers": optimizers, "history": trainer.history})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[StopAt, Trainer]]:
    return {kind: attempt(tmp_path_factory.mktemp(kind), kind) for kind in OBJECTIVES}


# ------------------------------------------------------------------------- interrupted equals undisturbed


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("at", range(STEPS))
def test_interrupted_at_any_step_equals_undisturbed(tmp_path: Path, undisturbed: Any, kind: str, at: int) -> None:
    first, _ = attempt(tmp_path, kind, at)
    second, trainer = attempt(tmp_path, kind)
    assert end(second, trainer) == end(*undisturbed[kind])
    assert len(first.seen) == at + 1
    assert len(second.seen) == STEPS - at - 1  # no step twice
    whole = undisturbed[kind][0].seen
    assert bits(first.seen + second.seen) == bits(whole)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_interrupted_at_every_step_equals_undisturbed(tmp_path: Path, undisturbed: Any, kind: str) -> None:
    for at in range(STEPS):
        attempt(tmp_path, kind, at)
    objective, trainer = attempt(tmp_path, kind)
    assert objective.seen == []
    assert end(objective, trainer) == end(*undisturbed[kind])


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_process_that_vanishes_goes_on_from_its_last_checkpoint(
    tmp_path: Path, undisturbed: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Vanished(BaseException):
        pass

    def vanishes(self: StopAt, inputs: Mapping[str, Inputs], progress: float) -> dict[str, Tensor]:
        if round(progress * STEPS) == 5:
            raise Vanished
        return self.objective.step(inputs, progress)

    monkeypatch.setattr(StopAt, "step", vanishes)
    with pytest.raises(Vanished):
        attempt(tmp_path, kind, checkpoint_seconds=0.0)
    monkeypatch.undo()
    objective, trainer = attempt(tmp_path, kind)
    assert len(objective.seen) == STEPS - 5
    assert end(objective, trainer) == end(*undisturbed[kind])


def test_the_undisturbed_phase_learns_and_depends_on_its_key(tmp_path: Path, undisturbed: Any) -> None:
    reference = end(*undisturbed["sgd"])
    assert end(*attempt(tmp_path / "same", "sgd")) == reference
    for number, key in enumerate([(1, 0), (0, 1)]):
        assert end(*attempt(tmp_path / str(number), "sgd", key=key)) != reference


def test_each_step_draws_new_noise_and_the_same_when_resumed(tmp_path: Path) -> None:
    def noise(folder: Path, stop: int | None = None) -> list[float]:
        interrupt, drawn = Interrupt(), []

        def draws(inputs: Any, progress: float) -> dict[str, Tensor]:
            drawn.append(torch.rand(1).item())
            interrupt.cause = "a test" if len(drawn) == stop else None
            return {}

        objective = Counter()
        objective.step = draws  # type: ignore[method-assign]
        trainer = trainer_in(folder, loader(), interrupt)
        try:
            trainer.run("phase", objective, INDICES, BATCH, STEPS)
        except Interrupted:
            return drawn + noise(folder)
        return drawn

    whole = noise(tmp_path / "whole")
    assert len(set(whole)) == STEPS
    assert noise(tmp_path / "resumed", stop=3) == whole


class Counter(Objective):
    """One weight that counts its steps; the loss is t."""

    def __init__(self) -> None:
        module = nn.Linear(1, 1, bias=False)
        self.modules = {"module": module}
        self.optimizers = {"optimizer": torch.optim.SGD(module.parameters(), lr=0.1)}

    def step(self, inputs: Mapping[str, Inputs], progress: float) -> dict[str, Tensor]:
        return {"loss": torch.tensor(round(progress * 250))}


@pytest.mark.parametrize("stops", [[], [0], [1, 2, 100], [248, 249]])
def test_the_history_is_the_mean_over_windows_however_often_interrupted(tmp_path: Path, stops: list[int]) -> None:
    for stop in [*stops, None]:
        interrupt = Interrupt()
        trainer = trainer_in(tmp_path, loader(), interrupt)
        objective = Counter()
        step = objective.step

        def stops_at(inputs: Any, progress: float, step: Any = step, stop: Any = stop, flag: Any = interrupt) -> Any:
            flag.cause = "a test" if round(progress * 250) == stop else None
            return step(inputs, progress)

        objective.step = stops_at  # type: ignore[method-assign]
        if stop is not None:
            with pytest.raises(Interrupted):
                trainer.run("phase", objective, {"labelled": np.arange(4)}, 2, 250)
    trainer.run("phase", objective, {"labelled": np.arange(4)}, 2, 250)
    assert trainer.history["phase"]["window"] == 3
    assert trainer.history["phase"]["losses"]["loss"] == [3 * window + 1 for window in range(83)]


# ------------------------------------------------------------------------- checkpoints


def saved(folder: Path) -> Path:
    return folder / run_folder.CHECKPOINT / "phase.ckpt"


SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "one bit of its hash": lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],
    "another format": lambda content: content.replace(b"MAL checkpoint 1", b"MAL checkpoint 0", 1),
    "grown": lambda content: content + b"\0",
}


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_damaged_checkpoint_is_reported_and_costs_only_time(
    tmp_path: Path, undisturbed: Any, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    attempt(tmp_path, "adam", 4)
    path = saved(tmp_path)
    path.write_bytes(SPOIL[spoil](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        objective, trainer = attempt(tmp_path, "adam")
    assert [str(path) in record.message and "cut or damaged" in record.message for record in caplog.records] == [True]
    assert len(objective.seen) == STEPS
    assert end(objective, trainer) == end(*undisturbed["adam"])


def test_a_checkpoint_of_another_configuration_or_phase_is_left_out(
    tmp_path: Path, undisturbed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    attempt(tmp_path, "adam", 4, identity="another configuration")
    with caplog.at_level(logging.WARNING):
        objective, trainer = attempt(tmp_path, "adam")
    assert "belongs to another configuration" in caplog.text
    assert end(objective, trainer) == end(*undisturbed["adam"])
    attempt(tmp_path / "b", "adam", 4)
    saved(tmp_path / "b").rename(saved(tmp_path / "b").with_name("other.ckpt"))
    trainer = trainer_in(tmp_path / "b", loader())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer.run("other", OBJECTIVES["adam"](), INDICES, BATCH, STEPS)
    assert "belongs to another configuration" in caplog.text


def test_a_checkpoint_runs_no_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was-here",)

    checkpoint.save(tmp_path / "x.ckpt", {"identity": "x", "step": Malicious()})
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(tmp_path / "x.ckpt", "x", CPU.torch)
    assert not (tmp_path / "was-here").exists()


def test_no_checkpoint_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.load(tmp_path / "none.ckpt", "x", CPU.torch) is None
    assert caplog.records == []


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, list(range(1, STEPS + 1))), (3600.0, [STEPS])])
def test_checkpoints_come_when_they_are_due_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    steps, save = [], checkpoint.save

    def note(path: Path, state: dict[str, Any]) -> None:
        steps.append(state["step"])
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", note)
    attempt(tmp_path, "sgd", checkpoint_seconds=seconds)
    assert steps == expected


# ------------------------------------------------------------------------- being told to stop


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in Interrupt.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_stops_the_loop_after_its_step_with_the_state_saved(
    tmp_path: Path, handlers: None, number: signal.Signals
) -> None:
    interrupt = Interrupt()
    interrupt.install()
    objective = OBJECTIVES["sgd"]()
    step, taken = objective.step, []

    def signalled(inputs: Mapping[str, Inputs], progress: float) -> dict[str, Tensor]:
        taken.append(progress)
        if len(taken) == 3:
            os.kill(os.getpid(), number)
        return step(inputs, progress)

    objective.step = signalled  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=number.name):
        trainer_in(tmp_path, loader(), interrupt).run("phase", objective, INDICES, BATCH, STEPS)
    assert len(taken) == 3
    content = saved(tmp_path).read_bytes()
    assert content.startswith(checkpoint.MAGIC)
    second = StopAt(OBJECTIVES["sgd"](), Interrupt(), None)
    trainer_in(tmp_path, loader()).run("phase", second, INDICES, BATCH, STEPS)
    assert len(second.seen) == STEPS - 3


def test_a_forked_child_does_not_answer_for_its_parent(handlers: None) -> None:
    interrupt = Interrupt()
    interrupt.install()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0 if interrupt.cause is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert interrupt.cause is None


def test_a_worker_whose_launcher_is_gone_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAL_LAUNCHER", str(os.getppid()))
    assert not Interrupt().requested
    monkeypatch.setenv("MAL_LAUNCHER", str(os.getppid() + 1))
    with pytest.raises(Interrupted, match="end of the launcher"):
        Interrupt().check()


# ------------------------------------------------------------------------- steps and heartbeats


@pytest.mark.parametrize(
    ("epochs", "epoch_of", "pool", "labelled", "batch", "steps"),
    [
        (100, "pool", 50_000, 1_000, 128, math.ceil(100 * 50_000 / 128)),  # VAAL's count
        (100, "labelled", 50_000, 1_000, 128, math.ceil(100 * 1_000 / 128)),
        (3, "labelled", 50_000, 100, 128, 3),  # a set smaller than a batch is given whole
        (0.5, "pool", 1_000, 10, 100, 5),
        (0.001, "pool", 1_000, 10, 100, 1),
        (1, "pool", 256, 10, 128, 2),
        (1, "pool", 257, 10, 128, 3),
    ],
)
def test_steps_of_a_phase(epochs: float, epoch_of: str, pool: int, labelled: int, batch: int, steps: int) -> None:
    assert steps_of(epochs, epoch_of, pool, labelled, batch) == steps


def test_the_heartbeat_tells_phase_step_and_attempts(tmp_path: Path) -> None:
    folder = run_folder.round_folder(tmp_path, 2)
    first = Progress(folder, 2, Interrupt())
    first.phase("minimax", 40, step=10)
    first.at(11)
    first.leave("SIGTERM")
    beat = read_progress(folder)
    assert beat is not None
    wanted = {"round": 2, "phase": "minimax", "step": 11, "steps": 40, "attempts": 1, "interrupted": "SIGTERM"}
    assert {key: beat[key] for key in wanted} == wanted
    assert beat["pid"] == os.getpid()
    second = Progress(folder, 2, Interrupt())
    again = read_progress(folder)
    assert again is not None
    assert (again["attempts"], again["started"], "interrupted" in again) == (2, beat["started"], False)
    assert second.seconds >= beat["seconds"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_heartbeat_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    write_atomic(tmp_path / run_folder.CHECKPOINT / run_folder.PROGRESS, content)
    assert read_progress(tmp_path) is None
    assert Progress(tmp_path, 0, Interrupt()).attempts == 1
