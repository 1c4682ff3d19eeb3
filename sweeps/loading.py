"""loader=auto: how the chains of a launch get their images, decided once for each and frozen with it, and why."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.config.people import FILES
from mal.config.schema import Chain, Dataset
from mal.config.sizes import MOST_IN_MEMORY, image_bytes, memory_limit
from mal.data.ffcv.prepared import MANIFEST, prepared_folder, read_manifest
from mal.run.folder import CONFIG
from sweeps.plan import ChainPlan

SPARE = 1.1  # a copy needs so much more than its pixels: pages that are not full, labels, hashes


@dataclass(frozen=True)
class Loading:
    """How images are read. copy: the folder of a prepared copy that is to be made first, None where none is needed."""

    loader: str
    reason: str
    copy: Path | None = None
    copy_bytes: int = 0


def settle(plans: list[ChainPlan], share: float, prepare: bool) -> Loading:
    """Give each chain whose loader is still open the one that fits; what is to be said, and made, for all of them.

    share: bytes of memory that one chain may fill with images. prepare: whether a copy may be made that loader=ffcv
    needs. The chains of a sweep have one data set.
    """
    found: list[Loading] = []
    fitting: Loading | None = None
    for plan in sorted(plans, key=lambda plan: not plan.to_run):
        if plan.open:
            fitting = fitting or _choose(plan.config, share, prepare)
            plan.config = dataclasses.replace(plan.config, loader=fitting.loader)
            found.append(fitting)
        else:
            found.append(_given(plan, prepare))
    return next((loading for loading in found if loading.copy), found[0])


def copy_missing(config: Chain) -> Path | None:
    """The folder of the prepared copy that a chain reads, where it is not there yet."""
    if config.loader != "ffcv":
        return None
    folder = prepared_folder(config.dataset, Path(config.data), config.dataset.prepared)
    return None if (folder / MANIFEST).is_file() else folder


def _given(plan: ChainPlan, prepare: bool) -> Loading:
    config, folder = plan.config, copy_missing(plan.config)
    how = "as it was launched" if (plan.folder / CONFIG).is_file() else "as asked for"
    if folder is None or not prepare or not plan.to_run:
        return Loading(config.loader, how)
    if problem := _no_copy(config, folder):
        return Loading(config.loader, f"{how}, though {problem}")
    return Loading(config.loader, f"{how}; its copy is made first", folder, copy_bytes(config.dataset))


def _choose(config: Chain, share: float, prepare: bool) -> Loading:
    dataset, images = config.dataset, image_bytes(config.dataset)
    memory = min(share, MOST_IN_MEMORY)
    limit = min(share, memory_limit(dataset))
    if images <= limit:
        return Loading("memory", f"{size(images)} of images fit into memory")
    each = " as every job would decode them again" if limit < memory else ""
    large = f"{size(images)} of images are more than the {size(limit)} for memory{each}"
    if dataset.oracle == FILES:
        return Loading("memory" if images <= memory else "torch", f"{large}; a prepared copy would hold labels")
    folder = prepared_folder(dataset, Path(config.data), dataset.prepared)
    if (manifest := read_manifest(folder)) is not None:
        problem = _other(dataset, manifest) or _no_ffcv()
        if not problem:
            return Loading("ffcv", f"{large}; {folder} is there")
    else:
        problem = _no_copy(config, folder) or ("" if prepare else "prepare=false")
        if not problem:
            return Loading("ffcv", f"{large}; {folder} is made first", folder, copy_bytes(dataset))
    return Loading("memory" if images <= memory else "torch", f"{large}; no prepared copy, as {problem}")


def _other(dataset: Dataset, manifest: dict[str, Any]) -> str:
    """What a copy differs in from the images that are asked for."""
    shape = [dataset.channels, dataset.size, dataset.size]
    wanted = {"shape": shape, "resize": dataset.resize, "classes": dataset.classes}
    found = [f"{key} {manifest.get(key)}, not {value}" for key, value in wanted.items() if manifest.get(key) != value]
    return f"the one there has {', '.join(found)}" if found else ""


def _no_ffcv() -> str:
    return "" if importlib.util.find_spec("ffcv") else "FFCV is not installed (pip install .[ffcv])"


def _no_copy(config: Chain, folder: Path) -> str:
    """Why no copy can be made, if so."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    if not os.access(parent, os.W_OK):
        return f"data={config.data} cannot be written to"
    free, needed = shutil.disk_usage(parent).free, copy_bytes(config.dataset)
    if needed > free:
        return f"it needs {size(needed)}, and {size(free)} are free in data={config.data}"
    return _no_ffcv()


def copy_bytes(dataset: Dataset) -> int:
    """What a copy takes on the disk, raw, at the most."""
    maps = dataset.size**2 * (dataset.train + dataset.test) * 2 if dataset.task == "segmentation" else 0
    return math.ceil(SPARE * image_bytes(dataset)) + maps


def size(count: float) -> str:
    """Bytes for people: 3.4 MB, 251 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}" if count < 99.5 else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
