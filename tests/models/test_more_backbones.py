"""ViT-B/16, ConvNeXt-T and timm's networks: sizes, features, checkpoints by their published names."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.minimax import build_networks
from mal.models.backbones import build_backbone, describe_start
from mal.models.heads import TaskModel
from mal.process.device import Device
from sweeps.launch import main

META = Device(torch.device("meta"), bf16=False)


def composed(*overrides: str) -> Chain:
    (config,) = compose_sweep(["dataset=cifar100", "methods=[mal]", "seeds=1", *overrides]).chains
    return config


def shapes(name: str, *overrides: str) -> tuple[Any, TaskModel]:
    """F, C and D, and M, by their shapes alone."""
    config = composed(f"backbone={name}", *overrides)
    with torch.device("meta"):
        networks = build_networks(config, META)
        return networks, TaskModel(build_backbone(config.backbone, 3), 100)


SIZES = {"vit_b_16": 85_798_656 - 192 * 768, "convnext_tiny": 27_820_128}  # at 32 pixels, of 224: 4 patches, of 196


@pytest.mark.parametrize("name", SIZES)
def test_they_are_torchvisions_without_the_last_layer(name: str) -> None:
    networks, model = shapes(name)
    assert sum(p.numel() for p in networks.encoder.parameters()) == SIZES[name]
    assert networks.encoder.features == model.head.in_features == 768
    features = networks.encoder(torch.zeros(2, 3, 32, 32, device="meta"))
    assert features.shape == (2, 768)
    assert networks.discriminator(features).shape == (2,)
    assert model(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 100)  # grey


def test_a_checkpoints_positions_are_resized(tmp_path: Path) -> None:
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        names = {k: tuple(t.shape) for k, t in vit_b_16().state_dict().items()}
    state = {name: torch.zeros(1).expand(shape) for name, shape in names.items()}
    state["encoder.pos_embedding"] = torch.arange(197.0)[None, :, None].expand(1, 197, 768).contiguous()
    torch.save(state, tmp_path / "vit.pth")
    config = composed("backbone=vit_b_16").backbone | {"weights": str(tmp_path / "vit.pth")}
    start = describe_start(config, 3)
    assert start is not None
    assert (start.left_out, start.unexpected) == ([], ["heads.head.weight", "heads.head.bias"])
    positions = start.tensors["layers.encoder.pos_embedding"]
    assert positions.shape == (1, 5, 768)
    assert positions[0, 0, 0] == 0  # of the class token, as it was
    assert bool((positions[0, 1:, 0].diff() > 0).all())


def test_images_that_do_not_divide_into_patches_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset=fashion_mnist", "backbone=vit_b_16", "seeds=1", "cluster=local", "dry_run=true"]) == 2
    assert "whose side is a multiple of 16, those of fashion_mnist have 28" in capsys.readouterr().err


def test_timm_is_asked_for_where_it_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if importlib.util.find_spec("timm") is None:
        assert main(["backbone=timm", "seeds=1", "cluster=local", f"runs={tmp_path}"]) == 2
        assert "pip install .[timm]" in capsys.readouterr().err
        return
    assert main(["backbone=timm", "backbone.name=resnet49", "seeds=1", "cluster=local", f"runs={tmp_path}"]) == 2
    assert "backbone.name=resnet49 is not a network of timm" in capsys.readouterr().err
    networks, model = shapes("timm", "backbone.name=vit_tiny_patch16_224")
    assert networks.encoder.features == 192
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 100)
    assert not any(isinstance(layer, nn.Linear) and layer.out_features == 1000 for layer in model.modules())
