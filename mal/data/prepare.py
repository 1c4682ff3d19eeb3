"""Prepare a dataset for FFCV: its images as .beton files, with labels, pixel sums and hashes, all checked.

    python -m mal.data.prepare dataset=imagenet source=/shared/imagenet data=/shared/data
    python -m mal.data.prepare dataset=imagenet mode=jpg quality=90 verify=true

    dataset=NAME        one of mal/conf/dataset or conf=DIR; dataset.KEY=VALUE changes its keys, as in sweeps/launch.py
    chain=DIR           the dataset of a launched chain, RUNS/NAME/METHOD/seed-S, as its config.yaml has it
    source=DIR          folder of the dataset's files (default: where the dataset looks in data=)
    conf=DIR            folder of your own dataset/NAME.yaml (default: ./conf, where it is there)
    data=DIR            the copy goes to DIR/prepared/NAME-MODE (default: data)
    mode=raw            raw: pixels | jpg: JPEG of the resized image | mixed: a share of the images as JPEG
    quality=90          of the JPEGs, 1 to 100
    share=0.5           of the images that mode=mixed compresses
    workers=N           processes (default: the cores that this one may use)
    verify=true         read everything back and compare it with the source; also of a copy that is there already
    skip_corrupt=true   leave images out that cannot be read, instead of writing nothing
    replace=true        write a copy anew that is there already

A copy appears under its name only when it is complete. Stopped (Ctrl-C, SIGTERM) or killed, it leaves what it wrote in
DATA/prepared/.NAME-MODE.part, and the same command goes on from there. Exit status: 0 done, or nothing to do; 1 failed;
2 refused before anything was written; 75 stopped by a signal, 130 by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"prepare: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

import numpy as np
from filelock import FileLock, Timeout

from mal import __version__
from mal.data.dataset import check_split, read_source
from mal.data.decode import PIXELS
from mal.data.ffcv.beton import (
    check_beton,
    check_deep,
    encode_jpeg,
    map_shape,
    page_size,
    stored,
    sync,
    write_beton,
)
from mal.data.ffcv.library import require_ffcv
from mal.data.ffcv.prepared import (
    FORMAT,
    MANIFEST,
    PARTS,
    check_files,
    class_counts,
    content_hash,
    exif_of,
    hash_file,
    pixels_of,
    prepared_folder,
    read_manifest,
    remember_checked,
    unfinished_folder,
)
from mal.data.ffcv.unfinished import Stopped
from mal.data.ffcv.worker_pool import WorkersDied
from mal.data.image_set import Files, Readable, hash_arrays
from mal.data.prepare_request import Request, read_request
from mal.data.progress_report import ProgressReport
from mal.files import run_command, write_json
from mal.listing import some
from mal.process.interrupt import EXIT_INTERRUPTED, Interrupt
from mal.run.heartbeat import now

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 0, 1, 2, 130
GOES_ON = "what was written is kept, and the same command goes on"
SAMPLE = 32  # images encoded to estimate the size of the JPEGs
SPARE = 64 * 2**20  # bytes that must stay free


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if {"-h", "--help", "help"} & set(arguments):
        print((__doc__ or "").strip())
        return EXIT_DONE
    try:
        request = read_request(arguments)
        require_ffcv()
        return prepare(request)
    except ValueError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"prepare: {error}; nothing was written.", file=sys.stderr)
        return EXIT_FAILED
    except WorkersDied as error:
        print(f"prepare: {error} {GOES_ON[0].upper()}{GOES_ON[1:]}.", file=sys.stderr)
        return EXIT_FAILED
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"prepare: {stop or 'stopped'}; {GOES_ON}.", file=sys.stderr)
        return EXIT_STOPPED if isinstance(stop, KeyboardInterrupt) else EXIT_INTERRUPTED


def prepare(request: Request) -> int:
    """Write the copy, unless it is there already; returns the exit status.

    Raises ValueError where it is refused, OSError and `WorkersDied` where writing fails, `Stopped` after a signal.
    """
    splits = dict(zip(PARTS, read_source(request.spec, request.data), strict=True))
    for part, split in splits.items():
        expected = request.spec.train if part == "train" else request.spec.test
        expected = len(split) if request.spec.skip_unpaired else expected
        check_split(request.spec.name, "training" if part == "train" else part, split, request.spec, expected)
    folder = prepared_folder(request.spec, request.data, request.compression.mode)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            return _prepare(request, splits, folder)
    except Timeout:
        raise ValueError(f"{folder} is being prepared by another process.") from None


def _prepare(request: Request, splits: dict[str, Readable], folder: Path) -> int:
    manifest = None if request.replace else read_manifest(folder)
    if manifest is None:
        check_space(request, splits, folder.parent)
        manifest = _write(request, splits, folder)
        print(f"{folder}: {_counts(manifest)}, {_gigabytes(_size(manifest))}")
    else:
        _refuse_other(request, splits, folder, manifest)
        check_files(folder, manifest)
        _settle_pixels(request, splits, folder, manifest)
        print(f"{folder} is there already: {_counts(manifest)}")
    if request.verify:
        _verify(request, splits, folder, manifest)
    return EXIT_DONE


def check_space(request: Request, splits: dict[str, Readable], folder: Path) -> None:
    """Refuse to begin where the disk is too small for the files, with a ValueError that says both sizes."""
    needed = sum(_estimate(request, split) for split in splits.values())
    free = shutil.disk_usage(folder).free
    print(f"about {_gigabytes(needed)} will be written to {folder}, {_gigabytes(free)} are free", flush=True)
    if needed + SPARE > free:
        raise ValueError(
            f"{folder} has {_gigabytes(free)} free, but about {_gigabytes(needed)} are needed: choose another data=, "
            "or mode=jpg."
        )


def _estimate(request: Request, split: Readable) -> int:
    """Bytes of a part, about."""
    compression, raw = request.compression, int(np.prod(split.shape))
    pages = (request.workers + 1) * page_size(raw)  # the first is for the head, the last of each worker is not full
    share = {"raw": 0.0, "jpg": 1.0, "mixed": compression.share}[compression.mode]
    if share:
        sample = np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(int))
        sizes = [len(encode_jpeg(stored(image), compression.quality)) for image in _readable(split, sample)]
        raw = int((1 - share) * raw + share * 1.1 * np.mean(sizes)) if sizes else raw
    labels = 2 * int(np.prod(map_shape(split) or 8))  # maps are kept beside the file too
    return int(len(split) * (1.03 * raw + labels + 100)) + pages


def _readable(split: Readable, indices: np.ndarray) -> list[np.ndarray]:
    images = []
    for index in indices:
        try:
            images.append(split.read(int(index)))
        except ValueError:
            continue  # named with all others when they are written
    return images


def _write(request: Request, splits: dict[str, Readable], folder: Path) -> dict[str, Any]:
    temporary = unfinished_folder(folder)
    temporary.mkdir(exist_ok=True)  # with what a stopped run left
    try:
        with stopping() as stop:
            _write_parts(request, splits, temporary, stop)
            if stop():
                raise Stopped("stopped before the files were hashed")
        manifest = _manifest(request, splits, temporary)
        for path in temporary.glob(".*"):
            path.unlink()
        write_json(temporary / MANIFEST, manifest)
        sync(temporary)
        if folder.is_dir():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(folder.with_name(f".{folder.name}.old"), ignore_errors=True)
        remember_checked(folder, manifest)
    except (ValueError, OSError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked this process to stop, for what can be left and gone on with later."""
    before = {number: signal.getsignal(number) for number in Interrupt.SIGNALS}
    interrupt = Interrupt()
    interrupt.install()
    try:
        yield lambda: interrupt.requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if interrupt.cause == "SIGINT":
            raise KeyboardInterrupt


