"""Compiled loops where their cache cannot be kept: compiled anew, said, and never an error."""

import logging
from pathlib import Path

import pytest

from mal.process.compiled import compiled


def twice(x: int) -> int:
    return 2 * x


def test_a_loop_is_kept_where_there_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    assert compiled()(twice)(21) == 42
    assert list(tmp_path.rglob("*.nbi"))


def test_a_loop_without_a_place_for_its_cache_is_compiled_by_each_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    with caplog.at_level(logging.WARNING):
        assert [compiled()(twice)(21) for _ in range(2)] == [42, 42]
    assert caplog.text.count("set NUMBA_CACHE_DIR") == 1
