"""`launch.py dataset=imagenet seeds=3` and nothing else, on a cluster that takes the job that prepares three times.

    python -m tests.chaos.imagenet [out=FOLDER]

Writes a made-up ImageNet, the three archives as they are downloaded, starts a one-machine Slurm of two nodes with
2 CPUs, and types what a person types, with the numbers that make it small. While images are prepared, the job is
preempted twice and its node is lost once. In the end every image and label of the copy is compared with the archives,
each chain is complete, and the curves are in FOLDER/figures. Prints what happened, with times; an hour and a half on
two cores that others keep busy (a load of 25).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from mal.run import folder as run_folder
from slurm.local import LocalSlurm
from slurm.local_conf import ClusterShape
from slurm.preparing import find
from slurm.squeue import Job, read_queue
from tests.made_up_data import jpeg, write_archives

ROOT = Path(__file__).resolve().parents[2]
SYNSETS = [f"n0{1440764 + 2803 * number}" for number in range(20)]
TRAIN, VAL = 150, 20  # of each class
SIDE = 256
NUMBERS = [
    f"dataset.classes={len(SYNSETS)}", f"dataset.train={TRAIN * len(SYNSETS)}", f"dataset.test={VAL * len(SYNSETS)}",
    "dataset.crop=32", "rounds=3", "minimax.epochs=0.3", "minimax.batch=32", "task.epochs=2", "task.batch=32",
    "method.width=16",
]  # fmt: skip
LAUNCH = ["sweeps/launch.py", "dataset=imagenet", "seeds=3", *NUMBERS]
SHAPE = ClusterShape(cpus_per_node=2, gpus_per_node=0, grace_s=10)
BLOWS = [(0.15, "preempted"), (0.4, "node lost"), (0.65, "preempted")]  # once so much of the training set is written
TIMEOUT_S = 3 * 3600.0  # on a machine that others use too


def write_imagenet(root: Path) -> None:
    """Images of all sizes and kinds that the real ones have, with a colour and a texture for each class."""
    parts: list[dict[str, bytes]] = [{}, {}]
    rng = np.random.default_rng(0)
    numbers = rng.permutation(VAL * len(SYNSETS)) + 1
    for label, synset in enumerate(SYNSETS):
        for at in range(TRAIN):
            parts[0][f"{synset}/{synset}_{rng.integers(20_000)}_{at}.JPEG"] = wild(rng, label, at)
        for at in range(VAL):
            number = numbers[VAL * label + at]
            parts[1][f"{synset}/ILSVRC2012_val_{number:08d}.JPEG"] = wild(rng, label, at)
    write_archives(root, *parts, SYNSETS)


def wild(rng: np.random.Generator, label: int, at: int) -> bytes:
    """The bytes of one image: mostly 500 x 375 in colour, some tiny, large, grey, CMYK, or a PNG."""
    width, height = [(500, 375), (375, 500), (500, 333), (500, 500)][rng.integers(4)]
    if at % 10 == 1:
        width, height = (int(side) for side in rng.integers(60, 1800, 2))
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin((columns * (1 + label % 5) + rows * (1 + label // 5)) / 30 + rng.uniform(0, 6))
    colour = 90 + 70 * np.cos(label + np.array([0.0, 2.0, 4.0]))
    noise = rng.integers(-40, 40, (height, width, 1))
    image = Image.fromarray(np.clip(colour + 50 * wave[..., None] + noise, 0, 255).astype(np.uint8))
    if at % 50 == 2:
        return jpeg(image.convert("L"))
    if at % 50 == 3:
        return jpeg(image.convert("CMYK"))
    if at % 50 == 4:
        content = io.BytesIO()
        image.save(content, "PNG")
        return content.getvalue()
    return jpeg(image)


class Trip:
    """One folder with data, runs and figures, as a person's; what is typed there, and when."""

    def __init__(self, folder: Path, cluster: LocalSlurm) -> None:
        self.folder, self.cluster, self.begun = folder, cluster, time.monotonic()
        self.copy = folder / "data" / "prepared" / "imagenet-raw"

    def say(self, words: str) -> None:
        """A line with the seconds so far and the machine's load."""
        print(f"{time.monotonic() - self.begun:6.0f} s  load {os.getloadavg()[0]:4.1f}  {words}", flush=True)

    def type(self, script: str, *arguments: str) -> str:
        """A command of ours; what it prints. Raises RuntimeError where it fails."""
        command = [sys.executable, str(ROOT / script), *arguments]
        env = os.environ | self.cluster.env
        ended = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{script}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def job(self) -> Job | None:
        """The one that prepares."""
        return find(read_queue(), self.copy)

    def written(self) -> float:
        """The share of the training set's pixels that the unfinished file holds."""
        try:
            size = self.copy.with_name(".imagenet-raw.part").joinpath("train.beton").stat().st_size
        except FileNotFoundError:
            return 0.0
        return size / (TRAIN * len(SYNSETS) * 3 * SIDE**2)

    def strike(self, share: float, blow: str) -> None:
        """Preempt the job, or take its node from it, once so much is written; wait until it is off its node."""
        self.wait(lambda: self.written() >= share and self._state() == "RUNNING", f"{share:.0%} of the images")
        job, at = self.job(), self.written()
        assert job is not None
        if blow == "preempted":
            urgent = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
            self.cluster.run(*urgent)
        else:
            self.cluster.kill_node(job.nodes)
        self.wait(lambda: self._state() == "PENDING", f"job {job.id} to be queued again")
        assert not self.copy.exists(), "it was done before it was struck"
        self.say(f"the job that prepares: {blow} at {at:.0%}; {self.written():.0%} written when it had gone")
        if blow != "preempted":
            self.cluster.start_node(job.nodes)

    def _state(self) -> str:
        job = self.job()
        return job.state if job else ""

    def wait(self, true: Callable[[], object], what: str, poll_s: float = 0.1) -> None:
        """Poll; TimeoutError after three hours."""
        deadline = time.monotonic() + TIMEOUT_S
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited for {what}")
            time.sleep(poll_s)


