"""Prepared copies of a dataset for FFCV: what is in them, where they are, and whether they are whole.

    DATA/prepared/STEM-MODE/{train,test}.beton        image, label, index: sample i is absolute index i
                            {train,test}_labels.npy   int64 (N,) or maps uint8 (N, H, W)
                            {train,test}_moments.npy  int64 (N, C, 2), sum and sum of squares of each image's pixels
                            {train,test}_pixels.npy   uint64 (N,), a hash of each image's pixels and its label
                            manifest.json             what of, how, how many, hashes; written last
                            checked.json              state of each file when its hash was last found right

`python -m mal.data.prepare` writes them. Importing this module imports neither torch nor FFCV.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.data.cache import user_cache
from mal.data.decode import PIXELS
from mal.data.image_set import Prepared
from mal.files import write_json

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, CHECKED = "manifest.json", "checked.json"
PARTS = ("train", "test")
MODES = ("raw", "jpg", "mixed")
BLOCK = 64 * 2**20  # bytes hashed at a time; the file's hash is that of its blocks' hashes, so that cores share it
PIECE = 2**20


def prepared_folder(spec: Spec, data: Path, mode: str) -> Path:
    """DATA/prepared/STEM-MODE, of `dataset.prepared_as` or else of the source: imbalanced variants share it."""
    return data / "prepared" / f"{spec.prepared_as or spec.source}-{mode}"


def unfinished_folder(folder: Path) -> Path:
    """Where a copy is written until it is whole, and where a stopped writer left it."""
    return folder.with_name(f".{folder.name}.part")


def open_prepared(spec: Spec, data: Path) -> tuple[Prepared, Prepared]:
    """The prepared copy that a specification asks for, each file with the hash that the manifest gives it.

    A file is hashed again when its size, time or inode is not what it was when it was hashed last. Raises ValueError
    where the copy is missing, cut, changed, or not of this dataset.
    """
    folder = prepared_folder(spec, data, spec.prepared)
    manifest = read_manifest(folder)
    if manifest is None:
        others = [mode for mode in MODES if read_manifest(prepared_folder(spec, data, mode)) is not None]
        hint = f" There is dataset.prepared={others[0]}." if others else ""
        raise ValueError(
            f"{spec.name}: {folder} is not there. Make it: python -m mal.data.prepare dataset={spec.name} data={data} "
            f"mode={spec.prepared}, or choose another loader=.{hint}"
        )
    wanted = {"shape": [spec.channels, spec.size, spec.size], "resize": spec.resize, "classes": spec.classes}
    if manifest.get("exif", "ignore") != exif_of(spec):
        raise ValueError(
            f"{spec.name}: {folder} was prepared with dataset.exif={manifest.get('exif', 'ignore')}: set that, or "
            f"prepare it again with replace=true, for dataset.exif={exif_of(spec)}."
        )
    if spec.resize is not None and pixels_of(manifest) != PIXELS:
        raise ValueError(
            f"{spec.name}: {folder} was prepared by an older version, which read some images of 16 or 32 bits and "
            "floats wrongly, as all white, say. The command that made it compares its images with the source, and "
            f"marks the copy or names those that differ: python -m mal.data.prepare dataset={spec.name} data={data} "
            f"mode={spec.prepared}."
        )
    for key, value in wanted.items():
        if manifest.get(key) != value:
            raise ValueError(
                f"{spec.name}: {folder} was prepared with {key} {manifest.get(key)}, the configuration says {value}: "
                "set that in `dataset`, or prepare it again with replace=true."
            )
    check_files(folder, manifest)
    return open_part(folder, manifest, "train"), open_part(folder, manifest, "test")


def exif_of(spec: Spec) -> str:
    """What is done with EXIF orientations: apply or ignore."""
    return "ignore" if spec.resize is None or spec.exif == "ignore" else "apply"


def pixels_of(manifest: dict[str, Any]) -> int:
    """Which rules made the pixels of a copy; the second ones came with word of EXIF orientations."""
    return int(manifest.get("pixels", 2 if "exif" in manifest else 1))


def open_part(folder: Path, manifest: dict[str, Any], part: str) -> Prepared:
    """One part, unchecked."""
    how = f"{manifest['mode']} {manifest['quality']} {manifest['share']}"
    return Prepared(folder, part, tuple(manifest["shape"]), manifest["mode"], how, manifest["parts"][part])


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, None where there is none; ValueError where it cannot be read or is of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): prepare it again with replace=true.") from None
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {manifest.get('format')}, not {FORMAT}: prepare it again with replace=true."
        )
    if damage := _damage(manifest):
        raise ValueError(f"{path} is damaged ({damage}): prepare it again with replace=true.")
    return manifest


def _damage(manifest: dict[str, Any]) -> str:
    """Which part of a manifest is not what it should be; empty where all is."""
    shape, parts = manifest.get("shape"), manifest.get("parts")
    if not isinstance(shape, list) or len(shape) != 3 or not all(_is_count(side) for side in shape):
        return "shape"
    if manifest.get("mode") not in MODES or not {"quality", "share", "classes", "resize"} <= manifest.keys():
        return "mode, quality, share, classes, resize"
    if not _is_count(manifest.get("pixels", 0)):
        return "pixels"
    if not isinstance(parts, dict) or set(parts) != set(PARTS):
        return "parts"
    return next((f"parts.{part}" for part in PARTS if not _is_part(parts[part])), "")


def _is_part(entry: Any) -> bool:
    if not isinstance(entry, dict) or not _is_count(entry.get("count")):
        return False
    names, files = entry.get("left_out"), entry.get("files")
    return (
        all(isinstance(entry.get(key), str) for key in ("content", "source"))
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(files, dict)
        and all(Path(name).name == name for name in files)
        and all(isinstance(file, dict) and _is_count(file.get("bytes")) for file in files.values())
        and all(isinstance(file.get("hash"), str) for file in files.values())
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def check_files(folder: Path, manifest: dict[str, Any], anew: bool = False) -> None:
    """Refuse files that are not those of the manifest, with a ValueError; anew: hash all, whenever they were before."""
    files = {name: entry for part in PARTS for name, entry in manifest["parts"][part]["files"].items()}
    checked = {} if anew else _read_checked(folder)
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: prepare it again with replace=true.")
        if (size := path.stat().st_size) != entry["bytes"]:
            what = "it was cut" if size < entry["bytes"] else "it is another file"
            raise ValueError(f"{path} has {size} bytes, the manifest says {entry['bytes']}: {what}; prepare it again.")
    stale = [name for name in files if checked.get(name) != [files[name]["hash"], *state(folder / name)]]
    for name in stale:
        if (found := hash_file(folder / name)) != files[name]["hash"]:
            raise ValueError(
                f"{folder / name} is not the file that was prepared: its hash is {found[:12]}, the manifest says "
                f"{files[name]['hash'][:12]}. It was damaged or replaced; prepare it again with replace=true."
            )
    if stale:
        remember_checked(folder, manifest)


def remember_checked(folder: Path, manifest: dict[str, Any]) -> None:
    """Note the state in which all files have the manifest's hashes; without a note they are hashed at every start."""
    files = {name: entry["hash"] for part in PARTS for name, entry in manifest["parts"][part]["files"].items()}
    found = {name: [hash_, *state(folder / name)] for name, hash_ in files.items()}
    reasons = []
    for path in _notes(folder):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        except OSError as error:  # a folder that others own, a read-only or full disk
            reasons.append(f"{path.parent} ({error.strerror})")
        else:
            return
    log.warning(
        "%s: that its files are whole cannot be noted in %s: every job hashes them.", folder, " nor ".join(reasons)
    )


