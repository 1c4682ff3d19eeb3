"""A chain of rounds, run up to a target: what a worker process and a Slurm job do.

    python -m mal.chain RUNS/NAME/METHOD/seed-S [--until N]
    srun -n4 python -m mal.chain ...      # four processes share the work (mal/process/distributed.py)

The target is "the first N rounds are committed" (default: all of the configuration's). Exit status: 0 reached, also at
once; 1 an error, recorded in the round's FAILED unless the storage failed; 75 interrupted, run it again; 76 another
process is working on the chain; 77 out of memory, of the host or of a GPU: not recorded, as it may depend on the place.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mal.config.frozen import load_chain
from mal.config.schema import Chain
from mal.files import write_json
from mal.process.distributed import join, leave, tasks
from mal.process.interrupt import EXIT_INTERRUPTED, Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.run.heartbeat import now, read_progress

EXIT_DONE, EXIT_ERROR, EXIT_LOCKED, EXIT_OUT_OF_MEMORY = 0, 1, 76, 77
LOOK_SECONDS = 2.0
# torch on a GPU, cuBLAS, torch on the host, C++, the kernel; each also as another process tells of it
_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|ALLOC_FAILED|can.t allocate memory|bad_alloc|Cannot allocate memory|MemoryError"
)

log = logging.getLogger("mal.chain")


class ChainLocked(Exception):
    """Another process works on the chain."""


class RoundFailed(Exception):
    """A round of the chain raised an error before, and nobody has asked to try again."""


class OutOfMemory(Exception):
    """Memory ran out in a round; what was saved before is on disk."""


@contextlib.contextmanager
def locked(chain: Path, patience: float = LOOK_SECONDS) -> Iterator[None]:
    """Hold the chain's lock on shared storage, or raise `ChainLocked` naming who holds it.

    patience: seconds to wait for it, by default as long as somebody's look at it (`is_locked`) may hold it.
    """
    lock = FileLock(chain / run_folder.LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise ChainLocked(f"{chain} is being worked on by {_holder(chain)}.") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(chain: Path) -> bool:
    """Whether a process works on the chain now."""
    try:
        with locked(chain, patience=0):
            return False
    except ChainLocked:
        return True


def read_failure(chain: Path) -> dict[str, Any] | None:
    """The recorded error of the chain's next round: keys error, traceback, time; None where there is none."""
    path = run_folder.round_folder(chain, run_folder.committed_rounds(chain)) / run_folder.FAILED
    return run_folder.read_json(path) if path.is_file() else None


def clear_failure(chain: Path) -> None:
    """Forget the recorded error, so that the chain runs again."""
    (run_folder.round_folder(chain, run_folder.committed_rounds(chain)) / run_folder.FAILED).unlink(missing_ok=True)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of the host or of a GPU did not suffice, here or in another process."""
    return bool(_MEMORY.search(f"{type(error).__name__}: {error}"))


def run_chain(chain: Path, until: int | None, interrupt: Interrupt) -> None:
    """Commit the chain's rounds up to `until` (all by default); returns at once where they are.

    Raises `Interrupted`, `ChainLocked`, `RoundFailed`, `OutOfMemory`; another error of a round is recorded in its
    folder and raised.
    """
    config = load_chain(chain / run_folder.CONFIG)
    target = config.rounds if until is None else min(until, config.rounds)
    agreed = (Interrupted, ChainLocked, RoundFailed)
    with join(config.device != "cpu", config.collective_minutes, agreed) as world, contextlib.ExitStack() as held:
        if world.once(lambda: run_folder.committed_rounds(chain)) >= target:
            world.once(lambda: _clear_up(chain))  # a kill may have come between a commit and this
            return
        interrupt.world = world
        world.once(lambda: held.enter_context(locked(chain)))
        _run_rounds(chain, config, target, interrupt)


def _run_rounds(chain: Path, config: Chain, target: int, interrupt: Interrupt) -> None:
    world = interrupt.world

    def committed() -> int:
        return world.once(lambda: run_folder.committed_rounds(chain))

    number = committed()
    try:
        world.once(lambda: _refuse_failed(chain))
        rounds = None
        while (number := committed()) < target:
            interrupt.check()
            rounds = rounds or _prepare(chain, config, interrupt)
            rounds.run(number)
    except (Interrupted, RoundFailed):
        raise
    except Exception as error:
        if out_of_memory(error):
            world.fail(error, lambda: None)
            raise OutOfMemory(f"out of memory in round {number}: {type(error).__name__}: {error}") from error
        if isinstance(error, OSError):
            raise  # of the storage, or of the processes' connections: the next run continues
        world.fail(error, partial(_record, chain, number, error))
        raise
    world.once(lambda: _clear_up(chain))


def _clear_up(chain: Path) -> None:
    for folder in run_folder.round_folders(chain):
        if run_folder.is_committed(folder):
            run_folder.drop_working_state(folder)


def _prepare(chain: Path, config: Chain, interrupt: Interrupt) -> Any:
    # Imported here, so that a job whose work is done leaves without loading torch.
    from mal.data.dataset import load
    from mal.process.device import prepare_device
    from mal.round import Rounds

    device = prepare_device(config, interrupt.world)
    dataset = load(config.dataset, Path(config.data), config.seed, config.loader)
    interrupt.world.same("The kind of device and the data", f"{device.torch}, pool {dataset.digest[:12]}")
    return Rounds(chain, config, dataset, device, interrupt)


def _refuse_failed(chain: Path) -> None:
    if failure := read_failure(chain):
        raise RoundFailed(f"{chain} failed before: {failure['error']} Launch with retry=true to run it again.")


def _record(chain: Path, number: int, error: Exception) -> None:
    failure = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc(), "time": now()}
    write_json(run_folder.round_folder(chain, number) / run_folder.FAILED, failure)


def _holder(chain: Path) -> str:
    heartbeat = read_progress(run_folder.round_folder(chain, run_folder.committed_rounds(chain)))
    return f"process {heartbeat['pid']} on {heartbeat['host']}" if heartbeat else "another process"


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mal.chain", description=__doc__.split("\n")[0])
    parser.add_argument("chain", type=Path, help="folder of the chain, RUNS/NAME/METHOD/seed-S")
    parser.add_argument("--until", type=int, default=None, help="how many rounds must be committed (default: all)")
    arguments = parser.parse_args()
    rank, size, _ = tasks()
    who = f"[{rank}/{size}] " if size > 1 else ""
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, format=f"%(asctime)s {who}%(message)s", stream=sys.stderr)
    interrupt = Interrupt()
    interrupt.install()
    try:
        run_chain(arguments.chain, arguments.until, interrupt)
    except Interrupted as stop:
        log.info("interrupted (%s); the state is saved, the same command goes on", stop)
        return EXIT_INTERRUPTED
    except ChainLocked as other:
        log.error("%s", other)
        return EXIT_LOCKED
    except OutOfMemory as error:
        log.error("%s", error)
        return EXIT_OUT_OF_MEMORY
    except (RoundFailed, ValueError, OSError) as error:
        log.error("%s", error)
        return EXIT_ERROR
    return EXIT_DONE


if __name__ == "__main__":
    leave(main())
