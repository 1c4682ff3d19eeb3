"""Settings of a round on digits, as a method gets them, for the tests of the methods."""

import copy
from functools import cache
from pathlib import Path

import torch

from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.data.dataset import load
from mal.methods import METHODS, Method, Setting
from mal.models.backbones import build_backbone
from mal.models.heads import TaskModel
from mal.process.device import prepare_device
from mal.process.interrupt import Interrupt
from mal.round import Rounds
from mal.run import folder as run_folder
from mal.run.heartbeat import Progress

# The methods that come with the toolkit; a user's own are beside them.
OURS = {
    *("mal", "mal_no_minimax", "mal_no_discriminator", "mal_entropy_query", "mal_diversity_query", "mal_init_random"),
    *("vaal", "vaal_small", "vaal_published", "coreset", "entropy", "bald", "random", "margin", "least_confidence"),
    *("badge", "batchbald", "power_bald", "typiclust", "probcover", "ensemble", "mal_plus"),
}
QUICK = ("device=cpu", "threads=1", "seeds=1", "minimax.epochs=0.1", "task.epochs=0.5", "backbone.width=4")


@cache
def _composed(method: str, *overrides: str) -> Chain:
    return compose_sweep(["dataset=digits", f"methods=[{method}]", *QUICK, *overrides]).chains[0]


def chain(method: str, *overrides: str) -> Chain:
    """The configuration of one chain on digits, trained for a moment."""
    return copy.deepcopy(_composed(method, *overrides))


def setting(folder: Path, method: str, *overrides: str) -> Setting:
    """What the method sees of round 0 of a chain in `folder`."""
    config = chain(method, *overrides)
    interrupt = Interrupt()
    rounds = Rounds(
        folder, config, load(config.dataset, Path(config.data), config.seed), prepare_device(config), interrupt
    )
    progress = Progress(run_folder.round_folder(folder, 0), 0, interrupt)
    return rounds._open(0, rounds.ledger.state(0), run_folder.round_folder(folder, 0), progress)[0]


def build(setting: Setting) -> Method:
    """The method of a setting."""
    return METHODS[setting.config.method["acquisition"]](setting)


def task_model(setting: Setting, seed: int = 0) -> TaskModel:
    """An untrained M whose batch norm has seen some images, and whose predictions are spread."""
    torch.manual_seed(seed)
    dropout = float(setting.config.method.get("dropout", 0.0))
    backbone = build_backbone(setting.config.backbone, setting.config.dataset.channels)
    model = TaskModel(backbone, setting.config.dataset.classes, dropout)
    model.train()
    model.backbone(images(setting, setting.unlabelled[:64]))
    model.head.weight.data *= 20
    return model.eval()


def images(setting: Setting, indices: object) -> torch.Tensor:
    """Images as a scan sees them, float32 (B, C, h, w)."""
    return setting._scanner.augmentation.evaluate(setting._loader.load(indices).images)
