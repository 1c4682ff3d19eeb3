"""Frozen features: made once, in shards, whoever makes them; heads on them by every method; bad sets refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from mal import features as extraction
from mal.chain import run_chain
from mal.config.checks import choices
from mal.files import sha256_file
from mal.models.backbones import build_backbone
from mal.process.interrupt import Interrupt, Interrupted
from sweeps.launch import main
from tests.chains import StopsAt, assert_same_where_interrupted, chain_config, write_chain
from tests.made_up_data import put, write_folders

ENCODER = ["dataset=digits", "backbone=small_cnn", "backbone.width=4", "device=cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of digits by a small encoder, and in `weights` what that is made of."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(5)
    network = build_backbone({"name": "small_cnn", "width": 4}, 1)
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    assert extraction.main(command(folder)) == 0
    return folder


def command(folder: Path, out: str = "set") -> list[str]:
    return [*ENCODER, f"backbone.weights={folder}/weights.safetensors", f"data={folder}", f"out={folder / out}"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npy", ".json")}


def test_they_are_the_encoders_of_every_image_in_order(made: Path) -> None:
    plan = extraction.plan(command(made))
    encoder = build_backbone(plan.config.backbone, 1).eval()
    pixels = torch.from_numpy(plan.dataset.train.images.copy()).float() / 255
    normal = (pixels - pixels.mean()) / pixels.std(correction=0)
    with torch.no_grad():
        expected = encoder(normal).numpy()
    found = np.load(made / "set" / "train.npy")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(np.load(made / "set" / "train_labels.npy"), plan.dataset.train.labels)


def test_stopped_anywhere_it_goes_on_to_the_same_set(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "ROWS", 200)
    plan = extraction.plan(command(made, "again"))
    looked = Interrupt()
    for looks in (1, 4, 7):
        with pytest.raises(Interrupted):
            extraction.extract(plan, StopsAt(looks))
    assert list(plan.folder.glob(".shards/*/*.npy"))
    extraction.extract(plan, looked)
    assert files(made / "again") == files(made / "set")
    assert not (plan.folder / ".shards").exists()


def test_a_dry_run_says_what_is_missing_and_computes_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extraction, "ROWS", 200)
    asked = [*command(made, "dry"), "dry_run=true"]
    assert extraction.main(asked) == 0
    assert "features: 1,797 images through small_cnn" in (out := capsys.readouterr().out)
    assert "0 of 10 shards are there" in out
    assert not (made / "dry").exists()
    with pytest.raises(Interrupted):
        extraction.extract(extraction.plan(asked[:-1]), StopsAt(4))
    assert extraction.main(asked) == 0
    assert (there := re.search(r"(\d+) of 10 shards are there", capsys.readouterr().out))
    assert int(there[1]) == len(list((made / "dry").glob(".shards/*/*.npy"))) > 0
    assert extraction.main([*command(made), "dry_run=true"]) == 0
    assert "launch with features=" in capsys.readouterr().out


def test_another_encoder_does_not_write_over_them(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extraction.main([*command(made), "dtype=float32"]) == 2
    assert "choose another folder by out=" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["mal", "vaal", "coreset", "bald", "badge", "typiclust", "probcover", "ensemble"])
def test_every_kind_of_method_trains_heads_on_them(method: str, made: Path, tmp_path: Path) -> None:
    assert method in choices("method")
    config = chain_config(
        "backbone=mlp", "backbone.width=16", f"features={made / 'set'}", f"data={tmp_path}", method=method
    )
    chain = write_chain(tmp_path, config)
    run_chain(chain, 2, Interrupt())
    metrics = json.loads((chain / "round-1" / "metrics.json").read_text())
    assert metrics["labeled"] == 40
    assert len(np.load(chain / "round-0" / "query.npy")) == 20


def test_one_cannot_tell_where_it_was_interrupted(made: Path, tmp_path: Path) -> None:
    config = chain_config("backbone=mlp", "backbone.width=16", f"features={made / 'set'}", f"data={tmp_path}")
    assert_same_where_interrupted(config, tmp_path)


def test_a_launch_takes_them(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"features={made / 'set'}", "methods=[random]", "seeds=1", "rounds=2", "cluster=local", "floor=on"]
    assert main(["dataset=digits", "task.epochs=1", *arguments, f"runs={tmp_path}", f"data={tmp_path}"]) == 0
    chain = tmp_path / "digits" / "random" / "seed-0"
    floor = json.loads((chain / "round-1" / "metrics.json").read_text())["floor"]
    assert set(floor) == {"1nn", "logistic", "svm"}
    assert max(floor.values()) > 15  # of a random encoder; 10 by chance
    assert "encoder: small_cnn" in (chain / "config.yaml").read_text()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the small encoder as its file has it."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(6)
    safetensors.torch.save_file(build_backbone({"name": "small_cnn", "width": 16}, 1).state_dict(), path)
    return path


def asked(weights: Path, root: Path, *more: str) -> list[str]:
    """A launch that names its encoder."""
    words = ["dataset=digits", "features=small_cnn", f"backbone.weights={weights}", "device=cpu", "floor=off"]
    return [*words, "task.epochs=1", "seeds=1", "rounds=1", f"runs={root / 'runs'}", f"data={root / 'data'}", *more]


def test_a_dry_run_fetches_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    words = ["dataset=digits", "backbone.weights=imagenet", "device=cpu", "seeds=1", "dry_run=true", "cluster=local"]
    places = [f"runs={tmp_path / 'runs'}", f"data={tmp_path / 'data'}"]
    for encoder in ("features=resnet18", "backbone=resnet18"):
        assert main([*words, *places, encoder, "floor=off"]) == 0
        told = capsys.readouterr().out
        assert "fetches" in told
        assert f"{tmp_path}/cache/hub/checkpoints/resnet18" in told
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_by_weights_to_be_fetched_refuses_no_set_that_is_there(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    words = ["dataset=digits", "backbone=resnet18", "backbone.weights=imagenet", "device=cpu", f"data={tmp_path}"]
    assert extraction.main([*words, f"out={made / 'set'}", "dry_run=true"]) == 0
    assert "0 of 2 shards are there" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_launch_makes_the_features_of_a_backbone_once_for_all_sweeps(
    weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    local = ("cluster=local", "methods=[random]")
    assert main(asked(weights, tmp_path, *local, "dry_run=true")) == 0
    assert "a launch first takes 1,797 images through small_cnn" in capfd.readouterr().out
    assert not (tmp_path / "data").exists()
    assert main(asked(weights, tmp_path, *local, "cluster=slurm")) == 2
    told = capfd.readouterr().err
    assert "srun -n8 python -m mal.features dataset=digits" in told
    assert main(asked(weights, tmp_path, *local)) == 0
    (folder,) = (tmp_path / "data" / "features").iterdir()
    assert np.load(folder / "train.npy").shape == (1347, 64)
    made = (folder / "train.npy").stat().st_mtime_ns
    assert main(asked(weights, tmp_path, *local, "name=again", "backbone.width=8")) == 0
    assert (folder / "train.npy").stat().st_mtime_ns == made
    for name in ("digits", "again"):
        chain = tmp_path / "runs" / name / "random" / "seed-0"
        assert (chain / "round-0" / "COMMITTED").is_file()
        config = yaml.safe_load((chain / "config.yaml").read_text())
        assert config["dataset"]["features"] == str(folder)
        assert config["dataset"]["encoder"].startswith(f"small_cnn {sha256_file(weights)[:12]}")
        assert (config["backbone"]["name"], config["backbone"].get("weights")) == ("mlp", None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["backbone=resnet18"], "backbone=resnet18: the chains' backbone is a perceptron with features=small_cnn"),
        (["task.epoch=3"], "did you mean task.epochs"),
        (["task.semi=fixmatch"], "which features do not allow"),
        (["oracle=files"], "people label images, and with features= there are none"),
        (["backbone.weights=none.pt"], "backbone.weights=none.pt is not a file"),
        (["backbone.weights=null"], "features of a network without weights say nothing"),
        (["features=drn_d_22"], "drn_d_22"),
        (["features=resnet81"], "features=resnet81 is no folder and no backbone"),
    ],
)
def test_what_cannot_be_asked_of_an_encoder_is_said_before_it_runs(
    words: list[str], told: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(weights, tmp_path, "methods=[random]", "cluster=local", *words)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "data" / "features").exists()


BAD = {
    "labels.npy": ("test_labels.npy", lambda path: path.unlink(), "test_labels.npy is missing"),
    "images": ("train.npy", lambda path: np.save(path, np.zeros((9, 2), np.uint8)), "not float16 or float32 (N, d)"),
    "fewer": ("train_labels.npy", lambda path: np.save(path, np.zeros(9, int)), "not integers (1347,)"),
    "nan": ("test.npy", lambda path: np.save(path, np.full((450, 16), np.nan, np.float16)), "not finite"),
    "cut": ("train.npy", lambda path: path.write_bytes(b"\x93NUMPY"), "not an .npy file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_set_is_refused_by_its_file(
    name: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(made / "set", tmp_path / "set"))
    file, spoil, said = BAD[name]
    spoil(folder / file)
    arguments = ["dataset=digits", f"features={folder}", "methods=[random]", "seeds=1", "cluster=local"]
    assert main([*arguments, f"runs={tmp_path / 'runs'}"]) == 2
    assert said in capsys.readouterr().err


REFUSED = {
    "features=nowhere": "features=nowhere is no folder",
    "dataset=own_features": "give their folder, features=DIR",
    "backbone=mlp": "takes a frozen encoder's features: give features=DIR",
    "features={made} backbone=resnet18": "takes images, not features",
    "features={made} loader=torch": "loader=torch is for images",
    "features={made} dataset=fashion_mnist": "it is of other images",
    "features={made} dataset=digit_scenes": "is for classification",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_does_not_go_together_is_refused(
    arguments: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = arguments.format(made=made / "set").split()
    assert main(["dataset=digits", "methods=[random]", "seeds=1", *typed, "cluster=local", f"runs={tmp_path}"]) == 2
    assert REFUSED[arguments] in capsys.readouterr().err


def test_damaged_files_are_named_before_the_encoder_runs_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path)
    put(tmp_path / "train" / "bee" / "empty.jpg", b"")
    torch.manual_seed(5)
    network = build_backbone({"name": "small_cnn", "width": 4}, 3)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    images = [f"dataset.{part}_images={tmp_path / part}" for part in ("train", "test")]
    images += ["dataset=folder", "dataset.size=32", "dataset.crop=28", f"data={tmp_path}", "device=cpu"]
    words = [*images, "backbone=small_cnn", "backbone.width=4"]
    words += [f"backbone.weights={tmp_path}/weights.safetensors", f"out={tmp_path / 'set'}"]
    assert extraction.main(words) == 2
    assert re.search(r"1 files cannot be used:\n.*bee/empty\.jpg .*\(it is empty\)", capsys.readouterr().err)
    assert not (tmp_path / "set").exists()
    assert extraction.main([*words, "dataset.skip_corrupt=true"]) == 0
    assert "1 files that cannot be used left out: train/bee/empty.jpg" in capsys.readouterr().out
    assert len(np.load(tmp_path / "set" / "train.npy")) == 30
    chains = ["methods=[random]", "seeds=1", "rounds=1", "initial=9", "budget=3", "cluster=local"]
    arguments = [*images, *chains, "dataset.skip_corrupt=true", f"features={tmp_path / 'set'}"]
    assert main([*arguments, f"runs={tmp_path / 'runs'}"]) == 0
