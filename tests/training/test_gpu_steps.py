"""On a GPU, no step waits for the device: torch raises where one would."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mal.config.compose import compose_sweep
from mal.data.augment import Augmentation
from mal.data.loader import MemoryLoader
from mal.minimax import MinimaxObjective, build_networks
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.process.device import prepare_device
from mal.task import Supervised
from mal.training.objective import Inputs, Objective
from tests.chains import made_up_images

pytestmark = pytest.mark.gpu


@pytest.fixture
def synchronising_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["minimax", "task"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18", "vgg16_bn"])
def test_a_step_does_not_wait_for_the_device(
    synchronising_is_an_error: None, backbone: str, precision: str, kind: str
) -> None:
    options = (f"backbone={backbone}", f"precision={precision}", "dataset=cifar100", "device=cuda")
    config = compose_sweep(["methods=[mal]", "seeds=1", *options]).chains[0]
    device = prepare_device(config)
    images, labels = made_up_images(64, channels=3, size=32), np.arange(64) % 100
    loader = MemoryLoader(images, labels, device.torch)
    half = torch.full((1, 3, 1, 1), 0.5, device=device.torch)
    augmentation = Augmentation(flip=True, crop=None, pad_crop=4, mean=half, std=half)
    objective: Objective
    if kind == "minimax":
        objective = MinimaxObjective(build_networks(config, device), config.minimax, device)
    else:
        model = TaskModel(build_backbone(config.backbone, 3), 100)
        objective = Supervised(device.place(model), config.task, device)

    def step(t: int) -> None:
        inputs = {}
        for first, name in enumerate(("labelled", "unlabelled")):
            batch = loader.load(np.arange(16) + 16 * first)
            inputs[name] = Inputs(augmentation.train(batch.images, (0, t, name)), batch.labels)
        objective.step(inputs, 0.0)

    for t in range(2):  # workspaces, kernels, the optimisers' state
        step(t)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for t in range(3):
        step(t)
