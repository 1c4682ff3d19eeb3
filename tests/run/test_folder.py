"""Commits: all or nothing, checked by hash, never changed; and the run folder's names."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.files import sha256, sha256_file, write_atomic, write_json
from mal.run import folder as run_folder
from mal.run.folder import DamagedRun

FILES: dict[str, Any] = {
    run_folder.LABELED: np.array([1, 4, 7]),
    run_folder.QUERY: np.array([9, 2]),
    run_folder.METRICS: {"value": 12.5, "round": 0},
    run_folder.MODEL: b"weights",
    run_folder.PROVENANCE: {"parent": None},
}


def committed(folder: Path) -> Path:
    run_folder.commit(folder, FILES)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------- committing


def test_a_committed_round_is_read_back(tmp_path: Path) -> None:
    folder = committed(tmp_path / "round-3")
    found = run_folder.read_round(folder)
    assert found.number == 3
    assert found.labeled.tolist() == [1, 4, 7]
    assert found.labeled.dtype == np.int64
    assert found.query is not None
    assert found.query.tolist() == [9, 2]  # in order of choice
    assert found.metrics == {"value": 12.5, "round": 0}
    assert found.digest == sha256_file(folder / run_folder.COMMITTED)
    assert names(folder) == {*FILES, run_folder.COMMITTED}


def test_files_are_in_the_documented_formats(tmp_path: Path) -> None:
    folder = committed(tmp_path / "round-0")
    with (folder / "query.npy").open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
    marker = json.loads((folder / "COMMITTED").read_text())
    assert marker["format"] == 1
    assert marker["files"] == {name: sha256((folder / name).read_bytes()) for name in FILES}


def test_the_last_round_has_no_query(tmp_path: Path) -> None:
    run_folder.commit(tmp_path / "round-0", {k: v for k, v in FILES.items() if k != run_folder.QUERY})
    assert run_folder.read_round(tmp_path / "round-0").query is None


def test_a_commit_drops_the_working_state_and_the_error(tmp_path: Path) -> None:
    folder = tmp_path / "round-0"
    write_json(folder / run_folder.CHECKPOINT / run_folder.PROGRESS, {})
    write_json(folder / run_folder.FAILED, {"error": "x"})
    (folder / ".metrics.json.123.tmp").write_bytes(b"of a writer that was killed")
    committed(folder)
    assert names(folder) == {*FILES, run_folder.COMMITTED}


def test_a_committed_round_cannot_be_committed_again(tmp_path: Path) -> None:
    folder = committed(tmp_path / "round-0")
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    with pytest.raises(FileExistsError, match="round-0 is committed already"):
        run_folder.commit(folder, FILES | {run_folder.METRICS: {"value": 99.0}})
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


@pytest.mark.parametrize("broken", [*FILES, run_folder.COMMITTED])
def test_a_commit_that_breaks_off_at_any_file_did_not_happen_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder, write = tmp_path / "round-0", write_atomic

    def breaks_off(path: Path, data: bytes, durable: bool = True) -> None:
        if path.name == broken:
            raise OSError(28, "No space left on device")
        write(path, data, durable)

    monkeypatch.setattr("mal.files.write_atomic", breaks_off)
    monkeypatch.setattr(run_folder, "write_atomic", breaks_off)
    with pytest.raises(OSError, match="No space left"):
        committed(folder)
    assert not run_folder.is_committed(folder)
    assert run_folder.committed_rounds(tmp_path) == 0
    with pytest.raises(DamagedRun, match="COMMITTED"):
        run_folder.read_round(folder)
    monkeypatch.undo()
    assert run_folder.read_round(committed(folder)).labeled.tolist() == [1, 4, 7]


KILLED_AT_EACH = """
import os, signal, sys
from pathlib import Path
from mal.files import write_json
from mal.run import folder as run_folder
from tests.run.test_folder import FILES

def commit(folder, operations):
    def at(event, arguments):
        nonlocal operations
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree") and folder in str(arguments[0]):
            operations -= 1
            if operations < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    write_json(Path(folder, "checkpoint", "progress.json"), {})
    sys.addaudithook(at)
    run_folder.commit(Path(folder), FILES)
    os._exit(0)

for operations in range(100):
    child = os.fork() or commit(f"{sys.argv[1]}/{operations}/round-0", operations)
    if os.waitpid(child, 0)[1] == 0:
        print(operations)
        break
