"""Reconciling: what a sweep wants, minus what is committed, minus what runs already."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from mal.chain import clear_failure, is_locked, read_failure
from mal.config.alike import leaders
from mal.config.checks import pool_size
from mal.config.compose import Sweep
from mal.config.frozen import amended, differences, load_chain, save_chain
from mal.config.people import FILES
from mal.config.schema import Chain, Dataset
from mal.config.sizes import MOST_DECODED, image_bytes
from mal.files import write_atomic
from mal.labels.asking import awaited
from mal.run import folder as run_folder
from mal.run.code_copy import installed, other_code
from mal.run.heartbeat import read_progress
from mal.run.ledger import read_history

MINIMUM_FREE_MIB = 100
SHARED_WORK = 10**8  # as counted by `worth_sharing`; 128 images of 28x28 by a width of 16 are 26 million
SAY_SECONDS = 30.0  # between two lines of a long pass over files


class State(Enum):
    """Where a chain stands before a launch."""

    NEW = "new"
    PART = "part"
    DONE = "done"
    RUNNING = "running"
    WAITING = "waiting for people"
    FAILED = "failed"


@dataclass
class ChainPlan:
    """One chain of the sweep: its folder, its configuration as it will run, and what is to do."""

    folder: Path
    config: Chain
    target: int
    committed: int
    state: State
    note: str
    check: str = "headers"
    open: bool = False  # whether its loader is still to be chosen

    @property
    def name(self) -> str:
        """METHOD/seed-S, or METHOD where people label, as it has one chain then."""
        method = self.folder.parent.name
        return method if self.config.dataset.oracle == FILES else f"{method}/{self.folder.name}"

    @property
    def to_run(self) -> bool:
        """Whether this launch starts it."""
        return self.state in (State.NEW, State.PART)

    def line(self, note: str = "") -> str:
        """What a launch says of the chain, with a second line where other code than before goes on with it."""
        said = f"{self.name:<28} {self.committed}/{self.target} rounds committed, {note or self.note}"
        warning = other_code(self.folder) if self.to_run else None
        return f"{said}\n{'':<28} warning: {warning}" if warning else said


def reconcile(sweep: Sweep) -> list[ChainPlan]:
    """The plan of each chain; reads the disk and changes nothing.

    Raises ValueError (DamagedRun is one), before anything is started, where a chain's folder holds another
    configuration or was tampered with.
    """
    if not sweep.dry_run:
        check_storage(sweep.runs)
    if any({"weights", "library"} & chain.backbone.keys() for chain in sweep.chains):
        from mal.models.at_launch import settle_weights

        sweep.chains = settle_weights(sweep.chains, sweep.dry_run)
    return [_plan(sweep, config) for config in sweep.chains]


def freeze(plans: list[ChainPlan]) -> None:
    """Write the configuration of each chain that will run, where its jobs read it; of one begun, only places change.

    An error recorded before is forgotten: only retry=true lets such a chain run.
    """
    for plan in plans:
        if plan.to_run:
            clear_failure(plan.folder)
            path = plan.folder / run_folder.CONFIG
            if not path.is_file():
                write_atomic(path, save_chain(plan.config).encode())
            elif load_chain(path) != plan.config:
                write_atomic(path, amended(path, plan.config).encode())


def leaders_of(plans: Sequence[ChainPlan]) -> dict[Path, dict[Path, int]]:
    """Folder of a chain -> those of earlier ones of which it may take phases -> up to how many rounds."""
    states = (State.NEW, State.PART, State.RUNNING)
    left = [plan for plan in plans if plan.state in states and plan.config.share]
    if not left:
        return {}
    done, pool = [plan.committed for plan in left], pool_size(left[0].config.dataset)
    found = leaders([plan.config for plan in left], done, pool)
    return {left[i].folder: {left[leader].folder: n for leader, n in each.items()} for i, each in found.items()}


def share_threads(plans: list[ChainPlan], share: int) -> None:
    """Give chains that are new their share of the cores; it is frozen, as the number of threads moves the last bits.

    Says where the user gives more threads than the networks are large enough for.
    """
    new = [plan.config for plan in plans if plan.state is State.NEW]
    if small := next((config for config in new if config.threads > 1 and not worth_sharing(config)), None):
        steps = f"{small.backbone['name']} on {small.dataset.name}"
        print(
            f"threads={small.threads}: steps of {steps} are too short to share. "
            "Several threads take more processor time, and more still beside other work; threads=0 gives them one."
        )
    for plan in plans:
        if plan.config.threads == 0:
            threads = max(1, share) if worth_sharing(plan.config) else 1
            plan.config = dataclasses.replace(plan.config, threads=threads)


def worth_sharing(config: Chain) -> bool:
    """Whether a step is long enough for several threads: else they cost more than they save, and wait more than work.

    By the multiplications that the first layers of a narrow network take for a batch: with two threads small_cnn takes
    3.6 times the processor seconds of one on 64 images of 8x8 and 1.6 times on 128 of 28x28; ResNet18, which has no
    `width`, 1.0 times.
    """
    width = config.backbone.get("width")
    if width is None or config.loader != "memory":  # the threads also read image files ahead
        return True
    seen = config.dataset.crop or config.dataset.size
    return max(config.minimax.batch, config.task.batch) * (seen * width) ** 2 >= SHARED_WORK


def curves_command(sweep: Sweep) -> str:
    """The command that draws the sweep."""
    script = "mal-curves" if installed() else "python analysis/curves.py"
    return f"{script} {_where(sweep)}"


def label_command(sweep: Sweep) -> str:
    """The command by which people label what the sweep asks for."""
    return f"{'mal-label' if installed() else 'python sweeps/label.py'} {_where(sweep)}"


def say_how_to_label(sweep: Sweep, plans: list[ChainPlan]) -> None:
    """Print what people are to do where chains wait for them now, and the chains that have begun to."""
    found = [(plan, waits) for plan in plans if (waits := awaited(plan.folder, plan.config))]
    for plan, waits in found:
        if plan.state is not State.WAITING:  # said before
            print(f"{plan.name:<28} {waits}")
    if found:
        print(f"Label:    {label_command(sweep)}    then run the same command again")


def status_command(sweep: Sweep) -> str:
    """The command that says where the sweep is."""
    return f"{'mal-status' if installed() else 'python sweeps/status.py'} {_where(sweep)}"


def _where(sweep: Sweep) -> str:
    runs = "" if sweep.runs == Path("runs") else f"runs={shlex.quote(str(sweep.runs))} "
    return f"{runs}name={sweep.name}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def check_storage(runs: Path) -> None:
    """Refuse a runs folder that cannot be written to or is full, with a ValueError naming `runs`."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe = runs / f".write-test-{os.getpid()}"
        write_atomic(probe, b"x")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"runs={runs} cannot be written to ({error.strerror}): choose another folder with runs=."
        ) from None
    free = shutil.disk_usage(runs).free // 2**20
    if free < MINIMUM_FREE_MIB:
        raise ValueError(
            f"runs={runs} has {free} MiB free, less than {MINIMUM_FREE_MIB}: free some or set runs= elsewhere."
        )


