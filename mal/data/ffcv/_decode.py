"""FFCV's decoder in compiled loops, kept in numba's on-disk cache: imported after FFCV's library is at hand.

FFCV's own loops hold the address of that library, so numba cannot keep them for the next process; by name it can.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding
from numba import types
from numba.core.typing import signature

from mal.data.ffcv.library import library
from mal.process.compiled import compiled

_NAME = "mal_ffcv_imdecode"
binding.add_symbol(_NAME, library())
_pixel, _flag = types.uint32, types.uint8
_imdecode: Any = types.ExternalFunction(
    _NAME,
    signature(types.int32, types.uintp, types.uint64, *[_pixel] * 2, types.uintp, *[_pixel] * 6, _flag, _flag),
)


@compiled(nogil=True)
def fill(indices_B, first, last, places_N, sizes_N, content, out_BP, height, width):  # type: ignore[no-untyped-def]
    """Rows first to last of a batch of images, from a file's content; the first row that cannot be decoded, else -1.

    sizes_N: bytes of a JPEG, 0 for raw pixels; empty where all are raw.
    """
    zero, one = np.uint32(0), np.uint32(1)
    for row in range(first, last):
        i = indices_B[row]
        place = places_N[i]
        if sizes_N.size == 0 or sizes_N[i] == 0:
            out_BP[row] = content[place : place + out_BP.shape[1]]
        else:
            jpeg = content[place : place + np.int64(sizes_N[i])]
            failed = _imdecode(
                jpeg.ctypes.data, np.uint64(jpeg.size), height, width, out_BP[row].ctypes.data, height, width,
                zero, zero, one, one, np.uint8(0), np.uint8(0),
            )  # fmt: skip
            if failed != 0:
                return row
    return -1
