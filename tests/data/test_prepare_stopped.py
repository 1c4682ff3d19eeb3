"""A prepared copy whose writer is stopped, killed, or loses a worker: the next one goes on, no image lost or twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mal.config.compose import compose_sweep
from mal.data import prepare
from mal.data.dataset import read_source
from mal.data.ffcv import beton, prepared
from mal.data.ffcv.beton import Compression
from mal.data.ffcv.unfinished import Stopped
from mal.data.image_set import Arrays, Prepared
from tests.chains import ROOT, environment
from tests.made_up_data import jpeg, picture, put

pytestmark = pytest.mark.ffcv

RAW = Compression("raw", 90, 0.5)
WRITE = """import sys
from mal.data import prepare
from mal.data.ffcv import beton
beton.SAVE_SECONDS = 0.2
sys.exit(prepare.main(sys.argv[1:]))
"""


class Slow(Arrays):
    """Arrays whose images take as long as those of files."""

    def read(self, index: int) -> np.ndarray:
        time.sleep(0.002)
        return super().read(index)


def images(count: int) -> Arrays:
    generator = np.random.default_rng(7)
    return Slow(generator.integers(0, 256, (count, 3, 48, 48), np.uint8), generator.integers(0, 10, count))


def check(folder: Path, split: Arrays) -> None:
    """Every image, label and index as in the source, one place in the file for each."""
    from ffcv.reader import Reader

    assert beton.check_beton(folder, "train", split, RAW, 2) == {}
    ids = Reader(str(folder / "train.beton")).alloc_table["sample_id"]
    assert np.array_equal(np.sort(ids), np.arange(len(split)))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_writer_stopped_again_and_again_writes_what_one_writes_at_once(tmp_path: Path, workers: int) -> None:
    split, reached = images(1000), [0]
    for _ in range(50):
        before = reached[0]
        try:
            beton.write_beton(
                tmp_path, "train", split, RAW, workers, lambda done: reached.__setitem__(0, done), lambda: True
            )
            break
        except Stopped:
            assert before < reached[0] < len(split)
    else:
        raise AssertionError(f"it never came to an end, but to {reached[0]}")
    assert before > 0, "it was never stopped"
    check(tmp_path, split)


def test_saves_on_the_way_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beton, "SAVE_SECONDS", 0.0)
    split = images(700)
    assert beton.write_beton(tmp_path, "train", split, RAW, 2) == {}
    check(tmp_path, split)


def test_what_was_left_of_other_images_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        beton.write_beton(tmp_path, "train", images(500), RAW, 2, stop=lambda: True)
    other = Arrays(images(500).images[::-1].copy(), images(500).labels)
    assert beton.write_beton(tmp_path, "train", other, RAW, 2) == {}
    check(tmp_path, other)


@pytest.mark.parametrize("damage", ["cut", "garbage", "pages"])
def test_a_damaged_state_is_not_believed(tmp_path: Path, damage: str) -> None:
    split = images(900)
    with pytest.raises(Stopped):
        beton.write_beton(tmp_path, "train", split, RAW, 1, stop=lambda: True)
    (state,) = tmp_path.glob(".train-*.npz")
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-40])
    elif damage == "garbage":
        state.write_bytes(b"not a state")
    else:
        os.truncate(tmp_path / "train.beton", 4096)
    assert beton.write_beton(tmp_path, "train", split, RAW, 2) == {}
    check(tmp_path, split)


# ------------------------------------------------------------------------- the command, killed


def write_tree(data: Path, count: int) -> tuple[str, ...]:
    """ImageNet's tree with `count` training images of two classes; the overrides that say so."""
    for part, many in (("train", count), ("val", 20)):
        for at in range(many):
            name = f"n0000000{at % 2}/{part}_{at}.JPEG"
            put(data / "imagenet" / part / name, jpeg(picture(at, 200 + at % 50, 180, at)))
    return ("dataset=imagenet", "dataset.classes=2", f"dataset.train={count}", "dataset.test=20", "dataset.size=64")


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE, "workers=2", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_is_killed_goes_on_and_loses_no_image(tmp_path: Path, how: signal.Signals) -> None:
    arguments = (*write_tree(tmp_path, 3000), "dataset.crop=56", f"data={tmp_path}")
    part = tmp_path / "prepared" / ".imagenet-raw.part"
    drawn, reached = random.Random(3), [0]
    for _ in range(3):
        process = start(*arguments)
        before = reached[-1]
        while process.poll() is None and reached[-1] == before:  # it has saved something
            time.sleep(0.05)
            reached.append(max([reached[-1], *map(done_in, part.glob(".train-*.npz"))]))
        time.sleep(drawn.uniform(0, 0.3))
        process.send_signal(how)
        said, _ = process.communicate()
        assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 75), said
        if how == signal.SIGTERM:
            assert "what was written is kept, and the same command goes on" in said
        reached.append(max(map(done_in, part.glob(".train-*.npz"))))
    assert reached[-1] > before
    process = start(*arguments, "verify=true")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "verified, every hash, image, label and index" in said
    assert sorted(path.name for path in part.parent.iterdir()) == [".imagenet-raw.lock", "imagenet-raw"]
    whole = prepared.read_manifest(part.parent / "imagenet-raw")
    assert whole is not None
    assert [whole["parts"][name]["count"] for name in ("train", "test")] == [3000, 20]


def done_in(state: Path) -> int:
    try:
        with np.load(state) as saved:
            return int(json.loads(saved["head"].tobytes())["done"])
    except (OSError, ValueError, EOFError):
        return 0


def test_a_copy_after_a_stop_is_the_same_pool(tmp_path: Path) -> None:
    spec = compose_sweep(["dataset=digits", "seeds=1", "methods=[random]"]).chains[0].dataset
    assert prepare.main(["dataset=digits", f"data={tmp_path / 'whole'}", "workers=2"]) == 0
    order = prepare.read_request(["dataset=digits", f"data={tmp_path / 'stopped'}", "workers=2"])
    folder = prepared.unfinished_folder(tmp_path / "stopped" / "prepared" / "digits-raw")
    folder.mkdir(parents=True)
    source = read_source(spec, order.data)
    splits = {part: Slow(*vars(split).values()) for part, split in zip(prepared.PARTS, source, strict=True)}
    with pytest.raises(Stopped):
        prepare._write_parts(order, splits, folder, lambda: True)
    assert prepare.prepare(order) == 0
    parts = [prepared.open_prepared(spec, tmp_path / name) for name in ("whole", "stopped")]
    for whole, stopped in zip(*parts, strict=True):
        assert isinstance(stopped, Prepared)
        assert np.array_equal(whole.identity()[0], stopped.identity()[0])