def check_data(
    plans: list[ChainPlan],
    host: float = math.inf,
    gpu: float = math.inf,
    *,
    dry_run: bool = False,
    copy: Path | None = None,
) -> None:
    """Read the datasets of the chains that will run, as their jobs will, so that a missing or cut file shows now.

    The mean and deviation of the pixels are computed here for few image files, once per pool, and kept for all jobs.
    host, gpu: bytes of memory that the images of a chain may take with loader=memory. dry_run: what would be refused
    is said and not raised, so that a plan can be looked at where the data are not, and nothing is computed. copy: a
    prepared copy that is to be made first: what it is made of is read instead, and it will have mean and deviation.
    """
    try:
        _check_data(plans, host, gpu, dry_run, copy)
    except ValueError as error:
        if not dry_run:
            raise
        print(f"A launch would be refused: {error}")


def _check_data(plans: list[ChainPlan], host: float, gpu: float, dry_run: bool, copy: Path | None) -> None:
    from mal.data.at_launch import Survey, survey
    from mal.data.dataset import load
    from mal.data.image_set import Files
    from mal.data.pixel_statistics import pixel_statistics

    surveys: dict[str, Survey] = {}
    seen: set[tuple[str, int]] = set()
    for plan in (plan for plan in plans if plan.to_run):
        config = plan.config
        loader = "torch" if copy and config.loader == "ffcv" else config.loader
        asked = f"{config.dataset} {loader}"
        place = Path(config.data)
        if (found := surveys.get(asked)) is None:
            cheap = partial(_check_size, config, host, gpu)
            found = survey(config.dataset, place, loader, plan.check, config.initial, not dry_run, cheap)
            surveys[asked] = found
            print("\n".join(found.lines), flush=True)
        if plan.committed and found.spec != config.dataset:
            gone = ", ".join(sorted({*(found.spec.left_out or [])} - {*(config.dataset.left_out or [])})[:10])
            raise ValueError(
                f"{plan.folder} has committed rounds on files that cannot be used any more ({gone}): put them back, or "
                "run the sweep under another name=."
            )
        config = plan.config = dataclasses.replace(config, dataset=found.spec)
        key = (asked, config.seed if config.dataset.imbalance else 0)
        if key in seen:
            continue
        seen.add(key)
        dataset = load(config.dataset, Path(config.data), config.seed, loader, found.splits)
        pool = len(dataset.pool)
        needed = max(config.initial, _known(dataset)) + (config.rounds - 1) * config.budget
        if needed > pool:
            raise ValueError(
                f"rounds={config.rounds} with initial={config.initial} and budget={config.budget} needs {needed} "
                f"labels, but the pool of {config.dataset.name}, seed {config.seed}, has {pool}: lower one of them."
            )
        small = image_bytes(config.dataset) <= MOST_DECODED  # else the first job does it
        if isinstance(dataset.train, Files) and small and not dry_run and copy is None and os.access(place, os.W_OK):
            pixel_statistics(dataset, _said(f"{config.dataset.name}: mean of the pixels"))


