"""Mutated images, masks, pickles, JSON files, archives, prepared copies and manifests: refused in words, or read.

    python -m tests.fuzz [files=10000] [seed=0]

Each file is damaged (bits flipped, bytes changed, cut, grown, spliced) and read as a chain reads it. Printed, with the
number that makes it again, is what raises anything but a short ValueError, takes more than SECONDS, grows the process
by more than MEBIBYTES, or is read with other labels under the pool's old digest. Exit status 1 then.
"""

from __future__ import annotations

import dataclasses
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from mal.config.compose import compose_sweep
from mal.config.options import parse_options
from mal.config.schema import Dataset as Spec
from mal.data.dataset import load
from mal.data.decode import Reading, decode_image, decode_map, jpeg_sides, read_head
from mal.data.ffcv.prepared import open_prepared, prepared_folder
from mal.data.image_set import Files, MapFiles, in_memory
from tests.made_up_data import (
    write_bdd100k,
    write_cifar100,
    write_fashion,
    write_imagenet_archives,
    write_inaturalist2018,
)
from tests.made_up_pools import write_cifar10, write_downsampled_imagenet, write_svhn, write_tiny_imagenet
from tests.odd_images import odd_images

SECONDS, MEBIBYTES = 20, 700
SMALL = ("dataset.size=32", "dataset.crop=28")


class TooSlow(Exception):
    """A file took more than SECONDS."""


