"""FFCV itself: whether it is installed, its modules, and the address of its JPEG decoder."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from functools import cache
from typing import Any


def require_ffcv() -> None:
    """Refuse to go on without FFCV, with a ValueError that says how to get it."""
    if importlib.util.find_spec("ffcv") is None:
        raise ValueError(
            "FFCV is not installed. `conda env create -f environment.yml` has it; with pip: `pip install ffcv==1.0.2`, "
            "which needs a C++ compiler, pkg-config, OpenCV and libjpeg-turbo (Debian: libopencv-dev "
            "libturbojpeg0-dev). Or do without: loader=torch reads the files as they are."
        )


@cache
def library() -> int:
    """The address of FFCV's JPEG decoder."""
    address = ctypes.cast(import_ffcv("libffcv").ctypes_imdecode, ctypes.c_void_p).value
    assert address is not None
    return address


def import_ffcv(module: str) -> Any:
    """A module of FFCV; ValueError where it is not installed."""
    require_ffcv()
    import numba
    import numba.typed
    import torch

    config: Any = numba.config
    threads, compiled = (torch.get_num_threads(), numba.get_num_threads()), config.DISABLE_JIT
    config.DISABLE_JIT = True  # importing FFCV compiles a dictionary for seconds, which nothing here uses
    try:
        return importlib.import_module(f"ffcv.{module}")
    finally:
        config.DISABLE_JIT = compiled
        torch.set_num_threads(threads[0])  # FFCV sets both for the whole process
        numba.set_num_threads(threads[1])
