"""The classes of ImageNet's validation images: from the challenge's development kit, or from a user's file.

ILSVRC2012_devkit_t12.tar.gz, or the folder ILSVRC2012_devkit_t12 that it unpacks to
dataset.val_labels=FILE     a line for each image: its name and its WordNet id; or the ids alone, by the images' order
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mal.listing import some

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Truth:
    """WordNet ids of the validation images, in the order of their names or by name without its ending."""

    source: str
    in_order: list[str]
    by_stem: dict[str, str]

    @property
    def count(self) -> int:
        """How many images have one."""
        return len(self.in_order or self.by_stem)

    def ids(self, names: list[str]) -> list[str] | None:
        """Those of images, sorted by name; None where there are not as many. Raises ValueError where one has none."""
        if self.in_order:
            return self.in_order if len(names) == len(self.in_order) else None
        stems = [PurePosixPath(name).stem for name in names]
        if absent := [stem for stem in stems if stem not in self.by_stem]:
            raise ValueError(f"{self.source} has no class for {len(absent)} images: {some(absent)}.")
        return [self.by_stem[stem] for stem in stems]

    def labels(self, where: str, names: list[str], label_of: dict[str, int]) -> list[int]:
        """The labels of the images of a folder, by name in order."""
        ids = self.ids(names)
        if ids is None:
            raise ValueError(f"{where} has {len(names)} images, but {self.source} {self.count} lines.")
        if strangers := sorted(set(ids) - label_of.keys()):
            raise ValueError(f"{self.source} names classes that the training images do not have: {some(strangers)}.")
        return [label_of[id_] for id_ in ids]


def has_devkit(root: Path) -> bool:
    """Whether the development kit is in a folder, packed or unpacked."""
    return (root / DEVKIT).is_file() or (root / TRUTH).is_file()


def read_truth(root: Path, val_labels: str | None, classes: list[str]) -> Truth | None:
    """From a user's file where one is given, else from the development kit, None where there is neither.

    classes: the WordNet ids of the training images. Raises ValueError where a file is damaged or of other classes.
    """
    if val_labels:
        return _read_csv(Path(val_labels), classes)
    if not has_devkit(root):
        return None
    path, (meta, truth) = _devkit_files(root)
    ids = _ids(path, meta)
    numbers = [int(line) for line in truth.split()]
    if strangers := sorted(set(numbers) - set(ids)):
        raise ValueError(f"{path}: {TRUTH} names the classes {some(map(str, strangers))}, which {META} does not have.")
    if strange := sorted(set(classes) ^ set(ids.values())):
        raise ValueError(f"The training images and {path} name different classes: {some(strange)} in one of them.")
    return Truth(TRUTH, [ids[number] for number in numbers], {})


def _devkit_files(root: Path) -> tuple[Path, list[bytes]]:
    path = root / DEVKIT
    if not path.is_file():
        return root / PurePosixPath(META).parts[0], [(root / name).read_bytes() for name in (META, TRUTH)]
    files = []
    with reading(path), tarfile.open(path, "r:gz") as archive:
        for name in (META, TRUTH):
            try:
                member = archive.extractfile(name)
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"{path} has no {name} in it: it is another archive.")
            files.append(member.read())
    return path, files


def _ids(path: Path, meta: bytes) -> dict[int, str]:
    """WordNet ids of the leaves by ILSVRC2012_ID."""
    from scipy.io import loadmat

    with reading(path):
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        return {int(number): str(name) for number, name in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}


def _read_csv(path: Path, classes: list[str]) -> Truth:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"dataset.val_labels={path} cannot be read as text ({error}).") from None
    rows = [[word for word in re.split(r"[,;\s]+", line) if word] for line in lines]
    rows = [row for row in rows if row]
    known = set(classes)
    if rows and not known & set(rows[0]):
        rows = rows[1:]  # a line of titles
    column = 0 if rows and all(len(row) == 1 for row in rows) else 1
    if wrong := [" ".join(row)[:80] for row in rows if len(row) <= column or row[column] not in known]:
        raise ValueError(
            f"dataset.val_labels={path}: {len(wrong)} lines are not a name and one of the training images' WordNet ids "
            f"({some(wrong)})."
        )
    if not rows:
        raise ValueError(f"dataset.val_labels={path} has no image in it.")
    if column == 0:
        return Truth(str(path), [row[0] for row in rows], {})
    return Truth(str(path), [], {PurePosixPath(row[0]).stem: row[1] for row in rows})


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name an archive that is cut or damaged, by a ValueError."""
    from scipy.io.matlab import MatReadError

    try:
        yield
    except (tarfile.TarError, MatReadError, zlib.error, EOFError, LookupError, TypeError, OSError) as error:
        raise ValueError(f"{path} is cut or damaged ({error}); fetch it again.") from None
