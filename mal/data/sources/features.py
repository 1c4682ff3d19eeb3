"""Features of a frozen encoder, as `python -m mal.features` or anybody else saved them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mal.config.feature_sets import PARTS, open_part, values_file
from mal.config.schema import Dataset as Spec
from mal.data.image_set import Arrays
from mal.data.sources.registry import SOURCES

ROWS = 2**16  # looked at together


@SOURCES.register("features")
def read_features(spec: Spec, data: Path) -> tuple[Arrays, Arrays]:
    """The set in dataset.features, mapped into memory: each vector is an image of d channels and one pixel."""
    assert spec.features is not None
    splits = []
    for part in PARTS:
        values, labels = open_part(Path(spec.features), part)
        for first in range(0, len(values), ROWS):
            if not np.isfinite(values[first : first + ROWS]).all():
                raise ValueError(
                    f"{values_file(Path(spec.features), part)} has numbers that are not finite, from row {first} on."
                )
        splits.append(Arrays(values[:, :, None, None], labels))
    return splits[0], splits[1]
