"""Images per second: ours from FFCV's files and by torch's workers, against ImageFolder + DataLoader and FFCV's own.

python -m benchmarks.loaders [--images 4000] [--workers 2] [--repeats 5] [--quick]

256-pixel JPEGs cut from two photographs, batches of 256. Everything is measured in turn, `--repeats` times after one
unmeasured epoch; a ratio is the median over these turns. `delivered`: uint8 images on the device, as our loaders give
them; `to floats`: cropped, flipped and normalised as well, ours by mal.data.augment on the device (the same cores where
there is no GPU), ImageFolder's by torchvision in its workers.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from mal.data.augment import Augmentation
from mal.data.loader import build_loader, in_order

SIDE, CROP, BATCH, SUBSET = 256, 224, 256, 0.05
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Turn = Callable[[], int]


@dataclass(frozen=True)
class Folder:
    """JPEGs of 256 x 256 pixels, as mal.data.image_set.Files gives them."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    shape: tuple[int, ...] = (3, SIDE, SIDE)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """uint8 (3, H, W)."""
        with Image.open(self.paths[index]) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@dataclass(frozen=True)
class Stored:
    """A file of FFCV."""

    beton: Path
    shape: tuple[int, ...] = (3, SIDE, SIDE)


# ------------------------------------------------------------------------- images


def photographs(count: int) -> Iterator[np.ndarray]:
    """Crops of scikit-learn's two photographs at many scales, mirrored, brighter or darker, with a sensor's noise."""
    random = np.random.default_rng(0)
    sources = load_sample_images().images
    for number in range(count):
        source = sources[number % len(sources)]
        side = int(random.integers(150, 427))
        top, left = (int(random.integers(0, room - side + 1)) for room in source.shape[:2])
        crop = Image.fromarray(source[top : top + side, left : left + side]).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(crop)[:, :: random.choice((-1, 1))] * random.uniform(0.7, 1.2)
        yield np.clip(pixels + random.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)


def write(folder: Path, count: int) -> tuple[Folder, dict[str, Stored]]:
    """The same images as a tree for ImageFolder, and as files of FFCV with raw pixels and with JPEGs."""
    paths = []
    for number, image in enumerate(photographs(count)):
        path = folder / "tree" / f"class-{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=90)
        paths.append(path)
    tree = Folder(tuple(paths), np.zeros(count, np.int64))
    files = {mode: stored(folder / f"{mode}.beton", mode, Samples(tree), 2) for mode in ("raw", "jpg")}
    size = np.mean([path.stat().st_size for path in paths]) / 1024
    print(f"{count} JPEGs of {SIDE} x {SIDE} pixels, {size:.0f} KiB each on average")
    return tree, files


def stored(path: Path, mode: str, samples: Any, workers: int) -> Stored:
    """A file of FFCV with raw pixels (mode raw) or JPEGs (jpg); samples: (uint8 (H, W, 3), label, index) by index."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode=mode), "label": IntField(), "index": IntField()}
    DatasetWriter(str(path), fields, num_workers=workers).from_indexed_dataset(samples)
    return Stored(path)


@dataclass(frozen=True)
class Samples:
    """What FFCV's writer takes."""

    tree: Folder

    def __len__(self) -> int:
        return len(self.tree)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        return np.ascontiguousarray(self.tree.read(index).transpose(1, 2, 0)), 0, index


# ------------------------------------------------------------------------- what is compared


def image_folder(root: Path, workers: int, train: bool, floats: bool = True, subset: int = 0) -> Turn:
    """One epoch of torchvision's ImageFolder through torch's DataLoader, the workers kept from epoch to epoch.

    subset: so many images drawn anew each time, as a round's labelled set is.
    """
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    steps: list[Any] = [T.RandomCrop(CROP), T.RandomHorizontalFlip()] if train else [T.CenterCrop(CROP)]
    steps += [T.ToTensor(), T.Normalize(MEAN, STD)] if floats else [T.PILToTensor()]
    images = ImageFolder(str(root), T.Compose(steps))
    sampler = RandomSampler(images, num_samples=subset) if subset else None
    loader = DataLoader(
        images, BATCH, shuffle=train and not subset, sampler=sampler, num_workers=workers, persistent_workers=True
    )
    return lambda: sum(len(batch) for batch, _ in loader)


