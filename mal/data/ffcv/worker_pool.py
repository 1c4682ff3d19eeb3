"""A count of images shared among worker processes, whose failures are all collected and whose deaths are noticed."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from mal.data import waiting
from mal.process.interrupt import shielded

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
    """A worker process ended with an error, was killed or is stuck."""


def spread(
    work: Work,
    count: int,
    workers: int,
    said: Callable[[int], None] = lambda done: None,
    first: int = 0,
    halt: Callable[[], bool] = lambda: False,
) -> tuple[dict[int, str], list[Any]]:
    """Do `work` for first..count-1 in `workers` processes: what is wrong, by index, and what each worker's close gave.

    said: called now and then, and at the end, with how many are done from 0 on, none left out. halt: asked now and
    then; once it is true, the workers end what they have begun, and the rest is left. Raises `WorkersDied`, and OSError
    where a worker met one (a full disk, say); no process is left behind.
    """
    context = multiprocessing.get_context("fork")  # nothing is copied, and FFCV's allocator is made for it
    taken, done, halted = context.Value("q", first), context.Value("q", first), context.Value("b", False)
    readers, processes = [], []
    for _ in range(max(1, min(workers, -(-(count - first) // CHUNK)))):
        reader, writer = context.Pipe(duplex=False)
        shared = (taken, done, halted)
        process = context.Process(target=_serve, args=(work, count, *shared, writer, os.getpid()), daemon=True)
        with shielded():  # Slurm signals every process of a step; the parent decides
            process.start()
        writer.close()
        readers.append(reader)
        processes.append(process)

    before, wait = first, _wait()

    def look() -> None:
        nonlocal before, wait
        said(done.value)
        if done.value != before:
            before, wait = done.value, _wait()
        try:
            wait.on()
        except TimeoutError as error:
            raise WorkersDied(str(error)) from None
        halted.value = halted.value or halt()

    try:
        return _collect(readers, look)
    finally:
        for process in processes:
            process.kill()
            process.join(waiting.LOOK_SECONDS)  # one that a stuck storage holds ends with its read


def _wait() -> waiting.Wait:
    return waiting.Wait("no image has been done", "the storage is stuck.")


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


def _serve(work: Work, count: int, taken: Any, done: Any, halted: Any, answer: Connection, parent: int) -> None:
    wrong: dict[int, str] = {}
    try:
        work.open()
        while os.getppid() == parent:
            with taken.get_lock():
                first = taken.value
                over = halted.value or first >= count
                taken.value += 0 if over else CHUNK
            if over:
                answer.send((wrong, work.close()))
                return
            for index in range(first, min(count, first + CHUNK)):
                if (what := work.one(index)) is not None:
                    wrong[index] = what
            with done.get_lock():
                done.value += min(count, first + CHUNK) - first
    except OSError as error:
        answer.send(OSError(error.errno, error.strerror))
