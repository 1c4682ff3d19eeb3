"""Several processes at one chain, with gloo on loopback: the same results, one end, nothing written twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import DistBackendError

from mal import chain
from mal.chain import EXIT_DONE, EXIT_ERROR, EXIT_LOCKED, EXIT_OUT_OF_MEMORY, locked
from mal.data.augment import Augmentation
from mal.data.loader import MemoryLoader, TrainingStream
from mal.minimax import MinimaxObjective
from mal.process import distributed
from mal.process.device import Device
from mal.process.distributed import ALONE, World, first_host, join, leave, tasks
from mal.process.interrupt import EXIT_INTERRUPTED, Interrupt
from mal.process.sync_batch_norm import synchronise
from mal.run import folder as run_folder
from mal.run.heartbeat import Progress
from mal.training.loop import _check_batches
from mal.training.objective import descend
from mal.training.scan import Scanner
from tests.chains import (
    assert_same_science,
    chain_config,
    environment,
    losses,
    made_up_images,
    outcome,
    plain_augmentation,
    python,
    write_chain,
)
from tests.made_up_data import write_folders

# A server that has imported all, and forks a process in no time.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["mal.round", "sklearn.datasets", "hydra", "pytest", "torch.distributed", "torch._dynamo"]
)
SECONDS = 120


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()}


def together(size: int, function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call `function(*arguments)` in `size` processes that belong together; their exit statuses by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        SERVER.Process(target=_one, args=(rank_environment(rank, size, port), function, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        process.kill()  # where it hangs: its status is then none of those expected
        process.join()
    return [process.exitcode for process in processes]


def _one(rank: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= environment() | rank
    torch.set_num_threads(1)
    function(*arguments)


def joined(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(world, *arguments)` in the world of this process."""
    with join(cuda=False, minutes=1) as world:
        function(world, *arguments)


def run_chain(folder: Path) -> None:
    """`python -m mal.chain FOLDER`."""
    sys.argv = ["mal.chain", str(folder)]
    leave(chain.main())


