"""A user's own images as WebDataset's shards: tar archives of KEY.jpg and KEY.cls, meant for `prepare`.

dataset.train_shards=DIR/train-*.tar dataset.test_shards=DIR/val-*.tar, or DIR/train-{0000..0099}.tar
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mal.config.schema import Dataset as Spec
from mal.config.shards import count_classes, find_shards, list_shards
from mal.data.cache import Arrays as Computed
from mal.data.cache import computed
from mal.data.image_set import Files, Store
from mal.data.sources.folder import check_count
from mal.data.sources.registry import SOURCES, image_files


@SOURCES.register("webdataset")
def read_webdataset(spec: Spec, data: Path) -> tuple[Files, Files]:
    """The images of the shards, shard by shard, sorted by key in each; they are read where they lie."""
    assert spec.train_shards is not None
    assert spec.test_shards is not None
    train = _files(spec, data, "train", find_shards(spec.train_shards, "dataset.train_shards"))
    test = _files(spec, data, "test", find_shards(spec.test_shards, "dataset.test_shards"))
    check_count(spec, train.store.root, count_classes(np.asarray(train.labels).tolist(), spec.train_shards))
    return train, test


def _files(spec: Spec, data: Path, part: str, shards: list[Path]) -> Files:
    states = [(path, path.stat()) for path in shards]
    identity = repr([(str(path), state.st_size, state.st_mtime_ns) for path, state in states])

    def listed() -> Computed:
        samples = list_shards(shards)
        names = np.array([name.encode(errors="surrogateescape") for name in samples.names], np.bytes_)
        numbers = {key: np.array(getattr(samples, key), np.int64) for key in ("labels", "sizes", "offsets", "times")}
        return {"names": names, **numbers}

    found = computed(data, f"{spec.name}-{part}-shards", identity, listed)
    store = Store(shards[0].parent, found["names"], found["sizes"], found["offsets"], found["times"])
    return image_files(spec, store, found["labels"])
