"""The rehearsal of ImageNet's size, in small: it runs whole, and each part of a round is taken down."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.rehearsal import make_images, read_parts
from mal.config.compose import compose_sweep
from mal.data.dataset import load
from mal.data.image_set import Arrays
from tests.chains import ROOT, python

COUNTS = (400, 60)
SMALL = ("--images", "400", "--test", "60", "--classes", "5", "--width", "2", "--methods", "coreset")


def test_made_up_images_are_of_the_real_format_and_have_classes_that_differ(tmp_path: Path) -> None:
    make_images(tmp_path / "imagenet32", COUNTS, classes=5)
    keys = [f"dataset.{key}" for key in ("train=400", "test=60", "classes=5")]
    spec = compose_sweep(["dataset=imagenet32", *keys, "initial=20", "budget=20"]).chains[0].dataset
    dataset = load(spec, tmp_path, 0)
    assert isinstance(dataset.train, Arrays)
    assert isinstance(dataset.test, Arrays)
    pictures = np.stack([dataset.train.images[dataset.train.labels == label].mean(axis=0) for label in range(5)])
    distances = ((dataset.test.images[:, None] - pictures) ** 2).sum(axis=(2, 3, 4))
    assert (len(dataset.train), len(dataset.test)) == COUNTS
    assert (distances.argmin(axis=1) == dataset.test.labels).all()


@pytest.mark.slow
@pytest.mark.ffcv
def test_it_runs_whole_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    ended = python("-m", "benchmarks.rehearsal", "--out", tmp_path, *SMALL, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    parts = read_parts(tmp_path / "coreset.jsonl")
    wanted = {"open data", "start", "ledger", "oracle", "training", "scan: score", "choosing", "records"}
    assert wanted | {"commit, hashes", "checkpoints"} <= parts.keys()
    assert (parts["ledger"][3], parts["choosing"][3]) == (2, 1)
    assert "| coreset | choosing | 1 |" in ended.stdout
    assert "| query.npy |" in ended.stdout
    before = (tmp_path / "coreset.jsonl").read_bytes()
    again = python("-m", "benchmarks.rehearsal", "--out", tmp_path, *SMALL, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "coreset.jsonl").read_bytes() == before
