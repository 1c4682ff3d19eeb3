"""Memory that a scan of a pool takes for each of its images: 200,000 of them, from a file of FFCV, against 20,000.

python -m benchmarks.scan_memory [--images 200000] [--quick]

Each pool is scanned in a process of its own for two scores per image, and every image is checked to have come exactly
once, in its place. What counts is the largest private memory (RssAnon) above that before the file was opened: pages of
the file itself are the system's cache, which it takes back when it needs them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SIDE, LIMIT = 16, 64


class Numbered:
    """Made-up images that have their number in their first four bytes, as FFCV's writer takes them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.noise = np.random.default_rng(0).integers(0, 256, (64, SIDE, SIDE, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        image = self.noise[index % 64].copy()
        image.reshape(-1)[:4] = np.frombuffer(np.int32(index).tobytes(), np.uint8)
        return image, 0, index


def write(path: Path, count: int) -> None:
    """A file of FFCV with raw pixels."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField(), "index": IntField()}
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Numbered(count), chunksize=1000)


def private_bytes() -> int:
    """RssAnon of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Peak:
    """The largest private memory of this process while it is open."""

    def __enter__(self) -> Peak:
        self.bytes, self._open = private_bytes(), True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False
        self._thread.join()

    def _watch(self) -> None:
        while self._open:
            self.bytes = max(self.bytes, private_bytes())
            time.sleep(0.002)


def scan(path: Path, count: int) -> int:
    """Peak bytes of scanning a file of `count` images, above those before it was opened."""
    import torch
    from torch import Tensor

    from mal.data.augment import Augmentation
    from mal.data.ffcv.reader import BetonReader
    from mal.data.loader import Loader
    from mal.process.device import Device
    from mal.process.interrupt import Interrupt
    from mal.run.heartbeat import Progress
    from mal.training.scan import Scanner

    device, zero = Device(torch.device("cpu"), bf16=False), torch.zeros(1, 3, 1, 1)
    augmentation = Augmentation(flip=False, crop=None, pad_crop=0, mean=zero, std=zero + 1)

    def scores(images: Tensor) -> dict[str, Tensor]:
        first = (images.permute(0, 2, 3, 1).reshape(len(images), -1)[:, :4] * 255).round().long()
        return {"number": (first * 256 ** torch.arange(4)).sum(dim=1).int(), "mean": images.mean(dim=(1, 2, 3))}

    def pass_over(path: Path, count: int) -> dict[str, np.ndarray]:
        reader = BetonReader(path, (3, SIDE, SIDE), device.torch, 2)
        loader = Loader(reader, Hidden(count), device.torch)
        scanner = Scanner(augmentation, device, Progress(path.parent, 0, Interrupt()), folder=path.parent)
        return scanner.scan("score", loader, np.arange(count), scores)

    pass_over(path.with_name("warm.beton"), 2000)  # what compiling and the first batches take is taken
    before = private_bytes()
    with Peak() as peak:
        found = pass_over(path, count)
    assert np.array_equal(found["number"], np.arange(count))
    return peak.bytes - before


class Hidden:
    """No label at all, of any number of images."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.full(len(indices), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--quick", action="store_true", help="40,000 images")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file is not None:
        print(scan(given.file, given.images))
        return
    large = 40_000 if given.quick else given.images
    counts = (large // 10, large)
    with tempfile.TemporaryDirectory() as name:
        peaks = []
        write(Path(name, "warm.beton"), 2000)
        for count in counts:
            path = Path(name, f"{count}.beton")
            write(path, count)
            command = [sys.executable, "-m", "benchmarks.scan_memory", "--images", str(count), "--file", str(path)]
            peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(f"{count:,} images: {peaks[-1] / 2**20:.1f} MiB above what the process had")
    each = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    print(f"{each:.1f} bytes per image (<= {LIMIT} {'met' if each <= LIMIT else 'MISSED'}), each scanned exactly once")
    sys.exit(each > LIMIT)


if __name__ == "__main__":
    main()