def mutate(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four kinds of damage, more often near its beginning, where formats keep their lengths."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        size = max(1, len(found))
        at = draw.randrange(size) if draw.random() < 0.5 else min(size - 1, draw.randrange(256))
        kind = draw.randrange(7)
        if kind <= 1 and found:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 2 and found:
            found[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 3:
            del found[at : at + draw.choice([1, 2, 4, 100, size])]
        elif kind == 4:
            found[at:at] = draw.randbytes(draw.choice([1, 4, 50]))
        elif kind == 5 and len(found) >= 8:
            found[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0"])
        else:
            other = draw.randrange(size)
            found[at : at + 20] = found[other : other + 20]
    return bytes(found)


def restructure(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with one value, somewhere in it, exchanged for one of another kind."""
    whole: Any = {"whole": json.loads(content)}
    at, key = whole, "whole"
    while isinstance(at[key], dict | list) and at[key] and draw.random() < 0.8:
        at = at[key]
        key = draw.choice(list(at)) if isinstance(at, dict) else draw.randrange(len(at))
    values = [None, True, -1, 10**30, 1.5, float("nan"), "", "../x", [], {}, [[]], {"a": 1}]
    at[key] = draw.choice(values)
    return json.dumps(whole["whole"]).encode()


@dataclasses.dataclass
class Pool:
    """A small pool whose files are damaged one at a time; copy: whether it is the prepared copy that is damaged."""

    root: Path
    spec: Spec
    data: Path
    paths: list[Path]
    copy: bool = False

    def read(self) -> tuple[str, bytes]:
        """Its digest and its labels, after every image and map was read."""
        if self.copy:
            train, _ = open_prepared(self.spec, self.data)
            return "", np.asarray(train.labels).tobytes()
        dataset = load(self.spec, self.data, 0)
        if isinstance(dataset.train, Files):
            in_memory(dataset.train)
        labels = dataset.train.labels
        bought = labels[np.arange(len(labels))] if isinstance(labels, MapFiles) else labels
        return dataset.digest, np.asarray(bought).tobytes()


def spec(*overrides: str) -> Spec:
    fixed = ["methods=[random]", "seeds=1", "rounds=1", "initial=1", "budget=1"]
    return compose_sweep([*overrides, *fixed]).chains[0].dataset


def pools(root: Path) -> list[Pool]:
    """One for each format on disk."""
    write_cifar100(root / "cifar-100-python")
    write_cifar10(root / "cifar-10-batches-py")
    write_fashion(root / "fashion-mnist", zipped=True)
    write_svhn(root / "svhn", train=12, test=6)
    write_downsampled_imagenet(root / "imagenet32")
    write_downsampled_imagenet(root / "imagenet64", 64, packed=True)
    write_tiny_imagenet(root / "tiny-imagenet-200")
    write_inaturalist2018(root / "inaturalist2018")
    write_imagenet_archives(root / "imagenet")
    write_bdd100k(root / "bdd100k", train=4, val=2)
    few = ("dataset.train=12", "dataset.test=6")
    specs = {
        "cifar-100-python": spec("dataset=cifar100", *few),
        "cifar-10-batches-py": spec("dataset=cifar10", "dataset.train=30", "dataset.test=6"),
        "fashion-mnist": spec("dataset=fashion_mnist", "dataset.train=30", "dataset.test=20"),
        "svhn": spec("dataset=svhn", *few),
        "imagenet32": spec("dataset=imagenet32", "dataset.classes=3", "dataset.train=40", "dataset.test=6"),
        "imagenet64": spec("dataset=imagenet64", "dataset.classes=3", "dataset.train=40", "dataset.test=6"),
        "tiny-imagenet-200": spec(
            "dataset=tiny_imagenet", "dataset.classes=3", "dataset.train=18", "dataset.test=8", "dataset.size=32"
        ),
        "inaturalist2018": spec(
            "dataset=inaturalist2018", "dataset.classes=4", "dataset.train=24", "dataset.test=8", *SMALL
        ),
        "imagenet": spec("dataset=imagenet", "dataset.classes=3", "dataset.train=24", "dataset.test=12", *SMALL),
        "bdd100k": dataclasses.replace(spec("dataset=bdd100k"), size=32, train=4, test=2),
    }
    text = (".json", ".txt", ".gz", ".tar", ".png")
    found = []
    for name, each in specs.items():
        files = sorted(path for path in (root / name).rglob("*") if path.is_file())
        chosen = [path for path in files if path.suffix in text] or files
        found.append(Pool(root / name, each, root, chosen))
    if (copy := prepared(root)) is not None:
        found.append(copy)
    return found


def prepared(root: Path) -> Pool | None:
    """A prepared copy of CIFAR10, where FFCV is installed."""
    import importlib.util

    if importlib.util.find_spec("ffcv") is None:
        return None
    from mal.data import prepare

    few = ["dataset.train=30", "dataset.test=6"]
    assert prepare.main(["dataset=cifar10", *few, f"data={root}", "workers=1"]) == prepare.EXIT_DONE
    of_copy = spec("dataset=cifar10", *few)
    folder = prepared_folder(of_copy, root, "raw")
    return Pool(folder, of_copy, root, sorted(path for path in folder.iterdir() if path.suffix != ".lock"), copy=True)


class Fuzz:
    """Counts what came of each kind of file, and keeps what must not be."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def try_one(self, kind: str, number: int, read: Callable[[], object]) -> object | None:
        """What reading gives; None where it is refused as it should be, or goes wrong."""
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        signal.alarm(SECONDS)
        try:
            found = read()
            self.outcomes[f"{kind}: read"] += 1
            return found
        except ValueError as error:
            self.outcomes[f"{kind}: refused"] += 1
            if not str(error) or len(str(error)) > 3000 or "<_io." in str(error):
                self.wrong.append(f"{kind} {number}: the refusal says {str(error)[:200]!r}")
        except Exception:
            self.wrong.append(f"{kind} {number}: {traceback.format_exc(limit=-3)}")
        finally:
            signal.alarm(0)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            if grown > MEBIBYTES or time.monotonic() - began > SECONDS:
                self.wrong.append(f"{kind} {number}: {grown} MiB, {time.monotonic() - began:.0f} s")
        return None


def fuzz_images(fuzz: Fuzz, count: int, seed: int) -> None:
    """Damaged images and masks, each read as image, as head and as map."""
    odd = sorted(odd_images().items())
    for number in range(count):
        draw = random.Random(f"{seed} image {number}")
        content = mutate(draw.choice(odd)[1], draw)
        how = Reading(32, draw.choice(["square", "stretch"]), exif=draw.random() < 0.5, max_pixels=20_000_000)
        if number % 4:
            found = fuzz.try_one("image", number, lambda c=content, h=how: decode_image(c, h))  # type: ignore[misc]
            if found is not None and (found.shape, found.dtype) != ((3, 32, 32), np.uint8):  # type: ignore[attr-defined]
                fuzz.wrong.append(f"image {number}: {found.shape} {found.dtype}")  # type: ignore[attr-defined]
            jpeg_sides(content[:4096])
        else:
            fuzz.try_one("map", number, lambda c=content, h=how: decode_map(c, h))  # type: ignore[misc]
        fuzz.try_one("head", number, lambda c=content, h=how: read_head(c, h, is_map=False))  # type: ignore[misc]


def fuzz_pools(fuzz: Fuzz, found: list[Pool], count: int, seed: int) -> None:
    """One damaged file of a pool at a time; what is read though damaged has another digest, or the same labels."""
    wholes = [pool.read() for pool in found]
    for number in range(count):
        draw = random.Random(f"{seed} pool {number}")
        at = number % len(found)
        pool, path = found[at], draw.choice(found[at].paths)
        content = path.read_bytes()
        structural = path.suffix == ".json" and draw.random() < 0.5
        path.write_bytes(restructure(content, draw) if structural else mutate(content, draw))
        answer = fuzz.try_one(f"{pool.root.name}/{path.suffix or path.name}", number, pool.read)
        if isinstance(answer, tuple) and answer[0] == wholes[at][0] and answer[1] != wholes[at][1]:
            fuzz.wrong.append(f"{path} {number}: other labels under the same digest")
        path.write_bytes(content)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    options = parse_options(arguments, {"files": "10000", "seed": "0"})
    count, seed, fuzz = int(options["files"]), int(options["seed"]), Fuzz()

    def late(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        found = pools(root)
        began = time.monotonic()
        fuzz_images(fuzz, count * 3 // 4, seed)
        fuzz_pools(fuzz, found, count - count * 3 // 4, seed)
        seconds = time.monotonic() - began
    finally:
        shutil.rmtree(root)
    print(json.dumps(dict(sorted(fuzz.outcomes.items())), indent=1))
    print(f"{count} files, {1000 * seconds / count:.1f} s per thousand, {len(fuzz.wrong)} wrong")
    print("\n".join(fuzz.wrong[:50]))
    return 1 if fuzz.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
