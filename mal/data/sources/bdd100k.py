"""BDD100K's 10,000 images with semantic maps.

    DATA/bdd100k/images/10k/{train,val}/NAME.jpg  labels/sem_seg/masks/{train,val}/NAME.png

The maps hold Cityscapes' 19 training classes, 255 where a pixel is not counted.
"""

from __future__ import annotations

from pathlib import Path

from mal.config.schema import Dataset as Spec
from mal.data.image_set import Files
from mal.data.sources.mask_folder import pairs
from mal.data.sources.registry import SOURCES, files_of

IMAGES, MAPS = "images/10k", "labels/sem_seg/masks"


@SOURCES.register("bdd100k")
def read_bdd100k(spec: Spec, data: Path) -> tuple[Files, Files]:
    """Images with their maps, by name; the paper's test images are the 1,000 of `val`, the only others with maps."""
    root = files_of(spec, data, "bdd100k")
    return _pairs(spec, root, "train"), _pairs(spec, root, "val")


def _pairs(spec: Spec, root: Path, part: str) -> Files:
    return pairs(spec, root / IMAGES / part, root / MAPS / part, "data or dataset.root")
