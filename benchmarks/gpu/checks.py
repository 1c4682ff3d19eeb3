"""Runs the checks one by one and notes what each found; what they share: a device, configurations, made-up batches."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.config.schema import Dataset as Spec
from mal.data.augment import Augmentation, build_augmentation
from mal.data.loader import Loader, MemoryLoader
from mal.process.device import Device, prepare_device
from mal.training.objective import Inputs

Found = dict[str, Any]
Check = tuple[float, Callable[["Bench"], Found]]
"""Its seconds at most, and what it does: what it found, or AssertionError saying what does not hold."""
SLOWER = 30  # times as many seconds in a rehearsal, on a CPU that others use too
GRACE = 25.0  # seconds beyond all checks' after which a check that does not come back is given up, with the process


class TooLong(Exception):
    """A check's seconds are over."""


@dataclass
class Bench:
    """What the checks run on. kind: cuda or cpu; work: a folder of theirs.

    told: what the check at work has found so far; running: the processes that it has started; over: it starts no more.
    """

    kind: str
    work: Path
    told: Found = field(default_factory=dict)
    running: list[int] = field(default_factory=list)
    over: bool = False

    @property
    def cuda(self) -> bool:
        """Whether this is no rehearsal."""
        return self.kind == "cuda"

    def chain(self, *words: str, method: str = "mal", seed: int = 0) -> Chain:
        """A configuration for the device."""
        fixed = [f"methods=[{method}]", f"seeds=[{seed}]", f"device={self.kind}"]
        return compose_sweep([*fixed, *words]).chains[0]

    def epochs(self, of_minimax: float, of_task: float) -> tuple[str, str]:
        """The keys of so much training, of which a rehearsal does a fifth."""
        part = 1.0 if self.cuda else 0.2
        return f"minimax.epochs={part * of_minimax:g}", f"task.epochs={part * of_task:g}"

    @contextmanager
    def process(self, command: Sequence[str | Path], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that writes to a log; it and what it has started are killed where the check ends before it."""
        if self.over:
            raise TooLong
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
        with log.open("ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        self.running.append(process.pid)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.running.remove(process.pid)

    def side_by_side(self, calls: Sequence[Callable[[], None]]) -> None:
        """All of them, each in a thread, mostly waiting for its processes; the first error of theirs is raised."""
        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                wait(futures)
            except TooLong:
                self.end()
                raise
        for future in futures:
            future.result()

    def end(self) -> None:
        """Kill what runs, and start no more of this check, whichever thread asks for it."""
        self.over = True
        for process in list(self.running):
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)

    def ended(self, command: Sequence[str | Path], **variables: str) -> tuple[int, str]:
        """A command run to its end: its exit status, and what it said."""
        log = self.work / f"log-{time.monotonic_ns()}.txt"
        with self.process(command, log, **variables) as process:
            status = process.wait()
        return status, log.read_text()


class Data:
    """Noise of a data set's shapes, with a loader and the augmentation of training."""

    def __init__(self, spec: Spec, count: int, device: Device) -> None:
        random, maps = np.random.default_rng(0), spec.task == "segmentation"
        self.images = random.integers(0, 256, (count, spec.channels, spec.size, spec.size), dtype=np.uint8)
        labels = random.integers(0, spec.classes, (count, spec.size, spec.size) if maps else count)
        self.labels = labels.astype(np.uint8 if maps else np.int64)
        if maps:
            self.labels[:, :5] = 255
        half = np.full(spec.channels, 0.5)
        self.augmentation: Augmentation = build_augmentation(spec, half, half, device.torch)
        self.loader: Loader = MemoryLoader(self.images, self.labels, device.torch)

    def inputs(self, first: int, last: int, key: tuple[int | str, ...] = (0,)) -> Inputs:
        """Those from `first` to before `last`, augmented as the key says."""
        got = self.loader.load(np.arange(first, last))
        maps = got.labels.ndim == 3
        labels = self.augmentation.train_maps(got.labels, key) if maps else got.labels
        return Inputs(self.augmentation.train(got.images, key), labels)


def placed(bench: Bench, *words: str, method: str = "mal") -> tuple[Chain, Device]:
    """A configuration and its device, made repeatable."""
    config = bench.chain(*words, method=method)
    return config, prepare_device(config)


def digest(*things: nn.Module | torch.Tensor) -> str:
    """A hash of networks' states and of tensors."""
    sha = hashlib.sha256()
    for thing in things:
        for value in thing.state_dict().values() if isinstance(thing, nn.Module) else [thing]:
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def run_all(
    checks: Sequence[Check], bench: Bench, out: Path, seconds: float, only: Sequence[str], limits: float = 1.0
) -> int:
    """Run them within so many seconds, noting each at once; the number of those that failed.

    limits: times as many seconds as each check's own limit.
    """
    out.mkdir(parents=True, exist_ok=True)
    slower = 1 if bench.cuda else SLOWER
    end, found = time.monotonic() + seconds * slower, {}

    def note() -> None:
        device = torch.cuda.get_device_name() if bench.cuda and torch.cuda.is_available() else bench.kind
        text = json.dumps({"device": device, "torch": torch.__version__, "checks": found}, indent=1)
        (out / "gpu.json").write_text(text + "\n")

    def give_up() -> None:
        print(f"{list(found)[-1]} does not come back", flush=True)
        bench.end()
        os._exit(99)

    hanging = threading.Timer(seconds * slower + GRACE, give_up)
    hanging.daemon = True
    hanging.start()
    for limit, function in checks:
        name, left = function.__name__, end - time.monotonic()
        if only and name not in only:
            continue
        found[name] = {"verdict": "HANGS"}
        note()
        found[name] = (
            _run(function, bench, min(limit * limits * slower, left), left) if left > 0 else {"verdict": "NO TIME"}
        )
        note()
        print(name, json.dumps({key: value for key, value in found[name].items() if key != "at"}), flush=True)
    hanging.cancel()
    verdicts = [each["verdict"] for each in found.values()]
    failed = [name for name, each in found.items() if each["verdict"] == "FAIL"]
    print(f"{verdicts.count('PASS')} passed, {len(failed)} failed {failed}, {verdicts.count('NO TIME')} left out")
    return len(failed)


def _run(function: Callable[[Bench], Found], bench: Bench, limit: float, left: float) -> Found:
    began, verdict, bench.told, bench.over = time.monotonic(), "PASS", {}, False
    try:
        with _at_most(limit):
            bench.told |= function(bench)
    except TooLong:
        verdict = "NO TIME" if limit == left else "FAIL"
        bench.told["why"] = f"took more than {limit:g} s"
    except Exception as error:  # the others tell something all the same
        verdict = "FAIL"
        bench.told |= {"why": f"{type(error).__name__}: {error}"[:1500], "at": traceback.format_exc()[-1500:]}
    if bench.cuda and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"verdict": verdict, **bench.told, "seconds": round(time.monotonic() - began, 1)}


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """TooLong after so many seconds, once Python is at work."""

    def too_long(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
