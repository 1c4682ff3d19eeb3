"""A few hundred damaged files; `python -m tests.fuzz` tries ten thousand, at 3 to 4 s per thousand on one core."""

import json
import random

import pytest

from tests import fuzz


@pytest.mark.ffcv
def test_damaged_files_are_refused_in_words_or_read() -> None:
    assert fuzz.main(["files=600", "seed=1"]) == 0


def test_the_fuzzer_finds_a_reader_that_fails() -> None:
    found = fuzz.Fuzz()

    def fail() -> None:
        raise KeyError("no")

    def refuse() -> None:
        raise ValueError("<_io.BytesIO object>")

    for number, read in enumerate((fail, refuse, lambda: None)):
        found.try_one("kind", number, read)
    assert [line[:6] for line in found.wrong] == ["kind 0", "kind 1"]
    assert found.outcomes == {"kind: refused": 1, "kind: read": 1}


def test_damage_is_the_same_for_a_seed_and_nearly_always_changes_the_file() -> None:
    content = json.dumps({"a": list(range(200))}).encode()
    mutated = [fuzz.mutate(content, random.Random(seed)) for seed in range(50)]
    assert mutated == [fuzz.mutate(content, random.Random(seed)) for seed in range(50)]
    assert sum(each == content for each in mutated) < 10
    assert json.loads(fuzz.restructure(content, random.Random(0))) != json.loads(content)