# ------------------------------------------------------------------------- who is who


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 3, 30, 1000])
def test_shares_are_contiguous_even_and_cover_everything_once(count: int, size: int) -> None:
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes)
    assert [World(0, size).share(count, rank) for rank in range(size)] == shares


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("gpu[007-009,12],cpu1", "gpu007"),
        ("a-b[3,5-9]", "a-b3"),
        ("n1,n2", "n1"),
        ("rack[1-2]node[04-08]", "rack1node04"),
        ("n[12].cluster.org,n14.cluster.org", "n12.cluster.org"),
    ],
)
def test_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_are_those_of_torchrun_or_of_sruns_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    assert tasks() == (0, 1, 0)
    # A batch script's own process knows the job's tasks, but is none of them.
    for name, value in {"SLURM_NTASKS": 4, "SLURM_PROCID": 0, "SLURM_LOCALID": 0}.items():
        monkeypatch.setenv(name, str(value))
    assert tasks() == (0, 1, 0)
    for name, value in {"SLURM_STEP_NUM_TASKS": 4, "SLURM_PROCID": 3, "SLURM_LOCALID": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert tasks() == (3, 4, 1)
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    assert tasks() == (1, 2, 0)


def test_one_process_needs_no_torch_and_no_group() -> None:
    code = (
        "import sys; from mal import chain; from mal.process.distributed import ALONE, join\n"
        "with join(cuda=True, minutes=1) as world:\n"
        "    assert world is ALONE and world.once(lambda: 3) == 3 and world.most(True, 2) == [True, 2]\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert python("-c", code).returncode == 0


def test_a_batch_of_fewer_images_than_processes_is_refused() -> None:
    streams = {"labelled": TrainingStream(np.arange(3), 128, ("a key",))}
    _check_batches(streams, World(0, 3))
    with pytest.raises(ValueError, match=r"4 processes cannot share a batch of 3 labelled images.*initial="):
        _check_batches(streams, World(0, 4))


def test_a_part_of_a_batch_is_augmented_as_in_the_whole() -> None:
    augmentation: Augmentation = plain_augmentation(flip=True, pad_crop=2, crop=6)
    images = torch.from_numpy(made_up_images(30))
    whole = augmentation.train(images, ("a key", 7))
    for rank in range(4):
        share = World(rank, 4).share(30)
        assert torch.equal(augmentation.train(images[share], ("a key", 7), 30, share.start), whole[share])


# ------------------------------------------------------------------------- what they do together


def check_meetings(world: World, folder: Path) -> None:
    """Decisions and sums."""
    assert world.most(world.rank, world.rank == 1) == [world.size - 1, 1]
    assert world.once(lambda: f"of {world.rank}") == "of 0"
    alone: list[Any] = []
    # Within `once` rank 0 is by itself: it must not wait for the others, which wait for it.
    world.once(lambda: alone.extend([world.share(10), world.most(5), world.once(lambda: 1)]))
    assert alone == ([slice(0, 10), [5], 1] if world.main else [])
    assert world.share(10) != slice(0, 10)
    for error in (ValueError("a value"), chain.RoundFailed("a round"), run_folder.DamagedRun("a file")):
        with pytest.raises(type(error), match=str(error)):
            world.once(partial(_raise, error))
    world.same("A thing", "equal")
    with pytest.raises(ValueError, match=r"A thing must be the same in all 3 processes.*process 2: 2"):
        world.same("A thing", str(world.rank))
    losses = world.sum_losses({"a": torch.tensor(1.0), "b": torch.tensor(float(world.rank))})
    assert losses == {"a": 3.0, "b": 3.0}
    module = nn.BatchNorm2d(2)
    module.running_mean.fill_(world.rank + 5)
    world.align([module])
    assert module.running_mean.tolist() == [5, 5]


def _raise(error: Exception) -> None:
    raise error


def check_gradients(world: World, folder: Path) -> None:
    """A step on uneven shares is the step on the whole batch."""
    torch.manual_seed(0)
    images, targets = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    stepped = []
    for group in (ALONE, world):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        share = group.share(30)
        weight = (share.stop - share.start) / 30
        for _ in range(3):
            loss = nn.functional.mse_loss(model(images[share]), targets[share]) * weight
            descend(optimizer, loss, group)
        stepped.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*stepped, rtol=1e-12, atol=1e-14)
    assert torch.equal(world.gather(stepped[1]), stepped[1].expand(world.size, -1)), "the processes drift apart"


def check_batch_norm(world: World, folder: Path) -> None:
    """Synchronised batch norm on uneven shares is nn.BatchNorm2d on the whole batch: outputs, gradients, statistics."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, momentum=0.3)).double()
    parts = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, momentum=0.3)).double()
    parts.load_state_dict(whole.state_dict())
    synchronise(parts, world, cuda=False)
    share = world.share(10)
    for _ in range(3):
        images = (5 + torch.randn(10, 2, 6, 6, dtype=torch.float64)).requires_grad_()
        target = torch.randn(10, 3, 4, 4, dtype=torch.float64)
        expected, found = whole(images), parts(images[share].to(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected[share])
        (wanted,) = torch.autograd.grad(((expected - target) ** 2).sum(), images, retain_graph=True)
        mine = images[share].detach().requires_grad_()
        parts.zero_grad()
        whole.zero_grad()
        ((parts(mine) - target[share]) ** 2).sum().backward()
        ((whole(images) - target) ** 2).sum().backward()
        torch.testing.assert_close(mine.grad, wanted[share], rtol=1e-7, atol=1e-9)
        world.sum_gradients(parts.parameters())
        for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)
    assert parts.state_dict().keys() == whole.state_dict().keys()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)
    nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)).load_state_dict(
        parts.state_dict()
    )
    torch.testing.assert_close(parts.eval()(images), whole.eval()(images))


def check_scan(world: World, folder: Path) -> None:
    """Each index is looked at once, by one process, and all get everything, in order."""
    interrupt = Interrupt()
    interrupt.world = world
    device = Device(torch.device("cpu"), bf16=False, world=world)
    scanner = Scanner(plain_augmentation(), device, Progress(folder, 0, interrupt), batch=4)
    for count in (2, 8, 25, 40):  # fewer than processes; one batch more in some; two in all; uneven
        images = np.zeros((60, 1, 2, 2), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(60)
        indices = np.random.default_rng(count).permutation(60)[:count]
        seen: list[int] = []

        def look(pictures: torch.Tensor, seen: list[int] = seen) -> dict[str, torch.Tensor]:
            numbers = (pictures[:, 0, 0, 0] * 255).round()
            seen += numbers.int().tolist()
            return {"float": numbers, "wide": numbers[:, None].expand(-1, 3).double(), "whole": numbers.long()}

        found = scanner.scan("score", MemoryLoader(images, np.zeros(60, dtype=np.int64), device.torch), indices, look)
        assert found["float"].tolist() == found["whole"].tolist() == indices.tolist()
        assert found["wide"].tolist() == np.repeat(indices[:, None], 3, axis=1).tolist()
        assert (found["float"].dtype, found["whole"].dtype) == (np.float32, np.int64)
        assert seen == indices[world.share(count)].tolist()


@pytest.mark.parametrize("check", [check_meetings, check_gradients, check_batch_norm, check_scan])
def test_three_processes(check: Callable[[World, Path], None], tmp_path: Path) -> None:
    assert together(3, joined, check, tmp_path) == [0, 0, 0]


# ------------------------------------------------------------------------- whole chains


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """An undisturbed chain of so many processes."""

    @cache
    def run(size: int) -> Path:
        folder = write_chain(tmp_path_factory.mktemp(f"of-{size}"), chain_config())
        assert together(size, run_chain, folder) == [EXIT_DONE] * size
        return folder

    return run


@pytest.mark.parametrize("size", [2, 4])
def test_the_number_of_processes_does_not_change_what_is_learnt_and_asked(
    size: int, runs: Callable[[int], Path]
) -> None:
    assert_same_science(runs(1), runs(size))
    committed = run_folder.read_round(runs(size) / "round-1")
    assert committed.provenance["world_size"] == size
    assert committed.metrics["gpus"] == 0
    assert not (runs(size) / "round-1" / run_folder.CHECKPOINT).exists()


@pytest.mark.parametrize("loader", ["torch", "memory"])
def test_processes_that_read_image_files_do_not_wait_for_each_other(loader: str, tmp_path: Path) -> None:
    write_folders(tmp_path, train=16)
    folders = [f"dataset.{part}_images={tmp_path / part}" for part in ("train", "test")]
    files = ("dataset=folder", "backbone=small_cnn", "dataset.size=16", "dataset.crop=null", "workers=1", *folders)
    keys = (*files, f"data={tmp_path}", f"loader={loader}", "rounds=1")
    folder = write_chain(tmp_path, chain_config(*keys, method="random"))
    assert together(2, run_chain, folder) == [EXIT_DONE] * 2
    assert len(list((tmp_path / "computed").glob("*.npz"))) == 1


def disturbed(folder: Path, rank: int, step: int, what: str) -> None:
    """The chain, in which something happens to one process at a step of Algorithm 1 in round 0."""
    original, taken = MinimaxObjective.step, iter(range(1000))

    def stepping(self: MinimaxObjective, *arguments: Any) -> Any:
        if int(os.environ["RANK"]) == rank and next(taken) == step:
            if what == "an error":
                raise ZeroDivisionError("made up")
            if what == "no memory":
                torch.empty(2**50)
            os.kill(os.getpid(), signal.SIGKILL if what == "a kill" else signal.SIGTERM)
        return original(self, *arguments)

    MinimaxObjective.step = stepping  # type: ignore[method-assign]
    run_chain(folder)


def test_a_signal_to_one_process_stops_all_and_they_go_on_bit_for_bit(
    tmp_path: Path, runs: Callable[[int], Path]
) -> None:
    folder = write_chain(tmp_path, chain_config())
    assert together(2, disturbed, folder, 1, 3, "a signal") == [EXIT_INTERRUPTED] * 2
    assert list((folder / "round-0" / run_folder.CHECKPOINT).glob("*.ckpt"))
    assert not run_folder.is_committed(folder / "round-0")
    assert together(2, run_chain, folder) == [EXIT_DONE] * 2
    assert outcome(folder) == outcome(runs(2))
    assert run_folder.read_round(folder / "round-0").metrics["preemptions"] == 1


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_another_number_of_processes_goes_on(
    before: int, after: int, tmp_path: Path, runs: Callable[[int], Path]
) -> None:
    folder = write_chain(tmp_path, chain_config())
    assert together(before, disturbed, folder, 0, 4, "a signal") == [EXIT_INTERRUPTED] * before
    assert together(after, run_chain, folder) == [EXIT_DONE] * after
    assert_same_science(runs(1), folder)


def test_an_error_in_one_process_ends_all_and_is_recorded(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config())
    assert together(3, disturbed, folder, 1, 2, "an error") == [EXIT_ERROR] * 3
    failure = chain.read_failure(folder)
    assert failure is not None
    assert "process 1 on" in failure["error"]
    assert "ZeroDivisionError: made up" in failure["error"]


def stuck(folder: Path) -> None:
    """The chain, in which process 1 has an error while process 0 waits for its GPU, and groups do not close."""
    rank = int(os.environ["RANK"])

    def stepping(self: MinimaxObjective, *arguments: Any) -> Any:
        if rank == 1:
            raise ZeroDivisionError("made up")
        time.sleep(12)  # srun would end it when process 1 has left
        os._exit(9)

    MinimaxObjective.step = stepping  # type: ignore[method-assign]
    distributed.NOTICE_SECONDS, distributed.CLOSE_SECONDS = 2.0, 0.5
    torch.distributed.destroy_process_group = partial(time.sleep, 10_000)
    run_chain(folder)


def test_an_error_is_recorded_though_the_first_process_hangs_and_the_group_does_not_close(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config())
    assert together(2, stuck, folder) == [9, EXIT_ERROR]
    failure = chain.read_failure(folder)
    assert failure is not None
    assert failure["error"] == "ZeroDivisionError: made up"
    assert "in stepping" in failure["traceback"]


def test_under_nccl_a_group_is_aborted_before_it_is_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Destroying it waits for kernels, which wait for a process that has failed."""
    done: list[str] = []
    backend = SimpleNamespace(abort=lambda: done.append("aborted"))
    group = SimpleNamespace(_get_backend=lambda device: backend if device.type == "cuda" else None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("destroyed"))
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_group", lambda: group)
    for name, expected in (("cpu:gloo,cuda:nccl", ["aborted", "destroyed"]), ("cpu:gloo", ["destroyed"])):
        monkeypatch.setattr(torch.distributed, "get_backend_config", lambda name=name: name)
        distributed._close()
        assert done == expected
        done.clear()
    nccl = getattr(torch._C._distributed_c10d, "ProcessGroupNCCL", None)
    assert nccl is None or hasattr(nccl, "abort"), "torch calls it otherwise"


def collide(world: World, folder: Path) -> None:
    """An error of torch's own collectives is what the other process says that it had."""
    lost = DistBackendError("NCCL communicator was aborted")
    assert world.explained(lost) is lost
    world.most(0)  # nobody has told anything before both have asked
    if not world.main:
        world._store.set("error", "process 1 on n1: ValueError: made up")
    world.most(0)
    assert str(world.explained(lost)) == "process 1 on n1: ValueError: made up"
    error = ValueError("mine")
    assert world.explained(error) is error


def test_errors_of_torchs_own_collectives_are_explained(tmp_path: Path) -> None:
    assert together(2, joined, collide, tmp_path) == [0, 0]


def test_one_process_without_memory_ends_all_and_is_no_error_of_the_code(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config())
    assert together(2, disturbed, folder, 1, 2, "no memory") == [EXIT_OUT_OF_MEMORY] * 2
    assert chain.read_failure(folder) is None


def test_a_killed_process_ends_the_others_and_is_no_error_of_the_code(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config())
    assert together(2, disturbed, folder, 1, 2, "a kill") == [EXIT_ERROR, -signal.SIGKILL]
    assert chain.read_failure(folder) is None
    assert together(2, disturbed, folder, 0, 2, "a kill") == [-signal.SIGKILL, EXIT_ERROR]
    assert chain.read_failure(folder) is None


def test_all_processes_leave_a_chain_that_is_locked_or_has_failed_or_is_done(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config("initial=2"))
    with locked(folder):
        assert together(2, run_chain, folder) == [EXIT_LOCKED] * 2
    assert together(3, run_chain, folder) == [EXIT_ERROR] * 3
    failure = chain.read_failure(folder)
    assert failure is not None
    assert "3 processes cannot share a batch of 2 labelled images" in failure["error"]
    assert together(2, run_chain, folder) == [EXIT_ERROR] * 2
    chain.clear_failure(folder)
    assert together(2, run_chain, folder) == [EXIT_DONE] * 2
    assert together(3, run_chain, folder) == [EXIT_DONE] * 3


def test_without_sync_batch_norm_each_share_is_normalised_by_itself(
    tmp_path: Path, runs: Callable[[int], Path]
) -> None:
    folder = write_chain(tmp_path, chain_config("sync_batch_norm=false"))
    assert together(2, run_chain, folder) == [EXIT_DONE] * 2
    name = "round-0 task cross_entropy"
    assert losses(folder)[name] == pytest.approx(losses(runs(2))[name], rel=0.2)
    assert losses(folder)[name] != pytest.approx(losses(runs(2))[name], rel=1e-4)


def test_torchrun(tmp_path: Path, runs: Callable[[int], Path]) -> None:
    folder = write_chain(tmp_path, chain_config())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mal.chain"]
    done = subprocess.run([*command, folder], env=environment(), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert outcome(folder) == outcome(runs(2))