class Ours:
    """Epochs of one of our loaders."""

    def __init__(self, kind: str, split: Any, count: int, device: torch.device, workers: int) -> None:
        self.loader = build_loader(kind, split, np.zeros(count, np.int64), device, workers)
        self.count, self.device, self.random = count, device, np.random.default_rng(0)
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
        self.augmentation = Augmentation(flip=True, crop=CROP, pad_crop=0, mean=mean, std=std)

    def delivered(self, indices: np.ndarray) -> int:
        """uint8 on the device."""
        seen = sum(len(batch.images) for batch in self.loader.batches(in_order(indices, BATCH)))
        return self._done(seen)

    def floats(self, indices: np.ndarray, train: bool) -> int:
        """Cropped and normalised on the device."""
        seen = 0
        for number, batch in enumerate(self.loader.batches(in_order(indices, BATCH))):
            given = (
                self.augmentation.train(batch.images, (number,)) if train else self.augmentation.evaluate(batch.images)
            )
            seen += len(given)
        return self._done(seen)

    def shuffled(self) -> np.ndarray:
        """Every index, in a new order."""
        return self.random.permutation(self.count)

    def subset(self) -> np.ndarray:
        """A new random share, in order."""
        return np.sort(self.random.choice(self.count, round(SUBSET * self.count), replace=False))

    def phase(self, epochs: int) -> np.ndarray:
        """What a training phase reads of a labelled set: the same share in a new order each epoch."""
        share = self.subset()
        return np.concatenate([self.random.permutation(share) for _ in range(epochs)])

    def _done(self, seen: int) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return seen


def ffcv_itself(file: Stored, workers: int) -> Turn:
    """FFCV's Loader, in its own random order, uint8 as it gives them."""
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage

    threads = torch.get_num_threads()
    image = [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()]
    loader = Loader(
        str(file.beton), BATCH, workers, order=OrderOption.RANDOM, drop_last=False, pipelines={"image": image}
    )

    def epoch() -> int:
        seen = sum(len(batch[0]) for batch in loader)
        torch.set_num_threads(threads)
        return seen

    return epoch


# ------------------------------------------------------------------------- measuring


def rates(turns: dict[str, Turn], repeats: int) -> dict[str, list[float]]:
    """Images per second of each, in turn, after one unmeasured time."""
    for turn in turns.values():
        turn()
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            began = time.perf_counter()
            count = turn()
            found[name].append(count / (time.perf_counter() - began))
    return found


def show(title: str, found: dict[str, list[float]], targets: dict[str, float]) -> None:
    """Rates, and their ratios to the first of them."""
    first = next(iter(found.values()))
    print(f"\n{title:<58} {'images/s':>9} {'ratio':>7}")
    for name, values in found.items():
        ratio = statistics.median(value / base for value, base in zip(values, first, strict=True))
        target = targets.get(name)
        verdict = "" if target is None else f"  >= {target:g} {'met' if ratio >= target else 'MISSED'}"
        print(f"  {name:<56} {statistics.median(values):>9,.0f} {ratio:>7.2f}{verdict}", flush=True)


def first_batches(file: Stored, workers: int) -> list[tuple[float, float]]:
    """Seconds of importing FFCV and of the first batch, in two processes one after the other."""
    program = f"""
import time, numpy as np, torch
from pathlib import Path
from mal.data.ffcv.reader import BetonReader, library
began = time.perf_counter()
library()
imported = time.perf_counter()
reader = BetonReader(Path({str(file.beton)!r}), {file.shape}, torch.device("cpu"), {workers})
next(reader.read([np.arange({BATCH})]))
print(imported - began, time.perf_counter() - imported)
"""
    outputs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in "12"
    ]
    return [(float(a), float(b)) for a, b in (output.stdout.split() for output in outputs)]


