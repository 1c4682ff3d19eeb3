"""A user's own images with masks of classes, as Cityscapes lays them out.

    ROOT/images/{train,val}/**/NAME.jpg  ROOT/masks/{train,val}/**/NAME.png  ROOT/classes.txt (one name per line)

A mask's pixels are class numbers from 0, or 255 where a pixel is not counted. `test` may stand for `val`. What an
image's name or a mask's ends in besides goes into dataset.image_suffix and dataset.mask_suffix. With oracle=files
nothing is read from masks/train: people give the masks.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mal.config.lists import test_part
from mal.config.people import FILES
from mal.config.schema import Dataset as Spec
from mal.data.image_set import Files, MapFiles, Store
from mal.data.sources.folder import unlabelled_train
from mal.data.sources.registry import SOURCES, files_of, image_files
from mal.listing import Images, list_images, say_left_out, some


@SOURCES.register("mask_folder")
def read_mask_folder(spec: Spec, data: Path) -> tuple[Files, Files]:
    """Images with their masks, by path."""
    root = files_of(spec, data, "mask_folder")
    train, test = "train", test_part(root / "images")
    tested = pairs(spec, root / "images" / test, root / "masks" / test, "dataset.root")
    if spec.oracle == FILES:
        return unlabelled_train(spec, root / "images" / train), tested
    return pairs(spec, root / "images" / train, root / "masks" / train, "dataset.root"), tested


def pairs(spec: Spec, images: Path, masks: Path, key: str) -> Files:
    """Images and masks of the same paths but for their endings; key: what to set where a folder is not there.

    Raises ValueError where two files have one name, or where an image or mask is alone, unless dataset.skip_unpaired
    leaves it out.
    """
    folders, suffixes = (images, masks), (spec.image_suffix or "", spec.mask_suffix or "")
    listed = [list_images(folder, key) for folder in folders]
    by_stem = [_by_stem(*each) for each in zip(folders, listed, suffixes, strict=True)]
    left_out = Counter({key: count for each in listed for key, count in each.left_out.items()})
    if alone := sorted(by_stem[0].keys() ^ by_stem[1].keys()):
        if not spec.skip_unpaired:
            only = [some(stem for stem in alone if stem in stems) for stems in by_stem]
            raise ValueError(
                f"{images} and {masks} do not pair: {some(alone)} in one of them only (images without a mask: "
                f"{only[0] or 'none'}; masks without an image: {only[1] or 'none'}). dataset.skip_unpaired=true leaves "
                "them out."
            )
        left_out["images without a mask, or masks without an image"] = len(alone)
    stems = sorted(by_stem[0].keys() & by_stem[1].keys())
    if not stems:
        raise ValueError(f"{images} has no images in it{' that have a mask' if listed[0] else ''}.")
    stores = [
        Store.of(folder, Images.of(states[stem] for stem in stems))
        for folder, states in zip(folders, by_stem, strict=True)
    ]
    exif = spec.exif != "ignore"
    maps = MapFiles(stores[1], spec.size, spec.classes, exif, spec.max_pixels)
    return image_files(spec, stores[0], maps, say_left_out(left_out))


def _by_stem(folder: Path, images: Images, suffix: str) -> dict[str, tuple[str, int, int]]:
    """Name, size and time of each file by its path without its ending."""
    found: dict[str, tuple[str, int, int]] = {}
    twice = []
    for state in images.states():
        stem = state[0].rpartition(".")[0].removesuffix(suffix)
        if stem in found:
            twice.append(f"{found[stem][0]} and {state[0]}")
        found[stem] = state
    if twice:
        raise ValueError(f"{folder}: {some(twice)} have one name but for their endings: which is meant? Remove one.")
    return found