def _known(dataset: Any) -> int:
    """Images whose label is there before anybody is asked; 0 where the oracle has all of them."""
    from mal.labels.ledger import known_images

    return len(known_images(dataset.pool, dataset.train.labels)) if dataset.spec.oracle == FILES else 0


def _check_size(config: Chain, host: float, gpu: float, train: Any, test: Any) -> None:
    """Refuse images that loader=memory has no room for."""
    from mal.data.image_set import Files, check_size

    if config.loader != "memory":
        return
    images = len(train) + len(test)
    if isinstance(train, Files):  # what is in memory already has its place
        check_size(images, train.shape, host, "there for a chain")
    if config.device != "cpu":
        check_size(images, train.shape, gpu, "free on the GPU")


def _said(what: str) -> Callable[[int, int], None]:
    """Says how far a long pass is, now and then."""
    began = last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        if done and (now := time.monotonic()) - last > SAY_SECONDS:
            last = now
            left = (now - began) * (total - done) / done
            print(f"{what}: {done:,} of {total:,} images, {left:.0f} s left", flush=True)

    return say


def _plan(sweep: Sweep, config: Chain) -> ChainPlan:
    folder = run_folder.chain_folder(sweep.runs, sweep.name, config.method["name"], config.seed)
    target = config.rounds
    if not (folder / run_folder.CONFIG).is_file():
        config = dataclasses.replace(config, dataset=settled(config.dataset))
        return ChainPlan(folder, config, target, 0, State.NEW, "new", sweep.check, open=sweep.loader == "auto")
    frozen = load_chain(folder / run_folder.CONFIG)
    committed = run_folder.committed_rounds(folder)
    config = dataclasses.replace(config, dataset=settled(config.dataset, frozen.dataset))
    if sweep.loader == "auto":
        config = dataclasses.replace(config, loader=frozen.loader)
    elif not committed:  # nothing depends on it yet
        frozen.loader = config.loader
    if changed := differences(frozen, config):
        raise ValueError(
            f"{folder} holds another configuration: {'; '.join(changed)}. Launch it as it was, or under another name=."
        )
    history = read_history(folder, committed)
    if target > frozen.rounds and history and history[-1].query is None:
        raise ValueError(
            f"rounds={target}: {folder} was finished with rounds={frozen.rounds}, and its last round bought no labels "
            f"to go on with. Keep rounds={frozen.rounds}, or run the longer sweep under another name=."
        )
    config = dataclasses.replace(
        config, threads=frozen.threads, rounds=max(target, frozen.rounds), runs=str(sweep.runs), name=sweep.name
    )
    state, note = _state(folder, config, committed, target, sweep.retry)
    return ChainPlan(folder, config, target, committed, state, note, sweep.check)


def settled(dataset: Dataset, frozen: Dataset | None = None) -> Dataset:
    """The dataset's section with what a launch settles once per chain: EXIF orientation, and files that are left out.

    frozen: the section that a chain was launched with before.
    """
    exif = dataset.exif or (frozen.exif if frozen else "apply")
    dataset = dataclasses.replace(dataset, exif=exif)
    if frozen is None or not (frozen.left_out or frozen.skip_unpaired):
        return dataset
    gone = [sum(name.startswith(f"{part}/") for name in frozen.left_out or []) for part in ("train", "test")]
    as_before = frozen.skip_unpaired or (dataset.train, dataset.test) in (
        (frozen.train + gone[0], frozen.test + gone[1]),
        (frozen.train, frozen.test),
    )
    if not as_before:
        return dataset
    return dataclasses.replace(dataset, left_out=frozen.left_out, train=frozen.train, test=frozen.test)


def _state(folder: Path, config: Chain, committed: int, target: int, retry: bool) -> tuple[State, str]:
    if committed >= target:
        return State.DONE, "nothing to do"
    if is_locked(folder):
        heartbeat = read_progress(run_folder.round_folder(folder, committed))
        where = f" (process {heartbeat['pid']} on {heartbeat['host']})" if heartbeat else ""
        return State.RUNNING, f"running already{where}"
    if failure := read_failure(folder):
        if not retry:
            first_line = str(failure["error"]).splitlines()[0]
            return State.FAILED, f"failed in round {committed}: {first_line} (retry=true runs it again)"
        return State.PART, f"failed in round {committed} before, runs it again"
    if found := awaited(folder, config):
        return State.WAITING, str(found)
    begun = read_progress(run_folder.round_folder(folder, committed)) is not None
    return State.PART, f"continues {'in' if begun else 'with'} round {committed}"