def _write_parts(request: Request, splits: dict[str, Readable], folder: Path, stop: Callable[[], bool]) -> None:
    """All parts; without the images that cannot be read, where that is asked for. Changes `splits` to what it wrote."""
    wrong: dict[str, dict[int, str]] = {}
    for part, split in splits.items():
        with ProgressReport(part, len(split), folder) as report:
            wrong[part] = write_beton(folder, part, split, request.compression, request.workers, report, stop)
    messages = [message for part in wrong.values() for _, message in sorted(part.items())]
    if not messages:
        return
    print("\n".join(messages), file=sys.stderr)
    if not request.skip_corrupt:
        raise ValueError(
            f"{len(messages)} images, listed above, cannot be read: nothing was written. Fetch them again, or leave "
            "them out by skip_corrupt=true."
        )
    for part, failed in wrong.items():
        split = splits[part]
        if failed:
            assert isinstance(split, Files)
            splits[part] = split = split.without(np.array(sorted(failed)))
            with ProgressReport(f"{part}, without {len(failed)}", len(split), folder) as report:
                if again := write_beton(folder, part, split, request.compression, request.workers, report, stop):
                    raise ValueError(f"the files are changing: {some(again.values())}")


def _manifest(request: Request, splits: dict[str, Readable], folder: Path) -> dict[str, Any]:
    spec, compression = request.spec, request.compression
    return {
        "format": FORMAT,
        "dataset": spec.prepared_as or spec.source,
        "shape": [spec.channels, spec.size, spec.size],
        "resize": spec.resize,
        "exif": exif_of(spec),
        "pixels": PIXELS,
        "classes": spec.classes,
        "mode": compression.mode,
        "quality": compression.quality if compression.mode != "raw" else None,
        "share": compression.share if compression.mode == "mixed" else None,
        "parts": {part: _part(folder, part, split, spec.classes) for part, split in splits.items()},
        "hash": "SHA-256 of the SHA-256 of blocks of 64 MiB",
        "versions": {"mal": __version__, **{name: version(name) for name in ("ffcv", "numpy", "pillow")}},
        "written": now(),
    }


