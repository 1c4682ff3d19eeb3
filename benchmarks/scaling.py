"""Several processes at one chain: what a MAL step of ResNet18 costs when its batch is shared, and where the rest goes.

    python -m benchmarks.scaling                 1, 2 and 4 processes with gloo on this machine, one thread each
    python -m benchmarks.scaling --steps 20      more steps; the first two do not count
    python -m benchmarks.scaling --nodes         each process on a node: a network namespace with a cable to a switch

strong: the global batch stays, 128 + 128 images. weak: each process keeps as many. Efficiency is one process's seconds
per image over those of n, by the clock (at most cores / n where there are fewer cores) and in processor seconds of all
processes together, which other work on the machine changes little. The last columns are processor seconds of a step;
exchanges are within gradients and batch norm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import torch

from benchmarks.measure import chain
from benchmarks.training import inputs
from mal.minimax import MinimaxObjective, build_networks
from mal.process.device import prepare_device
from mal.process.distributed import World, join
from mal.process.start import THREAD_VARIABLES
from mal.process.sync_batch_norm import SyncBatchNorm2d, _Normalise
from mal.training.objective import Inputs

BATCH, WARM, SIDE = 128, 2, 32
SIZES = (1, 2, 4)
HEAD = ("", "processes", "images per step", "s per step", "efficiency", "processor s per step", "efficiency")
HEAD += ("summing gradients", "batch norm by the global batch", "optimisers", "in exchanges")


@dataclass
class Spent:
    """Seconds by the clock and of the processor, so far."""

    wall: float = 0.0
    cpu: float = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its seconds added here."""

        def timed(*given: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*given, **named)
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu

        return timed


def work(batch: int, steps: int) -> None:
    """One process of a run: prints seconds per step, and those within its exchanges with the others, as JSON."""
    config = chain("dataset=cifar100", "backbone=resnet18", "device=cpu", "threads=1", f"minimax.batch={batch}")
    found = {name: Spent() for name in ("step", "exchanges", "gradients", "batch norm", "optimisers")}
    World._meet = found["exchanges"].around(World._meet)  # type: ignore[method-assign]
    World.sum_gradients = found["gradients"].around(World.sum_gradients)  # type: ignore[method-assign]
    SyncBatchNorm2d.forward = found["batch norm"].around(SyncBatchNorm2d.forward)  # type: ignore[method-assign]
    _Normalise.backward = staticmethod(found["batch norm"].around(_Normalise.backward))  # type: ignore[method-assign]
    with join(cuda=False, minutes=10) as world:
        device = prepare_device(config, world)
        torch.manual_seed(0)
        objective = MinimaxObjective(build_networks(config, device), config.minimax, device)
        world.align(objective.modules.values())
        share = world.share(batch)
        count = share.stop - share.start
        parts = {}
        for name in ("labelled", "unlabelled"):
            given = inputs(config, SIDE, count, device)
            parts[name] = Inputs(given.images, given.labels, count / batch)
        for optimizer in objective.optimizers.values():
            optimizer.step = found["optimisers"].around(optimizer.step)  # type: ignore[method-assign]
        step = found["step"].around(lambda: world.sum_losses(objective.step(parts, 0.0)))
        for number in range(WARM + steps):
            if number == WARM:
                for spent in found.values():
                    spent.wall = spent.cpu = 0.0
            step()
        print(json.dumps({name: [each.wall / steps, each.cpu / steps] for name, each in found.items()}), flush=True)


@contextlib.contextmanager
def nodes(size: int) -> Iterator[list[str]]:
    """So many network namespaces, which sockets take for machines, at 10.98.7.1 and up. Needs root and iproute2.

    Their names end in a, b, and so on.
    """
    switch, *names = (f"mal-{os.getpid()}-{end}" for end in ("switch", *ascii_lowercase[:size]))
    try:
        for name in (switch, *names):
            _ip("netns", "add", name)
        _ip("-n", switch, "link", "add", "switch", "up", "type", "bridge")
        for number, name in enumerate(names, 1):
            port = f"port{number}"
            _ip("link", "add", "cable", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "switch", "up")
            _ip("-n", name, "address", "add", f"10.98.7.{number}/24", "dev", "cable")
            for link in ("lo", "cable"):
                _ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def run(size: int, batch: int, steps: int, places: Sequence[str] = ()) -> list[dict[str, list[float]]]:
    """What each of `size` processes found; places: the network namespace of each, none for this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": 0 if places else rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        names["MASTER_ADDR"] = "10.98.7.1" if places else "127.0.0.1"
        variables = {key: str(value) for key, value in names.items()} | dict.fromkeys(THREAD_VARIABLES, "1")
        if places:
            variables["GLOO_SOCKET_IFNAME"] = "cable"  # this machine's own would not be found there
        command = ["ip", "netns", "exec", places[rank]] if places else []
        command += [sys.executable, "-m", "benchmarks.scaling", "--batch", str(batch), "--steps", str(steps)]
        environment = {**os.environ, **variables, "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    told = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), [process.returncode for process in processes]
    return [json.loads(text) for text in told]


def main() -> None:
    """The table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--nodes", action="store_true", help="each process in a network namespace of its own")
    parser.add_argument("--batch", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.batch:
        work(given.batch, given.steps)
        return
    print(f"| {' | '.join(HEAD)} |")
    print("|---" * len(HEAD) + "|")
    for kind in ("strong", "weak"):
        alone: tuple[float, float] | None = None
        for size in SIZES:
            batch = BATCH * (size if kind == "weak" else 1)
            with nodes(size) if given.nodes else contextlib.nullcontext([]) as places:
                found = run(size, batch, given.steps, places)
            wall, cpu = found[0]["step"][0], sum(each["step"][1] for each in found)
            per_image = size * wall / batch, cpu / batch
            alone = alone or per_image
            cells = [kind, size, 2 * batch, f"{wall:.2f}", f"{alone[0] / per_image[0]:.2f}"]
            cells += [f"{cpu:.2f}", f"{alone[1] / per_image[1]:.2f}"]
            for part in ("gradients", "batch norm", "optimisers", "exchanges"):
                cells.append(f"{sum(each[part][1] for each in found):.2f}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
