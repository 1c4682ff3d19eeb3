"""Pickles of arrays: those of every protocol are read, nothing in them runs, and no length in them is believed."""

import pickle
import random
import resource

import numpy as np
import pytest

from mal.data.unpickle import unpickle
from tests.made_up_data import original_cifar, pickled

CONTENT = {
    "data": np.arange(24, dtype=np.uint8).reshape(2, 12),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "mean": np.linspace(0, 1, 5),
    "scalar": np.int64(7),
    "labels": [1, 2, 3],
    "names": ["a", "b"],
    "pair": (1, None, True),
    "bytes": b"\0\xff",
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_are_read(protocol: int) -> None:
    found = unpickle(pickle.dumps(CONTENT, protocol=protocol))
    assert found.keys() == CONTENT.keys()
    for key, value in CONTENT.items():
        assert np.array_equal(found[key], value)
        assert np.asarray(found[key]).dtype == np.asarray(value).dtype


def test_python_2s_strings_are_bytes() -> None:
    original = original_cifar(3, seed=0)
    found = unpickle(pickled(original))
    assert found[b"fine_labels"] == original[b"fine_labels"]
    assert np.array_equal(found[b"data"], original[b"data"])


@pytest.mark.parametrize(
    "value", [np.array([{}], dtype=object), np.zeros(2, dtype="i4,f8"), np.array(["text"]), {1, 2}, print, range(3)]
)
def test_what_is_no_plain_data_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpickle(pickle.dumps(value))


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[object] = [[]]
    endless[0] = endless
    with pytest.raises(ValueError, match="recursion"):
        unpickle(pickle.dumps(endless))


def test_flipped_bits_raise_valueerror_alone_and_take_no_memory() -> None:
    whole, draw = pickled(original_cifar(3, seed=0)), random.Random(0)
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.choice(
                [draw.randrange(len(content)), draw.randrange(300), len(content) - 1 - draw.randrange(200)]
            )
            content[at] ^= 1 << draw.randrange(8)
        try:
            unpickle(bytes(content))
        except ValueError:
            refused += 1
    assert refused > 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024
