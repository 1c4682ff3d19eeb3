"""What other processes read: files, written whole or not at all and known by their hash, and what a command prints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write what is to be at `path`, so that a reader, or a crash, finds the old file or the whole new one.

    durable: also wait until the data has reached the disk (not needed for a heartbeat).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Put `data` at `path`, by `atomic_file`."""
    with atomic_file(path, durable) as file:
        file.write(data)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """`write_atomic` of a value as indented JSON."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode(), durable)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command line and exit with its status; quietly where the reader of its output, e.g. `head`, has gone."""
    try:
        status = main([_at_home(word) for word in sys.argv[1:]])
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it exits, and that must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def storage_fails(error: OSError) -> str:
    """What to say to a person of an error of the storage: most of them pass, missing rights do not."""
    if isinstance(error, PermissionError):
        return f"{error.filename}: you have no right to read or write there. Choose another folder, or have it changed."
    return f"the storage fails ({error}). Run the same command again."


def _at_home(word: str) -> str:
    """KEY=~/FOLDER with the home folder: not every shell replaces a tilde there, and none within quotes."""
    key, _, value = word.partition("=")
    return f"{key}={Path(value).expanduser()}" if value.startswith("~/") else word