"""


def test_a_commit_killed_at_any_file_operation_is_whole_or_did_not_happen(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT_EACH, str(tmp_path)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    operations = int(ended.stdout)
    happened = []
    for number in range(operations):
        folder = tmp_path / str(number) / "round-0"
        happened.append(run_folder.is_committed(folder))
        if not happened[-1]:
            committed(folder)
        found = run_folder.read_round(folder)
        assert found.metrics == FILES[run_folder.METRICS]
        assert found.query is not None
    assert happened == sorted(happened)  # once it has happened, it stays so
    assert operations > 15
    assert 0 < sum(happened) < operations


def test_a_write_leaves_the_old_file_or_the_new_one_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fails(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"file"}
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_data_are_on_the_disk_before_their_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        done.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_atomic(tmp_path / "file", b"x")
    (temporary, *rest) = done
    assert temporary.startswith(".file.")
    assert rest == ["renamed", tmp_path.name]


def test_indices_are_always_int64(tmp_path: Path) -> None:
    for dtype in (np.int32, np.uint16, np.int64):
        run_folder.write_indices(tmp_path / "i.npy", np.arange(8, dtype=dtype)[::2])
        assert np.load(tmp_path / "i.npy").dtype == np.int64
        assert run_folder.read_indices(tmp_path / "i.npy").tolist() == [0, 2, 4, 6]


# ------------------------------------------------------------------------- tampering


def rewrite(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: np.save(path, change(np.load(path)))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "emptied": lambda path: path.write_bytes(b""),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "removed": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name", [run_folder.LABELED, run_folder.QUERY, run_folder.METRICS, run_folder.MODEL, run_folder.PROVENANCE]
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = committed(tmp_path / "round-0")
    DAMAGE[damage](folder / name)
    with pytest.raises(DamagedRun, match=f"round-0/{name}"):
        run_folder.read_round(folder)


NO_COMMIT = ["", "{", "null", "[]", "{}", "\udcff", '{"format": 1, "files": {}}', '{"files": {"labeled.npy": "0"}}']
WRONG_COMMIT = ['{"format": 2, "files": {"labeled.npy": "0"}}', '{"format": 1, "files": ["labeled.npy"]}']


@pytest.mark.parametrize("content", [*NO_COMMIT, *WRONG_COMMIT])
def test_a_damaged_commit_marker_is_named(tmp_path: Path, content: str) -> None:
    folder = committed(tmp_path / "round-0")
    (folder / run_folder.COMMITTED).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DamagedRun, match="round-0/COMMITTED"):
        run_folder.read_round(folder)


def archive(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(2))
    path.with_suffix(".npz").rename(path)


NO_INDICES: dict[str, Callable[[Path], Any]] = {
    "header alone": lambda path: path.write_bytes(b"\x93NUMPY"),
    "text": lambda path: path.write_bytes(b"not an array"),
    "two dimensions": lambda path: np.save(path, np.zeros((2, 2), dtype=np.int64)),
    "floats": lambda path: np.save(path, np.zeros(2)),
    "int32": lambda path: np.save(path, np.zeros(2, dtype=np.int32)),
    "an archive": archive,
    "a pickle": lambda path: np.save(path, np.array([print], dtype=object), allow_pickle=True),
}


@pytest.mark.parametrize("kind", NO_INDICES)
def test_indices_that_are_no_list_of_int64_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "labeled.npy"
    NO_INDICES[kind](path)
    with pytest.raises(DamagedRun, match=r"labeled\.npy"):
        run_folder.read_indices(path)


# ------------------------------------------------------------------------- names


def test_folders_are_listed_by_method_and_then_by_number(tmp_path: Path) -> None:
    for method in ("random", "mal"):
        for seed in (10, 2, 0):
            write_atomic(run_folder.chain_folder(tmp_path, "s", method, seed) / run_folder.CONFIG, b"")
    write_atomic(tmp_path / "s" / "mal" / "seed-x" / run_folder.CONFIG, b"")
    (tmp_path / "s" / "mal" / "seed-5").mkdir()
    found = [f"{f.parent.name}/{f.name}" for f in run_folder.chain_folders(tmp_path, "s")]
    assert found == [f"{m}/seed-{s}" for m in ("mal", "random") for s in (0, 2, 10)]
    assert run_folder.sweep_names(tmp_path) == ["s"]


def test_rounds_are_counted_from_zero_without_a_gap(tmp_path: Path) -> None:
    assert run_folder.committed_rounds(tmp_path / "nothing") == 0
    for number in range(11):
        committed(run_folder.round_folder(tmp_path, number))
    (tmp_path / "round-11").mkdir()
    (tmp_path / "round-x").mkdir()
    assert run_folder.committed_rounds(tmp_path) == 11
    assert [f.name for f in run_folder.round_folders(tmp_path)] == [f"round-{n}" for n in range(12)]
    (tmp_path / "round-4" / run_folder.COMMITTED).unlink()
    with pytest.raises(DamagedRun, match="round-4/COMMITTED is missing, although a round after it was committed"):
        run_folder.committed_rounds(tmp_path)
