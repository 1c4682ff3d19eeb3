"""What is kept of long passes: in the data folder, else in the user's own, else nowhere; nothing fails for its lack."""

import errno
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.data import cache
from mal.data.cache import Arrays, computed, recall
from mal.data.ffcv import prepared


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def counting() -> tuple[list[int], Callable[[], Arrays]]:
    calls: list[int] = []
    return calls, lambda: (calls.append(1), {"found": np.arange(3)})[1]


def test_what_is_kept_is_computed_once_for_each_identity(tmp_path: Path) -> None:
    calls, compute = counting()
    for identity in ("a", "a", "b", "b"):
        assert computed(tmp_path, "name", identity, compute)["found"].tolist() == [0, 1, 2]
    assert len(calls) == 2
    assert (tmp_path / "computed" / "name.npz").is_file()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_data_folder_that_takes_nothing_costs_one_computation(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_writing(monkeypatch, tmp_path / "data", number)
    calls, compute = counting()
    for _ in range(3):
        computed(tmp_path / "data", "name", "a", compute)
        computed(tmp_path / "other", "name", "b", compute)
    assert len(calls) == 2
    assert len(list(home.rglob("name.npz"))) == 1
    assert caplog.text == ""


def refuse_writing(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    write, make = cache.write_atomic, Path.mkdir

    def writing(path: Path, content: bytes) -> None:
        if path.is_relative_to(folder):
            raise OSError(number, "refused", str(path))
        write(path, content)

    def making(self: Path, *args: Any, **options: Any) -> None:
        if self.is_relative_to(folder) and number != errno.ENOSPC:
            raise OSError(number, "refused", str(self))
        make(self, *args, **options)

    monkeypatch.setattr(cache, "write_atomic", writing)
    monkeypatch.setattr(Path, "mkdir", making)


def test_where_nothing_can_be_kept_it_is_said_and_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_writing(monkeypatch, tmp_path, errno.EROFS)
    calls, compute = counting()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            computed(tmp_path / "data", "name", "a", compute)
    assert len(calls) == 2
    assert caplog.text.count("it is computed again by every job") == 2


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def acquire(self: object, timeout: float = 0) -> None:
        raise error

    monkeypatch.setattr(cache.FileLock, "acquire", acquire)
    calls, compute = counting()
    for _ in range(2):
        computed(tmp_path, "name", "a", compute)
    assert len(calls) == 1


def test_waiting_for_another_answers_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    monkeypatch.setattr(cache, "LOOK_SECONDS", 0.05)
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()

    def hold() -> None:
        with cache._alone(tmp_path, "name", lambda: None):
            ready.set()
            end.wait(60)

    process = context.Process(target=hold)
    process.start()
    ready.wait(60)
    calls, compute = counting()
    with pytest.raises(Stop):
        computed(tmp_path, "name", "a", compute, stop)
    assert calls == []
    end.set()
    process.join()
    assert computed(tmp_path, "name", "a", compute)["found"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", [b"", b"PK\3\4", b"\0" * 300])
def test_damaged_results_are_not_believed(tmp_path: Path, damage: bytes) -> None:
    calls, compute = counting()
    computed(tmp_path, "name", "a", compute)
    (tmp_path / "computed" / "name.npz").write_bytes(damage)
    assert recall(tmp_path, "name", "a") is None
    computed(tmp_path, "name", "a", compute)
    assert len(calls) == 2


def test_that_a_copy_is_whole_is_noted_elsewhere_where_it_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "train.beton").write_bytes(b"content")
    entry = {"bytes": 7, "hash": prepared.hash_file(copy / "train.beton")}
    files: dict[str, Any] = {"train": {"files": {"train.beton": entry}}, "test": {"files": {}}}
    hashed: list[str] = []
    hash_file = prepared.hash_file
    monkeypatch.setattr(prepared, "hash_file", lambda path: (hashed.append(path.name), hash_file(path))[1])
    write = prepared.write_json

    def writing(path: Path, content: Any) -> None:
        if path.is_relative_to(copy):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        write(path, content)

    monkeypatch.setattr(prepared, "write_json", writing)
    for _ in range(3):
        prepared.check_files(copy, {"parts": files})
    assert hashed == ["train.beton"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with caplog.at_level(logging.WARNING):
        prepared.check_files(copy, {"parts": files})
    assert "every job hashes them" in caplog.text