def _part(folder: Path, part: str, split: Readable, classes: int) -> dict[str, Any]:
    paths = [folder / f"{part}.beton", *(folder / f"{part}_{name}.npy" for name in ("labels", "moments", "pixels"))]
    return {
        "count": len(split),
        "class_counts": class_counts(np.load(folder / f"{part}_labels.npy", mmap_mode="r"), classes),
        "source": hash_arrays(split.identity()),
        "content": content_hash(np.load(folder / f"{part}_pixels.npy")),
        "left_out": list(split.left_out) if isinstance(split, Files) else [],
        "files": {path.name: {"bytes": path.stat().st_size, "hash": hash_file(path)} for path in paths},
    }


def _refuse_other(request: Request, splits: dict[str, Readable], folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a copy that was made otherwise or of other files. Changes `splits` to those that it was made of."""
    compression = request.compression
    made = {"quality": compression.quality if compression.mode != "raw" else None}
    made["share"] = compression.share if compression.mode == "mixed" else None  # type: ignore[assignment]
    made["shape"] = [request.spec.channels, request.spec.size, request.spec.size]  # type: ignore[assignment]
    for key, value in made.items():
        if manifest[key] != value:
            raise ValueError(
                f"{folder} was prepared with {key}={manifest[key]}, not {value}: replace=true makes it anew."
            )
    for part, split in splits.items():
        entry = manifest["parts"][part]
        if entry["left_out"] and isinstance(split, Files):
            left_out = set(entry["left_out"])
            gone = [index for index in range(len(split)) if split.store.name(index) in left_out]
            splits[part] = split = split.without(np.array(gone, dtype=np.int64))
        if hash_arrays(split.identity()) != entry["source"]:
            raise ValueError(
                f"{folder}/{part}.beton was prepared from other files than those that are there now ({entry['count']} "
                f"images then, {len(split)} now): replace=true makes it anew."
            )


def _settle_pixels(request: Request, splits: dict[str, Readable], folder: Path, manifest: dict[str, Any]) -> None:
    """Mark a copy that older rules made with today's where these make the same pixels; ValueError where they do not."""
    if pixels_of(manifest) == PIXELS:
        return
    different: list[str] = []
    for part, split in splits.items():
        if isinstance(split, Files):
            with ProgressReport(f"compare {part}", len(split)) as report:
                different += check_deep(folder, part, split, request.workers, report).values()
    if different:
        raise ValueError(
            f"{folder} was prepared by an older version, and {len(different)} of its images are not what they should "
            f"be: {some(different)}. replace=true makes it anew; chains that read it are to run again under another "
            "name=."
        )
    write_json(folder / MANIFEST, manifest | {"pixels": PIXELS})


def _verify(request: Request, splits: dict[str, Readable], folder: Path, manifest: dict[str, Any]) -> None:
    check_files(folder, manifest, anew=True)
    for part, split in splits.items():
        with ProgressReport(f"verify {part}", len(split)) as report:
            wrong = check_beton(folder, part, split, request.compression, request.workers, report)
        if wrong:
            raise ValueError(f"{folder}: {len(wrong)} samples are not what they should be: {some(wrong.values())}")
    print(f"{folder}: verified, every hash, image, label and index")


def _counts(manifest: dict[str, Any]) -> str:
    left_out = sum(len(entry["left_out"]) for entry in manifest["parts"].values())
    counts = " + ".join(f"{entry['count']:,}" for entry in manifest["parts"].values())
    return f"{counts} images{f', {left_out} left out' if left_out else ''}"


def _size(manifest: dict[str, Any]) -> int:
    return sum(file["bytes"] for entry in manifest["parts"].values() for file in entry["files"].values())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    run_command(main)