def parts(tree: Folder, files: dict[str, Stored], workers: int, repeats: int) -> dict[str, float]:
    """Where the time goes: microseconds per image of each part, for one batch."""
    indices = np.arange(min(BATCH, len(tree)))
    ours = {mode: Ours("ffcv", file, len(tree), torch.device("cpu"), workers) for mode, file in files.items()}
    images = ours["raw"].loader.load(indices).images.clone()
    augmentation = ours["raw"].augmentation
    cropped = images[..., :CROP, :CROP]
    offsets = np.random.default_rng(0).random((2, len(images)))
    work: dict[str, Callable[[], Any]] = {
        "decode a JPEG, Pillow, one core": lambda: [tree.read(int(i)) for i in indices],
        f"decode a JPEG, FFCV's decoder, {workers} threads": lambda: ours["jpg"].loader.load(indices),
        f"copy raw pixels, {workers} threads": lambda: ours["raw"].loader.load(indices),
        "random crop": lambda: augmentation._random_crop(images, offsets, 0),
        "flip": lambda: torch.where(torch.ones(len(images), 1, 1, 1, dtype=torch.bool), cropped.flip(-1), cropped),
        "normalise to floats": lambda: augmentation._normalise(cropped),
    }
    found = {}
    for name, function in work.items():
        function()
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
        found[name] = 1e6 * statistics.median(seconds) / len(indices)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1,000 images, 3 repeats: a smoke test")
    given = parser.parse_args()
    count, repeats, workers = (1000, 3, given.workers) if given.quick else (given.images, given.repeats, given.workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{workers} workers or threads, device {device}, torch with {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree, files = write(folder, count)
        report(folder, tree, files, device, workers, repeats)


def report(
    folder: Path, tree: Folder, files: dict[str, Stored], device: torch.device, workers: int, repeats: int
) -> None:
    """Measure and print everything."""
    count, root = len(tree), folder / "tree"
    raw, jpg = (Ours("ffcv", files[mode], count, device, workers) for mode in ("raw", "jpg"))
    ours = Ours("torch", tree, count, device, workers)
    everything = np.arange(count)
    train: dict[str, Turn] = {
        "ImageFolder + DataLoader, crops as floats": image_folder(root, workers, train=True),
        "ImageFolder + DataLoader, crops as uint8": image_folder(root, workers, train=True, floats=False),
        "torch, delivered": lambda: ours.delivered(ours.shuffled()),
        "torch, to floats": lambda: ours.floats(ours.shuffled(), train=True),
        "ffcv JPEG, delivered": lambda: jpg.delivered(jpg.shuffled()),
        "ffcv JPEG, to floats": lambda: jpg.floats(jpg.shuffled(), train=True),
        "ffcv raw, delivered": lambda: raw.delivered(raw.shuffled()),
        "ffcv raw, to floats": lambda: raw.floats(raw.shuffled(), train=True),
        "FFCV's own Loader, raw, its random order": ffcv_itself(files["raw"], workers),
    }
    targets = {"ffcv JPEG, delivered": 3.0, "ffcv raw, delivered": 5.0}
    show(f"Training, random order, crops of {CROP}", rates(train, repeats), targets)
    scan: dict[str, Turn] = {
        "ImageFolder + DataLoader, as floats": image_folder(root, workers, train=False),
        "torch, delivered": lambda: ours.delivered(everything),
        "torch, to floats": lambda: ours.floats(everything, train=False),
        "ffcv JPEG, delivered": lambda: jpg.delivered(everything),
        "ffcv JPEG, to floats": lambda: jpg.floats(everything, train=False),
        "ffcv raw, delivered": lambda: raw.delivered(everything),
        "ffcv raw, to floats": lambda: raw.floats(everything, train=False),
    }
    targets = {"ffcv JPEG, delivered": 3.0, "ffcv raw, delivered": 8.0}
    show(f"Scan, in order, centre {CROP}", rates(scan, repeats), targets)
    few = round(SUBSET * count)
    subset: dict[str, Turn] = {
        "ImageFolder + DataLoader, as floats": image_folder(root, workers, train=True, subset=few),
        "torch, delivered": lambda: sum(ours.delivered(ours.subset()) for _ in range(5)),
        "ffcv JPEG, delivered": lambda: sum(jpg.delivered(jpg.subset()) for _ in range(5)),
        "ffcv raw, delivered": lambda: sum(raw.delivered(raw.subset()) for _ in range(20)),
    }
    show(f"A random {SUBSET:.0%}, drawn anew each time", rates(subset, repeats), {})
    for mode, loader in (("raw", raw), ("JPEG", jpg)):
        pair = {
            "the whole": lambda loader=loader: loader.delivered(loader.shuffled()),
            "one subset, 20 epochs of a phase": lambda loader=loader: loader.delivered(loader.phase(20)),
            "20 subsets, a stream for each": lambda loader=loader: sum(
                loader.delivered(loader.subset()) for _ in range(20)
            ),
        }
        show(
            f"ffcv {mode}: a random {SUBSET:.0%} against the whole",
            rates(pair, repeats),
            {"one subset, 20 epochs of a phase": 0.9},
        )
    print("\nWhere the time goes, microseconds per image")
    for name, cost in parts(tree, files, workers, repeats).items():
        print(f"  {name:<56} {cost:>9.1f}")
    for mode, file in files.items():
        (import_1, batch_1), (import_2, batch_2) = first_batches(file, workers)
        verdict = "met" if batch_2 < 2 else "MISSED"
        print(f"first batch, {mode}: {batch_1:.2f} s, in a second process {batch_2:.2f} s (< 2 s {verdict})", end="; ")
        print(f"importing FFCV {import_1:.1f} and {import_2:.1f} s")


if __name__ == "__main__":
    main()
