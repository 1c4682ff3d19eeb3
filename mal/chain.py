"""A chain of rounds, run up to a target: what a worker process and a Slurm job do.

    python -m mal.chain RUNS/NAME/METHOD/seed-S [--until N]
    srun -n4 python -m mal.chain ...      # four processes share the work (mal/process/distributed.py)

The target is "the first N rounds are committed" (default: all of the configuration's). Exit status: 0 reached, also at
once, or labels from people are waited for; 1 an error, recorded in the round's FAILED unless the storage failed or
another process was lost; 75 interrupted, run it again; 76 another process is working on the chain. Not recorded, as
they may depend on the place: 77 out of memory, of the host or of a GPU; 78 a device, a library or data that are not on
this node, or something else than --code, --tasks, --gpus say.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mal.config.frozen import load_chain
from mal.config.schema import Chain
from mal.files import write_json
from mal.labels.asking import awaited
from mal.process.distributed import ProcessLost, join, leave, tasks
from mal.process.faults import Fault, Misplaced, fault_of
from mal.process.interrupt import EXIT_INTERRUPTED, Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.run.code_copy import code_hash
from mal.run.heartbeat import Progress, now, read_progress
from mal.run.lock import hold, is_held
from mal.tracking.follow import followed

EXIT_DONE, EXIT_ERROR, EXIT_LOCKED, EXIT_OUT_OF_MEMORY, EXIT_PLACE = 0, 1, 76, 77, 78
STORAGE_FAILED = "the storage failed"  # in the log, where that was the error
LOOK_SECONDS = 2.0

log = logging.getLogger("mal.chain")


class ChainLocked(Exception):
    """Another process works on the chain."""


class RoundFailed(Exception):
    """A round of the chain raised an error before, and nobody has asked to try again."""


class OutOfMemory(Exception):
    """Memory ran out in a round; what was saved before is on disk."""


class StorageFailed(OSError):
    """The storage failed in a round; what was saved before is on disk."""


@contextlib.contextmanager
def locked(chain: Path, patience: float = LOOK_SECONDS) -> Iterator[None]:
    """Hold the chain's lock on shared storage, or raise `ChainLocked` naming who holds it.

    patience: seconds to wait for it, by default as long as somebody's look at it (`is_locked`) may hold it.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold(chain / run_folder.LOCK, patience))
        except TimeoutError:
            raise ChainLocked(f"{chain} is being worked on by {_holder(chain)}.") from None
        yield


def is_locked(chain: Path) -> bool:
    """Whether a process works on the chain now."""
    return is_held(chain / run_folder.LOCK)


def read_failure(chain: Path) -> dict[str, Any] | None:
    """The recorded error of the chain's next round: keys error, traceback, time; None where there is none."""
    path = run_folder.round_folder(chain, run_folder.committed_rounds(chain)) / run_folder.FAILED
    return run_folder.read_json(path) if path.is_file() else None


def clear_failure(chain: Path) -> None:
    """Forget the recorded error, so that the chain runs again."""
    (run_folder.round_folder(chain, run_folder.committed_rounds(chain)) / run_folder.FAILED).unlink(missing_ok=True)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of the host or of a GPU did not suffice, here or in another process."""
    return fault_of(error) is Fault.MEMORY


def run_chain(chain: Path, until: int | None, interrupt: Interrupt, gpus: int | None = None) -> None:
    """Commit the chain's rounds up to `until` (all by default); returns at once where they are.

    gpus: how many the job asked for on each node; None: this is not a job. Raises `Interrupted`, `ChainLocked`,
    `RoundFailed`, `OutOfMemory`, `Misplaced` for an error of the place, OSError for one of the storage; another error
    of a round is recorded in its folder and raised.
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
        _run_rounds(chain, config, target, interrupt, gpus)


def _run_rounds(chain: Path, config: Chain, target: int, interrupt: Interrupt, gpus: int | None) -> None:
    world = interrupt.world

    def committed() -> int:
        return world.once(lambda: run_folder.committed_rounds(chain))

    number = committed()
    trackers = contextlib.ExitStack()
    try:
        world.once(lambda: _refuse_failed(chain))
        trackers.enter_context(followed(chain, config.tracker or [], interrupt))
        rounds = None
        while (number := committed()) < target:
            interrupt.check()
            if found := world.once(lambda: awaited(chain, config)):
                log.info("%s; the same command goes on once they are there", found)
                break
            rounds = rounds or _prepare(chain, config, number, interrupt, gpus)
            rounds.run(number)
    except (Interrupted, RoundFailed):
        raise
    except Exception as raised:
        error = world.explained(raised)
        if isinstance(error, ProcessLost):
            raise  # of the processes' connections: the next run continues
        fault = fault_of(error)
        world.fail(error, partial(_record, chain, number, error) if fault is Fault.CODE else lambda: None)
        _raise_unrecorded(fault, error, number)
        if error is raised:
            raise
        raise error from raised
    finally:
        trackers.close()
    world.once(lambda: _clear_up(chain))


