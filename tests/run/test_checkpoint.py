"""Checkpoints beside the work: a copy of the state as it was, one file at a time, errors told to the one who waits."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mal.files import sha256
from mal.run import checkpoint
from mal.run.checkpoint import Writer
from tests.chains import CPU


def state(value: float = 1.0) -> dict[str, Any]:
    tensor = torch.full((3, 2, 4, 4), value).to(memory_format=torch.channels_last)
    return {"identity": "x", "step": 3, "modules": {"m": {"w": tensor}}, "history": {"losses": [value]}, "none": None}


class Gate:
    """A stand-in for `checkpoint.save` that waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
        self.open, self.saved, self.error, self._save = threading.Event(), [], error, checkpoint.save
        monkeypatch.setattr(checkpoint, "save", self.save)

    def save(self, path: Path, content: dict[str, Any]) -> None:
        assert self.open.wait(60)
        if self.error:
            raise self.error
        self._save(path, content)
        self.saved.append(path.name)


def test_what_is_written_is_the_state_when_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer, given, path = Gate(monkeypatch), Writer(), state(), tmp_path / "a.ckpt"
    writer.begin(path, given)
    given["modules"]["m"]["w"].fill_(7)
    given["history"]["losses"].append(2.0)
    assert not path.exists()
    gate.open.set()
    writer.wait()
    found = checkpoint.load(path, "x", CPU.torch)
    assert found is not None
    assert found["modules"]["m"]["w"].unique().tolist() == [1.0]
    assert found["modules"]["m"]["w"].is_contiguous(memory_format=torch.channels_last)
    assert (found["step"], found["history"], found["none"]) == (3, {"losses": [1.0]}, None)


def test_one_file_at_a_time_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer = Gate(monkeypatch), Writer()
    writer.begin(tmp_path / "a.ckpt", state())
    second = threading.Thread(target=writer.begin, args=(tmp_path / "b.ckpt", state()))
    second.start()
    second.join(0.05)
    assert second.is_alive()  # it waits for the first
    gate.open.set()
    second.join()
    writer.wait()
    assert gate.saved == ["a.ckpt", "b.ckpt"]


@pytest.mark.parametrize("ask", ["wait", "begin", "leave"])
def test_an_error_of_the_thread_is_raised_once_by_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    gate, writer = Gate(monkeypatch, OSError(28, "No space left on device")), Writer()
    gate.open.set()
    writer.begin(tmp_path / "a.ckpt", state())
    asked = {
        "wait": writer.wait,
        "begin": lambda: writer.begin(tmp_path / "b.ckpt", state()),
        "leave": lambda: writer.__exit__(None, None, None),
    }
    with pytest.raises(OSError, match="No space left"):
        asked[ask]()
    writer.wait()
    assert list(tmp_path.iterdir()) == []


def test_leaving_with_an_error_waits_for_the_file_and_raises_that_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    threading.Timer(0.05, gate.open.set).start()

    def fails() -> None:
        with Writer() as writer:
            writer.begin(tmp_path / "a.ckpt", state())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gate.saved == ["a.ckpt"]


def test_the_file_has_the_hash_of_what_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, state())
    content = path.read_bytes()
    head = len(checkpoint.MAGIC)
    digest, payload = content[head : head + 64], content[head + 65 :]
    assert content[:head] == checkpoint.MAGIC
    assert digest.decode() == sha256(payload)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt"]


def test_a_failed_save_leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, state(5.0))
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, {"identity": "x", "bad": lambda: 0})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
