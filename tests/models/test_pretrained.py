"""Pretrained weights: found below any wrapping, said, refused where nothing fits; frozen layers; chains from them."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from mal.models.backbones import build_backbone, describe_start
from mal.models.pretrained import imagenet_file, trainable
from mal.process.faults import Misplaced
from sweeps.launch import main
from tests.chains import SHORT, assert_same_where_interrupted, chain_config

RESNET = {"name": "resnet18"}


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A ResNet18 as torchvision names it, with its last layer."""
    from torchvision.models import resnet18

    torch.manual_seed(1)
    return resnet18(num_classes=7).state_dict()


def below(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED: dict[str, Any] = {
    "plain.pth": lambda state: state,
    "moco.pth.tar": lambda state: {"epoch": 3, "state_dict": below("module.encoder_q.", state), "optimizer": {}},
    "dino.pth": lambda state: {"teacher": below("backbone.", state), "args": argparse.Namespace(lr=1)},
    "model.pt": lambda state: {"model": below("module.", state)},
    "ours.safetensors": lambda state: below("backbone.layers.", state),
}


def saved(folder: Path, name: str, state: Any) -> str:
    path = folder / name
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_are_found_below_any_wrapping(name: str, published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = saved(tmp_path, name, WRAPPED[name](published))
    torch.manual_seed(0)
    built = build_backbone(RESNET | {"weights": file}, 3)
    assert all(torch.equal(tensor, published[key]) for key, tensor in built.layers.state_dict().items()
               if not key.endswith("num_batches_tracked"))  # fmt: skip
    start = describe_start(RESNET | {"weights": file}, 3)
    assert start is not None
    assert start.left_out == []
    assert {name.rpartition("fc.")[2] for name in start.unexpected} == {"weight", "bias"}


def test_vgg_is_found_by_torchvisions_names(tmp_path: Path) -> None:
    from torchvision.models import vgg16_bn

    with torch.device("meta"):
        names = vgg16_bn(num_classes=2).features.state_dict()
    file = saved(tmp_path, "vgg.pth", below("features.", {k: torch.ones(t.shape) for k, t in names.items()}))
    start = describe_start({"name": "vgg16_bn", "weights": file}, 3)
    assert start is not None
    assert (start.left_out, start.unexpected) == ([], [])


def test_two_encoders_are_told_apart_by_the_prefix(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in published.items()}
    file = saved(tmp_path, "two.pth", below("encoder_q.", published) | below("encoder_k.", other))
    with pytest.raises(ValueError, match=r"'encoder_q\.' and 'encoder_k\.': choose one by backbone\.weights_prefix"):
        describe_start(RESNET | {"weights": file}, 3)
    built = build_backbone(RESNET | {"weights": file, "weights_prefix": "encoder_k"}, 3)
    assert torch.equal(built.layers.conv1.weight, other["conv1.weight"])


def test_what_does_not_fit_is_said(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    stem = published | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    start = describe_start(RESNET | {"weights": saved(tmp_path, "stem.pth", stem)}, 3)
    assert start is not None
    assert start.left_out == ["layers.conv1.weight"]
    assert "conv1.weight" in start.unexpected
    assert "1 keep their initialisation (layers.conv1.weight)" in str(start)


def test_a_checkpoint_that_fits_nothing_is_refused_with_both_lists(tmp_path: Path) -> None:
    file = saved(tmp_path, "other.pth", {"blocks.0.weight": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"none of its 1 .*has blocks\.0\.weight \(3, 2\).*has layers\.conv1\.weight"):
        describe_start(RESNET | {"weights": file}, 3)


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, "code.pth", {"model": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="more than tensors"):
        describe_start(RESNET | {"weights": file}, 3)


def test_another_file_in_its_place_is_refused(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = saved(tmp_path, "plain.pth", published)
    with pytest.raises(Misplaced, match="not the file"):
        describe_start(RESNET | {"weights": file, "weights_sha256": "0" * 64}, 3)


# ------------------------------------------------------------------------- frozen layers


def test_frozen_layers_get_no_gradient_and_keep_their_statistics(
    published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = saved(tmp_path, "plain.pth", published)
    built = build_backbone(RESNET | {"weights": file, "freeze": "layer3"}, 3)
    built.train()
    built(torch.randn(4, 3, 32, 32)).sum().backward()
    moved = {name for name, parameter in built.named_parameters() if parameter.grad is not None}
    assert moved
    assert all(name.startswith("layers.layer4.") for name in moved)
    changed = {name for name, tensor in built.layers.state_dict().items() if not torch.equal(tensor, published[name])}
    assert changed
    assert all(name.startswith("layer4.") for name in changed)  # running statistics
    whole = build_backbone(RESNET | {"weights": file, "freeze": True}, 3)
    assert trainable(whole) == []


def test_an_unknown_layer_is_refused_with_those_there_are(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone\.freeze=layer9 is no layer.*conv1.*layer4"):
        build_backbone(RESNET | {"weights": saved(tmp_path, "p.pth", published), "freeze": "layer9"}, 3)


# ------------------------------------------------------------------------- a chain


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of the small network of the tests' chains."""
    torch.manual_seed(5)
    network = build_backbone(dict(chain_config().backbone), 1)
    return saved(tmp_path_factory.mktemp("weights"), "small.safetensors", network.state_dict())


@pytest.mark.parametrize("freeze", ["true", "layers.5", "false"])
def test_an_interrupted_chain_from_weights_is_the_uninterrupted_one(small: str, freeze: str, tmp_path: Path) -> None:
    config = chain_config(f"backbone.weights={small}", f"backbone.freeze={freeze}", "task.lr_backbone=0.0001")
    whole = assert_same_where_interrupted(config, tmp_path)
    told = json.loads((whole / "round-0" / "provenance.json").read_text())["weights"]
    assert (told["loaded"], told["left_out"]) == (25, [])


def test_a_launch_freezes_the_hash_and_goes_on_where_the_file_has_moved(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(small).read_bytes())
    arguments = [*SHORT, "cluster=local", "methods=[random]", "seeds=1", f"runs={tmp_path / 'runs'}"]
    assert main([*arguments, f"backbone.weights={small}"]) == 0
    assert "25 tensors loaded; 0 keep" in capsys.readouterr().out
    assert main([*arguments, f"backbone.weights={moved}"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    torch.manual_seed(6)
    other = saved(tmp_path, "other.safetensors", build_backbone(dict(chain_config().backbone), 1).state_dict())
    assert main([*arguments, f"backbone.weights={other}"]) == 2
    assert "backbone.weights_sha256" in capsys.readouterr().err


def test_imagenet_weights_come_from_torchs_cache(
    tmp_path: Path, published: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path, _ = imagenet_file("resnet18")
    path.parent.mkdir(parents=True)
    torch.save(published, path)
    arguments = ["dataset=digits", "methods=[random]", "seeds=1", "rounds=1", "task.epochs=0.1", "cluster=local"]
    arguments += ["backbone=resnet18", "backbone.weights=imagenet", "backbone.freeze=true", "floor=off"]
    assert main([*arguments, f"runs={tmp_path}/runs"]) == 0
    assert "images normalised by ImageNet's mean" in capsys.readouterr().out
    chain = tmp_path / "runs" / "digits" / "random" / "seed-0"
    told = json.loads((chain / "round-0" / "provenance.json").read_text())["weights"]
    assert (told["weights"], told["normalise"]) == (str(path), "imagenet")


REFUSED = {
    "backbone.weights=nowhere.pth": "is not a file",
    "backbone.weights=imagenet": "torchvision has no ImageNet weights of small_cnn",
    "backbone.freeze=true": "give backbone.weights=",
    "backbone.weights=3": "backbone.weights=3 must be a file",
    "backbone.normalise=imagnet": "did you mean imagenet",
    "task.lr_backbone=0": "task.lr_backbone=0.0 is out of range",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_bad_input_is_refused_by_name(argument: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*SHORT, "cluster=local", "seeds=1", f"runs={tmp_path}", argument]) == 2
    assert REFUSED[argument] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
