"""The task model: schedules, what it starts from, its mode in training, and its evaluation."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from mal.config.schema import Chain, Task
from mal.data.loader import MemoryLoader
from mal.minimax import build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.process.interrupt import Interrupt
from mal.run.heartbeat import Progress
from mal.task import Supervised, train_task_model
from mal.training.evaluate import evaluate
from mal.training.objective import Inputs
from mal.training.optimizers import schedule
from mal.training.scan import Scanner
from tests.chains import CPU, chain_config, made_up_images, plain_augmentation, trainer_in

CLASSES = 10
NOTHING = np.empty(0, np.int64)  # unlabelled


def task_model(seed: int = 0) -> TaskModel:
    torch.manual_seed(seed)
    return TaskModel(build_backbone({"name": "small_cnn", "width": 4}, 1), CLASSES)


def scanner_in(folder: Path, batch: int = 32) -> Scanner:
    return Scanner(plain_augmentation(), CPU, Progress(folder, 0, Interrupt()), batch)


def loader_of(count: int) -> tuple[MemoryLoader, np.ndarray]:
    labels = np.random.default_rng(1).integers(0, CLASSES, count)
    return MemoryLoader(made_up_images(count), labels, CPU.torch), labels


# ------------------------------------------------------------------------- learning rates


def test_quarters_divides_by_ten_after_each_quarter() -> None:
    factors = [schedule("quarters", t / 100) for t in range(100)]
    assert factors == pytest.approx([1.0] * 25 + [0.1] * 25 + [0.01] * 25 + [0.001] * 25)


def test_cosine_falls_from_one_to_zero_and_constant_stays() -> None:
    factors = [schedule("cosine", t / 8) for t in range(8)]
    assert factors == pytest.approx([(1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)])
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert {schedule("constant", t / 7) for t in range(7)} == {1.0}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_each_step_uses_the_schedules_rate(optimizer: str) -> None:
    config = Task(**(vars(chain_config().task) | {"optimizer": optimizer, "lr": 0.02, "schedule": "quarters"}))
    objective = Supervised(task_model(), config, CPU)
    inputs = {"labelled": Inputs(torch.randn(4, 1, 8, 8), torch.arange(4))}
    rates = []
    objective.optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    for progress in (0.0, 0.3, 0.5, 0.99):
        objective.step(inputs, progress)
    assert rates == pytest.approx([0.02, 0.002, 0.0002, 0.00002])


def test_a_step_of_sgd_is_momentum_and_weight_decay_on_the_mean_cross_entropy() -> None:
    changes = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "schedule": "constant"}
    model, reference = task_model(), task_model()
    objective = Supervised(model, Task(**(vars(chain_config().task) | changes)), CPU)
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    speed = [torch.zeros_like(p) for p in reference.parameters()]
    for _ in range(3):
        loss = objective.step({"labelled": Inputs(images, labels)}, 0.0)["cross_entropy"]
        log_p = reference(images).log_softmax(1)
        expected = -log_p[torch.arange(6), labels].mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        for p, v, g in zip(
            reference.parameters(), speed, torch.autograd.grad(expected, list(reference.parameters())), strict=True
        ):
            v.mul_(0.9).add_(g + 0.01 * p.detach())
            p.data -= 0.1 * v
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("count", [1, 31, 32, 100])
def test_accuracy_is_the_brute_force_one_and_torchmetrics(tmp_path: Path, count: int) -> None:
    model = task_model()
    loader, labels = loader_of(count)
    found = evaluate(model, scanner_in(tmp_path), loader, labels, CLASSES)
    model.eval()
    with torch.no_grad():
        images = torch.from_numpy(made_up_images(count)).float() / 255
        predicted = torch.cat([model(images[i : i + 1]) for i in range(count)]).argmax(1)
    hits = (predicted.numpy() == labels).tolist()
    assert found.value == pytest.approx(100 * sum(hits) / count)
    for label in range(CLASSES):
        of_class = [hit for hit, truth in zip(hits, labels, strict=True) if truth == label]
        assert (
            math.isnan(found.per_class[label])
            if not of_class
            else found.per_class[label] == pytest.approx(100 * sum(of_class) / len(of_class))
        )
    truth = torch.from_numpy(labels)
    micro = MulticlassAccuracy(CLASSES, average="micro")(predicted, truth)
    per_class = MulticlassAccuracy(CLASSES, average=None)(predicted, truth)
    assert found.value == pytest.approx(100 * micro.item(), rel=1e-5)
    assert np.nan_to_num(found.per_class) == pytest.approx(100 * per_class.numpy(), rel=1e-5)


def test_evaluation_looks_at_every_test_image_once_without_augmentation_or_gradient(tmp_path: Path) -> None:
    loader, labels = loader_of(70)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            seen.append(images.clone())
            return torch.zeros(len(images), CLASSES)

    scanner = Scanner(plain_augmentation(flip=True, pad_crop=2), CPU, Progress(tmp_path, 0, Interrupt()), 32)
    evaluate(Spy(), scanner, loader, labels, CLASSES)
    assert [len(batch) for batch in seen] == [32, 32, 6]
    torch.testing.assert_close(torch.cat(seen), torch.from_numpy(made_up_images(70)).float() / 255)


def test_evaluation_does_not_move_the_running_statistics(tmp_path: Path) -> None:
    model = task_model().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loader, labels = loader_of(40)
    evaluate(model, scanner_in(tmp_path), loader, labels, CLASSES)
    assert before
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_training_is_in_train_mode_even_after_an_evaluation(tmp_path: Path) -> None:
    # A public implementation left its model in evaluation mode after the first validation: batch norm stood still.
    model = task_model()
    loader, labels = loader_of(40)
    trainer = trainer_in(tmp_path, loader)
    evaluate(model, scanner_in(tmp_path / "scan"), loader, labels, CLASSES)
    assert not model.training
    modes: list[bool] = []
    model.register_forward_hook(lambda m, *_: modes.append(all(part.training for part in m.modules())))
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    trainer.run("task", Supervised(model, chain_config().task, CPU), {"labelled": np.arange(40)}, 8, 4)
    assert modes == [True] * 4
    assert all(not torch.equal(before[name], b) for name, b in model.named_buffers() if "running" in name)


# ------------------------------------------------------------------------- what M starts from


def barely_trained(tmp_path: Path, encoder: nn.Module | None = None, before: Any = None, **changes: Any) -> TaskModel:
    """M after one step at a learning rate too small to see."""
    config = with_task(chain_config(), lr=1e-12, weight_decay=0.0, optimizer="sgd", epochs=0.01, **changes)
    loader, _ = loader_of(40)
    return train_task_model(config, trainer_in(tmp_path, loader), np.arange(40), NOTHING, encoder, before)


def with_task(config: Chain, **changes: Any) -> Chain:
    from dataclasses import replace

    return replace(config, task=replace(config.task, **changes))


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.named_parameters(), second.named_parameters(), strict=True)
    return all(torch.allclose(p, q, rtol=0, atol=1e-9) for (_, p), (_, q) in pairs)


def test_from_f_starts_at_f_with_its_running_statistics(tmp_path: Path) -> None:
    torch.manual_seed(5)
    encoder = build_networks(chain_config(), CPU).encoder
    encoder.train()(torch.randn(30, 1, 8, 8) * 3 + 1)  # statistics that no fresh network has
    model = barely_trained(tmp_path, encoder=encoder)
    assert same_weights(model.backbone, encoder)
    assert not same_weights(barely_trained(tmp_path / "scratch").backbone, encoder)
    ours, its = (dict(m.named_buffers())["layers.1.running_mean"] for m in (model.backbone, encoder))
    fresh = dict(build_networks(chain_config(), CPU).encoder.named_buffers())["layers.1.running_mean"]
    assert (ours - 0.9 * its).abs().max() < (ours - 0.9 * fresh).abs().max()


def test_training_m_from_f_leaves_f_as_it_was(tmp_path: Path) -> None:
    encoder = build_networks(chain_config(), CPU).encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    loader, _ = loader_of(40)
    config = with_task(chain_config(), lr=0.1, optimizer="sgd", epochs=2)
    model = train_task_model(config, trainer_in(tmp_path, loader), np.arange(40), NOTHING, encoder, None)
    assert not same_weights(model.backbone, encoder)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_continue_starts_at_the_model_of_the_round_before(tmp_path: Path) -> None:
    earlier = task_model(seed=9)
    model = barely_trained(tmp_path, before=earlier.state_dict())
    assert same_weights(model, earlier)
    assert not same_weights(barely_trained(tmp_path / "scratch"), earlier)


def test_scratch_is_drawn_from_seed_and_round_alone(tmp_path: Path) -> None:
    first = barely_trained(tmp_path / "a")
    torch.manual_seed(123)  # the state that other work left behind must not matter
    assert same_weights(first, barely_trained(tmp_path / "b"))


def test_training_learns(tmp_path: Path) -> None:
    # Brightness says the class, so a few steps must find it.
    labels = np.arange(60) % 3
    images = (made_up_images(60) // 8 + (labels * 90).astype(np.uint8)[:, None, None, None]).astype(np.uint8)
    loader = MemoryLoader(images, labels, CPU.torch)
    config = with_task(chain_config(), lr=0.01, optimizer="adam", epochs=20, schedule="cosine", batch=20)
    model = train_task_model(config, trainer_in(tmp_path, loader), np.arange(60), NOTHING, None, None)
    found = evaluate(model, scanner_in(tmp_path / "scan"), loader, labels, CLASSES)
    assert found.value > 95
