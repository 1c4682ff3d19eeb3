"""The loops in plain PyTorch that benchmarks compare with do the same work, bit for bit."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import bare
from benchmarks.measure import CLOCKS, Pair, paired, row
from mal.data.loader import MemoryLoader
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.task import Supervised
from mal.training.objective import Inputs
from mal.training.scan import Scanner
from tests.chains import CPU, chain_config, made_up_images, plain_augmentation, trainer_in

IMAGES, LABELS = torch.randn(12, 1, 8, 8), torch.arange(12) % 10


def bits(*modules: nn.Module) -> list[bytes]:
    return [t.detach().contiguous().numpy().tobytes() for m in modules for t in m.state_dict().values()]


def test_clocks_wait_for_a_gpu_that_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    for at_work in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda at_work=at_work: at_work)
        for clock in CLOCKS.values():
            assert clock() > 0
    assert len(waited) == len(CLOCKS)


def test_the_bare_minimax_step_is_algorithm_1() -> None:
    config = chain_config()
    torch.manual_seed(0)
    ours = MinimaxObjective(build_networks(config, CPU), config.minimax, CPU)
    theirs = copy.deepcopy(ours)
    labelled, unlabelled = Inputs(IMAGES[:6], LABELS[:6]), Inputs(IMAGES[6:], LABELS[6:])
    networks = theirs.networks.encoder, theirs.networks.classifier, theirs.networks.discriminator
    for _ in range(3):
        ours.step({"labelled": labelled, "unlabelled": unlabelled}, 0.0)
        images = labelled.images, labelled.labels, unlabelled.images
        bare.minimax_step(*networks, theirs.game, theirs.judge, *images)
    for one, other in zip(ours.modules.values(), networks, strict=True):
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b)  # D's logits come from one product there, from two here


def test_the_bare_supervised_step_and_inference_are_those_of_the_task_model() -> None:
    config = chain_config("task.schedule=constant")
    torch.manual_seed(0)
    ours = Supervised(TaskModel(build_backbone(config.backbone, 1), 10), config.task, CPU)
    theirs = copy.deepcopy(ours)
    for _ in range(3):
        ours.step({"labelled": Inputs(IMAGES, LABELS)}, 0.0)
        bare.supervised_step(theirs.model, theirs.optimizer, IMAGES, LABELS, bf16=False)
    assert bits(ours.model) == bits(theirs.model)


def test_the_bare_inference_is_the_scan(tmp_path: Path) -> None:
    model, images = TaskModel(build_backbone(chain_config().backbone, 1), 10), made_up_images(30)
    trainer = trainer_in(tmp_path, MemoryLoader(images, np.zeros(30, np.int64), CPU.torch))
    scanner = Scanner(plain_augmentation(), CPU, trainer.progress, batch=8)
    scan = scanner.scan("score", trainer.loader, np.arange(30), lambda x: {"logits": model(x)}, model)
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    expected = bare.inference(model, torch.from_numpy(images), 8, zero, one, bf16=False)
    assert np.array_equal(scan["logits"], expected.numpy())


def test_a_ratio_is_the_median_over_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    pair = paired([(1.0, 1.0), (30.0, 20.0), (4.0, 2.0)])  # the machine was slow during the second
    assert pair == Pair(4.0, 2.0, 1.5)
    row("a step", pair, 1.5)
    row("another", pair, 1.49)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["met", "MISSED"]
    assert all(len(line) <= 100 for line in lines)
