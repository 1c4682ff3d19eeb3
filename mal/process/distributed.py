"""Several processes that share one chain: srun's tasks or torchrun's workers, each with its own GPU, or on CPUs.

    srun -n4 python -m mal.chain RUNS/NAME/METHOD/seed-S

Every process holds whole networks and takes a contiguous share of each global batch and of each scan. The batches, and
the random choices of their augmentation, are those of one process; a mean over a share counts for its part of the whole
batch, and gradients are summed before an optimiser steps. So the number of processes changes the results by rounding
alone, with two exceptions: what modules draw by themselves (dropout, the codes of VAAL's VAE) is drawn by each process
for its share, and without sync_batch_norm a share is normalised by itself. Rank 0 alone decides and writes.

Torch is imported where several processes meet, not with this module.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
# Between processes that wait for rank 0's own work, such as a long selection: a process that ends is noticed at once.
PATIENCE = timedelta(days=7)
SCONTROL_SECONDS = 30.0  # for a node's address
NOTICE_SECONDS = 20.0  # that a process which failed stays for rank 0 to record why
CLOSE_SECONDS = 5.0  # for the connections to the others, whatever state a GPU is in


class ProcessLost(OSError):
    """Another process of the run has ended or does not answer: no error of the code, the next run goes on."""


class ProcessFailed(RuntimeError):
    """Another process of the run raised an error."""


class World:
    """The processes of a run. rank: this one's number; size: how many; local: its number on this machine."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local
        self._alone = size == 1  # also while rank 0 does what the others wait for
        self._control: Any = None
        self._store: Any = None

    @property
    def main(self) -> bool:
        """Whether this process is the one that decides and writes."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> slice:
        """A process's part of `count` things: contiguous, as even as can be, rank 0's never smaller than another's."""
        if self._alone:
            return slice(0, count)
        rank = self.rank if rank is None else rank
        return slice(*(-(-count * r // self.size) for r in (rank, rank + 1)))

    def once(self, function: Callable[[], T]) -> T:
        """Rank 0 calls `function`, in which it is by itself; its result or its error is that of every process."""
        if self._alone:
            return function()
        import torch.distributed as dist

        outcome: list[Any] = [None, None]
        if self.main:
            self._alone = True
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
            finally:
                self._alone = False
        self._meet(dist.broadcast_object_list, outcome, src=0, group=self._control)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def most(self, *values: int) -> list[int]:
        """The largest of each value over the processes: whether any was asked to stop, say."""
        if self._alone:
            return list(values)
        import torch
        import torch.distributed as dist

        largest = torch.tensor(values, dtype=torch.int64)
        self._meet(dist.all_reduce, largest, dist.ReduceOp.MAX, group=self._control)
        return [int(value) for value in largest]

    def all(self, value: str) -> list[str]:
        """What each process has, by rank."""
        if self._alone:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        self._meet(dist.all_gather_object, values, value, group=self._control)
        return values

    def same(self, what: str, value: str) -> None:
        """ValueError where the processes do not all have the same value."""
        values = self.all(value)
        if len(set(values)) > 1:
            told = "; ".join(f"process {rank}: {value}" for rank, value in enumerate(values))
            raise ValueError(f"{what} must be the same in all {self.size} processes of a run. {told}.")

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place; the same bits in all of them."""
        if not self._alone:
            import torch.distributed as dist

            self._meet(dist.all_reduce, tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, of equal shapes, stacked by rank."""
        if self._alone:
            return tensor[None]
        import torch
        import torch.distributed as dist

        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._meet(dist.all_gather, parts, tensor)
        return torch.stack(parts)

    def sum_losses(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses of shares, to those of global batches."""
        if self._alone or not losses:
            return losses
        import torch

        return dict(zip(losses, self.sum(torch.stack(list(losses.values()))), strict=True))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The gradients of shares, to those of global batches, through one buffer."""
        if self._alone:
            return
        import torch

        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum(torch.cat([g.reshape(-1) for g in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def align(self, modules: Iterable[nn.Module]) -> None:
        """Rank 0's weights and statistics, in every process."""
        if self._alone:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    whole = tensor.contiguous()
                    self._meet(dist.broadcast, whole, src=0)
                    tensor.copy_(whole)

    def assemble(self, arrays: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """Arrays (count, ...) of which each process has filled its share: whole, in every process."""
        if self._alone:
            return arrays
        import torch
        import torch.distributed as dist

        layout = self.once(lambda: {name: (array.shape, array.dtype.str) for name, array in arrays.items()})
        for name, (shape, dtype) in layout.items():
            whole = arrays.setdefault(name, np.empty(shape, dtype))  # a process without a share knows no names
            for rank in range(self.size):
                block = torch.from_numpy(whole[self.share(count, rank)].reshape(-1).view(np.uint8))
                if len(block):
                    self._meet(dist.broadcast, block, src=rank, group=self._control)
        return arrays

    def fail(self, error: Exception, record: Callable[[], None]) -> None:
        """Before leaving with an error that only some processes may have: all leave, and one of them calls `record`.

        That is rank 0 or, where it does not answer, the process that has the error: rank 0 may be waiting for a GPU
        that waits for this one.
        """
        if self.main:
            record()
        if self._alone:
            return
        from torch.distributed import DistStoreError

        with contextlib.suppress(RuntimeError):  # where rank 0 is gone, so is what it kept
            if self.main:
                self._store.set("noted", "1")
            elif not self._store.check(["error"]):
                who = f"process {self.rank} on {socket.gethostname()}"
                self._store.set("error", f"{who}: {type(error).__name__}: {error}")
            # Closed connections tell those that wait for this process; srun may kill them as soon as it is gone.
            _close()
            if not self.main:
                try:
                    self._store.wait(["noted"], timedelta(seconds=NOTICE_SECONDS))
                except DistStoreError:  # nothing came in time
                    record()

    def explained(self, error: Exception) -> Exception:
        """The error that another process has reported, where this one is only what its end looks like from here."""
        if self._alone:
            return error
        from torch.distributed import DistError

        # Of collectives that torch's own layers make, as batch norm's.
        reported = self._reported() if isinstance(error, DistError) else None
        return ProcessFailed(reported) if reported else error

    def _meet(self, collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            collective(*arguments, **options)
        except RuntimeError as error:
            if reported := self._reported():
                raise ProcessFailed(reported) from error
            raise ProcessLost(f"Process {self.rank} of {self.size} has lost the others: {error}") from error

    def _reported(self) -> str | None:
        with contextlib.suppress(RuntimeError):
            return str(self._store.get("error").decode()) if self._store.check(["error"]) else None
        return None


ALONE = World()


def tasks() -> tuple[int, int, int]:
    """Rank of this process, how many there are, its number on this machine: by torchrun's or srun's environment."""
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
        # A batch script's own process, outside of srun, has no number of tasks of a step: it is by itself.
        if all(name in os.environ for name in names):
            rank, size, local = (int(os.environ[name]) for name in names)
            return rank, size, local
    return 0, 1, 0


@contextlib.contextmanager
def join(cuda: bool, minutes: float, agreed: tuple[type[Exception], ...] = ()) -> Iterator[World]:
    """Meet the other processes of this srun or torchrun, and part from them at the end.

    cuda: compute on GPUs, with NCCL, where torch finds one; else on CPUs, with gloo. minutes: until a collective counts
    as failed. agreed: errors that all processes raise together. Raises `ProcessLost` where they do not come together.
    """
    rank, size, local = tasks()
    if size == 1:
        yield ALONE
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # which process others see end first does not matter
    import torch
    import torch.distributed as dist

    world, timeout = World(rank, size, local), timedelta(minutes=minutes)
    if "MASTER_ADDR" not in os.environ:
        os.environ |= {"MASTER_ADDR": _address(first_host(_nodes())), "MASTER_PORT": str(_port())}
    backend = "cpu:gloo,cuda:nccl" if cuda and torch.cuda.is_available() else "gloo"
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
        world._store = dist.PrefixStore("mal", store)
        choose_interface(world._store, rank, size, os.environ["MASTER_ADDR"])
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        world._control = dist.new_group(backend="gloo", timeout=PATIENCE)
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ProcessLost(f"Process {rank} of {size} did not meet the others at {place}: {error}") from error
    try:
        yield world
    except agreed:
        _part(world)
        raise
    _part(world)


def leave(status: int) -> NoReturn:
    """End this process with an exit status; everything that counts is on disk.

    Without the interpreter's own clearing up: with torch loaded it takes over a second, and where there are several
    processes srun may kill the rest when one has ended.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def first_host(nodes: str) -> str:
    """The first name of Slurm's list of nodes, e.g. gpu07 of `gpu[07-09,12],cpu1`."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def choose_interface(store: Any, rank: int, size: int, master: str) -> None:
    """Let gloo announce this machine's address on the network by which `master` is reached, in GLOO_SOCKET_IFNAME.

    By itself it announces what the host's name means here: 127.0.1.1 in the /etc/hosts of Debian and Ubuntu, where the
    processes of other machines find nobody. On master's own machine its name may mean that too, so the processes tell
    each other how they see it. A variable that is set stays.
    """
    store.set(f"master/{rank}", _route(master)[1])
    if rank == 0:
        seen = [store.get(f"master/{number}").decode() for number in range(size)]
        store.set("master", next((address for address in seen if not _is_loopback(address)), seen[0]))
    own = _route(store.get("master").decode())[0]
    if interface := _interface_of(own):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _route(host: str) -> tuple[str, str]:
    """The address of this machine from which packets to a host go, and that of the host; nothing is sent."""
    error: OSError = OSError(f"{host} has no address")
    for family, kind, _, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0]), str(probe.getpeername()[0])
        except OSError as failed:
            error = failed
    raise error


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _interface_of(address: str) -> str | None:
    """The network interface that has an address; None where none has, as those of 127.0.0.2 and up."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address.partition("%")[0] for each in addresses):
            return name
    return None


def _close() -> None:
    """Close the connections to the other processes, as far as that takes no more than a moment."""
    import torch
    import torch.distributed as dist

    def close() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            if "nccl" in str(dist.get_backend_config()):
                # Kernels that wait for another process never end by themselves, and destroying waits for them.
                dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda")).abort()
            dist.destroy_process_group()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)


def _part(world: World) -> None:
    import torch.distributed as dist

    with contextlib.suppress(ProcessLost, ProcessFailed):  # all is done and on disk
        world.most(0)
    dist.destroy_process_group()


def _nodes() -> str:
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    nodes = next((os.environ[name] for name in names if name in os.environ), None)
    if nodes is None:
        raise ValueError(f"None of MASTER_ADDR, {', '.join(names)} is set: start the processes with srun or torchrun.")
    return nodes


def _address(host: str) -> str:
    """Where to reach a node: its name, or the address that Slurm has for it where the name means nothing here."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            command = ["scontrol", "show", "node", host]
            answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SCONTROL_SECONDS)
            if match := re.search(r"\bNodeAddr=(\S+)", answer.stdout):
                return match[1]
    return host


def _port() -> int:
    """A port below those that systems hand out by themselves, of this step alone."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return 10000 + zlib.crc32(".".join(os.environ.get(name, "0") for name in names).encode()) % 20000