def state(path: Path) -> list[int]:
    """What changes when a file does: size, time of change in ns, inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def hash_file(path: Path) -> str:
    """SHA-256 of the SHA-256 of the file's blocks, which all cores compute."""
    firsts = range(0, max(1, path.stat().st_size), BLOCK)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # hashing and reading release Python's lock
        blocks = threads.map(lambda first: _hash_block(path, first), firsts)
        return hashlib.sha256(b"".join(blocks)).hexdigest()


def content_hash(pixels: np.ndarray) -> str:
    """SHA-256 over the hashes of all images and labels, uint64 (N,): does not depend on how the file is laid out."""
    return hashlib.sha256(np.ascontiguousarray(pixels, "<u8").tobytes()).hexdigest()


def sample_hash(image: np.ndarray, label: np.ndarray | int) -> int:
    """64 bits of an image and its label."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8)
    digest.update(np.asarray(label).tobytes())
    return int.from_bytes(digest.digest(), "little")


def class_counts(labels: np.ndarray, classes: int) -> Sequence[int]:
    """How many images each class has, or pixels for maps."""
    if labels.ndim == 1:
        return np.bincount(labels, minlength=classes).tolist()
    counts = np.zeros(256, np.int64)
    for map_ in labels:
        counts += np.bincount(map_.ravel(), minlength=256)
    return counts[:classes].tolist()


def _hash_block(path: Path, first: int) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(first)
        left = BLOCK
        while left and (piece := file.read(min(PIECE, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.digest()


def _read_checked(folder: Path) -> dict[str, Any]:
    for path in _notes(folder):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(path.read_bytes())
            if isinstance(found, dict):
                return found
    return {}


def _notes(folder: Path) -> tuple[Path, Path]:
    """Where it is noted that a copy was found whole: beside it, or else in the user's own cache folder."""
    own = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return folder / CHECKED, user_cache() / own / CHECKED