def _raise_unrecorded(fault: Fault, error: Exception, number: int) -> None:
    """Raise what tells the job whose the error is, where it is not the code's."""
    words = f"{type(error).__name__}: {error}"
    if fault is Fault.MEMORY:
        raise OutOfMemory(f"out of memory in round {number}: {words}") from error
    if fault is Fault.PLACE and not isinstance(error, Misplaced):
        raise Misplaced(f"round {number} fails here: {words}") from error
    if fault is Fault.STORAGE and not isinstance(error, OSError):
        raise StorageFailed(f"in round {number}: {words}") from error


def _clear_up(chain: Path) -> None:
    for folder in run_folder.round_folders(chain):
        if run_folder.is_committed(folder):
            run_folder.drop_working_state(folder)


def _prepare(chain: Path, config: Chain, number: int, interrupt: Interrupt, gpus: int | None) -> Any:
    """What all rounds share, for the first of them, `number`, whose heartbeat begins here."""
    # Imported here, so that a job whose work is done leaves without loading torch.
    from mal.process.device import prepare_device
    from mal.round import Rounds

    device = prepare_device(config, interrupt.world, gpus or 0)
    progress = Progress(run_folder.round_folder(chain, number), number, interrupt)
    try:
        dataset = _load(config, in_job=gpus is not None)
        interrupt.world.same("The kind of device and the data", f"{device.torch}, pool {dataset.digest[:12]}")
        return Rounds(chain, config, dataset, device, interrupt, progress)
    finally:
        if interrupt.cause:
            progress.leave(interrupt.cause)


def _load(config: Chain, in_job: bool) -> Any:
    from mal.data.dataset import load

    try:
        return load(config.dataset, Path(config.data), config.seed, config.loader)
    except ValueError as error:
        if not in_job:
            raise
        # the launch has read the same data, elsewhere
        raise Misplaced(f"the data are not as they were at the launch: {error}") from error


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
    parser.add_argument("--code", default=None, help="hash of the code that is to run")
    parser.add_argument("--tasks", type=int, default=None, help="how many processes are to share the work")
    parser.add_argument("--gpus", type=int, default=None, help="GPUs of each node, where this is a job")
    arguments = parser.parse_args()
    # Before torch is loaded: its threads sleep until they are needed, instead of spinning on cores that others use too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rank, size, _ = tasks()
    who = f"[{rank}/{size}] " if size > 1 else ""
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, format=f"%(asctime)s {who}%(message)s", stream=sys.stderr)
    interrupt = Interrupt()
    interrupt.install()
    try:
        _check_start(arguments.code, arguments.tasks, size)
        run_chain(arguments.chain, arguments.until, interrupt, arguments.gpus)
    except Interrupted as stop:
        log.info("interrupted (%s); the state is saved, the same command goes on", stop)
        return EXIT_INTERRUPTED
    except ChainLocked as other:
        log.error("%s", other)
        return EXIT_LOCKED
    except OutOfMemory as error:
        log.error("%s", error)
        return EXIT_OUT_OF_MEMORY
    except Misplaced as error:
        if error.__cause__ is not None:
            log.error("where:", exc_info=error.__cause__)
        log.error("%s", " ".join(str(error).split()))
        return EXIT_PLACE
    except (RoundFailed, ValueError, ProcessLost) as error:
        log.error("%s", error)
        return EXIT_ERROR
    except OSError as error:
        log.error("%s: %s", STORAGE_FAILED, error)
        return EXIT_ERROR
    return EXIT_DONE


def _check_start(code: str | None, size: int | None, found: int) -> None:
    """Whether this is the process that was to be started: variables get lost, or come from elsewhere."""
    if code is not None and code != code_hash():
        raise Misplaced(
            f"the code here is {code_hash()} of {Path(__file__).parents[1]}, but the job was launched with {code}: "
            "PYTHONPATH has not reached this process."
        )
    if size is not None and size != found:
        raise Misplaced(f"{found} processes share the work, but the job asked for {size}.")


if __name__ == "__main__":
    leave(main())
