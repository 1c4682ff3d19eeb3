"""BDD100K's 10,000 images with semantic maps.

    DATA/bdd100k/images/10k/{train,val}/NAME.jpg  labels/sem_seg/masks/{train,val}/NAME.png

The maps hold Cityscapes' 19 training classes, 255 where a pixel is not counted.
"""

from __future__ import annotations

from pathlib import Path

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Files, MapFiles, Store
from mal.data.sources.registry import SOURCES, files_of
from mal.listing import list_images, some

IMAGES, MAPS = "images/10k", "labels/sem_seg/masks"


@SOURCES.register("bdd100k")
def read_bdd100k(spec: Spec, data: Path) -> tuple[Files, Files]:
    """Images with their maps, by name; the paper's test images are the 1,000 of `val`, the only others with maps."""
    root = files_of(spec, data, "bdd100k")
    return _pairs(spec, root, "train"), _pairs(spec, root, "val")


def _pairs(spec: Spec, root: Path, part: str) -> Files:
    folders = root / IMAGES / part, root / MAPS / part
    images, maps = (list_images(folder, "data or dataset.root") for folder in folders)
    by_stem = {Path(name).stem: name for name in images}, {Path(name).stem: name for name in maps}
    if alone := sorted(by_stem[0].keys() ^ by_stem[1].keys()):
        raise ValueError(f"{folders[0]} and {folders[1]} do not pair: {some(alone)} in one of them only.")
    if not by_stem[0]:
        raise ValueError(f"{folders[0]} has no images in it.")
    stems = sorted(by_stem[0])
    stores = [
        Store.of(folder, {names[stem]: sizes[names[stem]] for stem in stems})
        for folder, names, sizes in zip(folders, by_stem, (images, maps), strict=True)
    ]
    assert spec.resize is not None
    return Files(stores[0], MapFiles(stores[1], spec.size, spec.classes), spec.size, spec.resize)
