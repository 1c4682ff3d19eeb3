"""A count of images shared among worker processes, whose failures are all collected and whose deaths are noticed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

CHUNK = 64  # neighbours that one worker takes: they lie together in the file
LOOK_SECONDS = 0.2


class Work(Protocol):
    """What each worker process does; made in the parent, and shared with the workers as it is by forking."""

    def open(self) -> None:
        """Called once in each worker."""
        ...

    def one(self, index: int) -> str | None:
        """Image `index`; what is wrong with it, if anything."""
        ...

    def close(self) -> Any:
        """Called at the end in each worker; what it returns is brought to the parent."""
        ...


class WorkersDied(Exception):
    """A worker process ended with an error or was killed."""


def spread(
    work: Work, count: int, workers: int, said: Callable[[int], None] = lambda done: None
) -> tuple[dict[int, str], list[Any]]:
    """Do `work` for 0..count-1 in `workers` processes: what is wrong, by index, and what each worker's close gave.

    said: called now and then with how many are done. Raises `WorkersDied`, and OSError where a worker met one (a full
    disk, say); no process is left behind.
    """
    context = multiprocessing.get_context("fork")  # nothing is copied, and FFCV's allocator is made for it
    taken, done = context.Value("q", 0), context.Value("q", 0)
    readers, processes = [], []
    for _ in range(max(1, min(workers, -(-count // CHUNK)))):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(work, count, taken, done, writer, os.getpid()), daemon=True)
        process.start()
        writer.close()
        readers.append(reader)
        processes.append(process)
    try:
        return _collect(readers, lambda: said(done.value))
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _collect(readers: list[Connection], look: Callable[[], None]) -> tuple[dict[int, str], list[Any]]:
    wrong: dict[int, str] = {}
    closed = []
    waiting = list(readers)
    while waiting:
        for reader in wait(waiting, LOOK_SECONDS):
            assert isinstance(reader, Connection)
            try:
                answer = reader.recv()
            except EOFError:
                raise WorkersDied("a worker process died; was it short of memory?") from None
            if isinstance(answer, OSError):
                raise answer
            wrong |= answer[0]
            closed.append(answer[1])
            waiting.remove(reader)
        look()
    return wrong, closed


def _serve(work: Work, count: int, taken: Any, done: Any, answer: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    wrong: dict[int, str] = {}
    try:
        work.open()
        while os.getppid() == parent:
            with taken.get_lock():
                first = taken.value
                taken.value += CHUNK
            if first >= count:
                answer.send((wrong, work.close()))
                return
            for index in range(first, min(count, first + CHUNK)):
                if (what := work.one(index)) is not None:
                    wrong[index] = what
            with done.get_lock():
                done.value += min(count, first + CHUNK) - first
    except OSError as error:
        answer.send(OSError(error.errno, error.strerror))