def source_images(archive: Path, label_of: Callable[[str], int]) -> Counter[tuple[bytes, int]]:
    """(hash of the pixels, label) of each image, read by Pillow and torchvision; label_of: of SYNSET/NAME or NAME."""
    as_torchvision = Compose([Resize(SIDE), CenterCrop(SIDE)])
    found: Counter[tuple[bytes, int]] = Counter()
    for name, content in members(archive.read_bytes(), ""):
        square = as_torchvision(Image.open(io.BytesIO(content)).convert("RGB"))
        found[hashlib.sha256(np.asarray(square).tobytes()).digest(), label_of(name)] += 1
    return found


def members(content: bytes, folder: str) -> Iterator[tuple[str, bytes]]:
    """Each file of an archive, and of the archives in it: SYNSET/NAME, bytes."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            if member.name.endswith(".tar"):
                yield from members(file.read(), f"{Path(member.name).stem}/")
            else:
                yield folder + member.name, file.read()


def copied_images(beton: Path) -> Counter[tuple[bytes, int]]:
    """The same of a prepared copy; each sample has its own index."""
    from ffcv.reader import Reader

    reader = Reader(str(beton))
    content = np.memmap(beton, np.uint8, mode="r")
    assert np.array_equal(np.sort(reader.alloc_table["sample_id"]), np.arange(reader.num_samples))
    found: Counter[tuple[bytes, int]] = Counter()
    for number, (image, label, index) in enumerate(row.tolist() for row in reader.metadata):
        assert index == number
        _, width, height, place = image
        assert (width, height) == (SIDE, SIDE)
        found[hashlib.sha256(content[place : place + 3 * SIDE**2].tobytes()).digest(), label] += 1
    return found


def compare(trip: Trip) -> None:
    """Every image and label of the copy with the archives."""
    root = trip.folder / "data" / "imagenet"
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz") as kit:
        lines = kit.extractfile("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt")
        assert lines is not None
        ids = [int(line) for line in lines.read().split()]
    places = {name: place for place, name in enumerate(sorted(SYNSETS))}

    def of_training(name: str) -> int:
        return places[name.partition("/")[0]]

    def of_validation(name: str) -> int:
        return places[list(reversed(SYNSETS))[ids[int(name[-13:-5]) - 1] - 1]]

    for part, archive, label_of in (("train", "img_train", of_training), ("test", "img_val", of_validation)):
        wanted = source_images(root / f"ILSVRC2012_{archive}.tar", label_of)
        found = copied_images(trip.copy / f"{part}.beton")
        lost, twice = wanted - found, found - wanted
        many = f"{part}: {sum(found.values()):,} of {sum(wanted.values()):,} images"
        trip.say(f"{many}; {sum(lost.values())} lost or mislabelled, {sum(twice.values())} twice or strange")
        assert not lost
        assert not twice


def travel(trip: Trip) -> None:
    """The whole way."""
    write_imagenet(trip.folder / "data" / "imagenet")
    trip.say(f"{TRAIN * len(SYNSETS):,} + {VAL * len(SYNSETS):,} images written, {len(SYNSETS)} classes")
    print(trip.type(*LAUNCH))
    trip.say("launched")
    for share, blow in BLOWS:
        trip.strike(share, blow)
        assert "0 jobs submitted" in trip.type(*LAUNCH), "launching again submitted something"
    print(trip.type("sweeps/status.py"))
    trip.wait(lambda: (trip.copy / "manifest.json").is_file(), "the copy")
    trip.say("the copy is whole")
    compare(trip)
    chains = run_folder.chain_folders(trip.folder / "runs", "imagenet")
    trip.wait(lambda: all(run_folder.committed_rounds(chain) == 3 for chain in chains) or not read_queue(), "chains", 2)
    print(trip.type("sweeps/status.py"))
    rounds = sum(run_folder.committed_rounds(chain) for chain in chains)
    trip.say(f"{rounds} of {3 * len(chains)} rounds of {len(chains)} chains committed")
    assert rounds == 3 * len(chains)
    print(trip.type("analysis/curves.py"))
    trip.say(f"curves: {trip.folder / 'figures' / 'imagenet'}")


def main(arguments: list[str]) -> int:
    """The command line; fails by an exception."""
    options = dict(argument.partition("=")[::2] for argument in arguments)
    folder = Path(options.get("out") or tempfile.mkdtemp(prefix="imagenet-")).resolve()
    with contextlib.ExitStack() as open_until_the_end:
        home = open_until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
        cluster = open_until_the_end.enter_context(LocalSlurm(Path(home), SHAPE))
        os.environ.update(cluster.env)
        travel(Trip(folder, cluster))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
