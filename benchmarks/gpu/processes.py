"""Whole chains on a GPU: killed and resumed, two processes, GPUs that are not found, sweeps that share one."""

from __future__ import annotations

import json
import pickle
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.gpu.checks import Bench, Found
from mal.config.frozen import save_chain
from mal.files import write_atomic
from mal.process.distributed import World
from mal.process.interrupt import EXIT_INTERRUPTED
from mal.process.sync_batch_norm import synchronise
from mal.run import folder as run_folder
from tests.chains import losses, outcome

CHAIN = ("-m", "mal.chain")
Case = tuple[str, tuple[str, ...]]  # a method and the keys of a chain
SHORT = ("rounds=2", "checkpoint_minutes=0.05", "threads=4")
# Two processes of one GPU by gloo, which NCCL would refuse.
GLOO = """
import torch.distributed as dist
start = dist.init_process_group
dist.init_process_group = lambda backend, **options: start("gloo", **options)
import mal.process.device as device
device.refuse_shared = lambda places: None
import mal.chain as chain
from mal.process.distributed import leave
leave(chain.main())
"""

# A chain on a CPU that repeats recorded steps as a CUDA graph would.
REPLAYED = """
import os
import sys
sys.path.insert(0, os.getcwd())
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import mal.process.device as device
from tests.training.replaying import replay_on_the_cpu
device._check_graphs = lambda *_: None
replay_on_the_cpu()
import mal.chain as chain
from mal.process.distributed import leave
leave(chain.main())
"""


def write(bench: Bench, name: str, *words: str, method: str = "mal") -> Path:
    """A chain's folder with its configuration."""
    config = bench.chain(f"name={name}", *words, method=method)
    folder = run_folder.chain_folder(bench.work / name, name, config.method["name"], 0)
    write_atomic(folder / run_folder.CONFIG, save_chain(config).encode())
    return folder


def run(
    bench: Bench, folder: Path, kill: int = 0, after: float = 0.0, start: Sequence[str | Path] = CHAIN, **variables: str
) -> int:
    """One process of the chain, to its end; kill: a signal, so many seconds after this process has begun to train."""
    before = _beats(folder)
    with bench.process([sys.executable, *start, folder], folder / "log.txt", **variables) as process:
        if kill:
            while process.poll() is None and not any(beat["step"] > 3 for beat in _beats(folder) if beat not in before):
                time.sleep(0.02)
            time.sleep(after)
            process.send_signal(kill)
        return process.wait()


def _beats(folder: Path) -> list[dict[str, Any]]:
    """What its rounds at work have told of themselves last."""
    return [json.loads(path.read_text()) for path in folder.glob("round-*/checkpoint/progress.json")]


def tail(folder: Path) -> str:
    """The end of a chain's log."""
    return (folder / "log.txt").read_text()[-800:]


def write_cifar(folder: Path) -> None:
    """CIFAR100's files with noise, 2,000 and 500 images."""
    for part, count in (("train", 2000), ("test", 500)):
        target = folder / "cifar-100-python" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        data = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
        target.write_bytes(pickle.dumps({"data": data, "fine_labels": (np.arange(count) % 100).tolist()}))


def killed_chains_equal_undisturbed_ones(bench: Bench) -> Found:
    """Told to stop, then killed, then run to its end: the bytes of a chain that nothing happened to."""
    cases: dict[str, Case] = {"drn": ("mal", ("dataset=digit_scenes", *bench.epochs(1, 1), *SHORT))}
    if bench.cuda:
        cifar = small_cifar(bench)
        cases["vgg16"] = ("mal", (*cifar, "backbone=vgg16_bn", *bench.epochs(6, 12)))
        cases["resnet18_bf16"] = ("coreset", (*cifar, "precision=bf16", "task.epochs=20"))
        cases["vaal"] = ("vaal", (*cifar, "task.epochs=8", "method.epochs=6"))
    return killed(bench, cases)


def killed_chains_of_cuda_graphs_equal_undisturbed_ones(bench: Bench) -> Found:
    """The same with cuda_graphs=true; in a rehearsal by an emulation."""
    start: Sequence[str | Path] = CHAIN
    digits = ("dataset=digits", f"task.epochs={200 if bench.cuda else 20}", "cuda_graphs=true", *SHORT)
    if not bench.cuda:
        (script := bench.work / "replayed.py").write_text(REPLAYED)
        start, digits = (script,), (*digits, "device=auto")
    cases: dict[str, Case] = {"small_cnn_graphs": ("bald", digits)}
    if bench.cuda:
        words = (*small_cifar(bench), "precision=bf16", "minimax.epochs=40", "task.epochs=80", "cuda_graphs=true")
        cases["resnet18_bf16_graphs"] = ("mal", words)
        cases["vgg16_graphs"] = ("mal", (*words, "backbone=vgg16_bn", "precision=fp32"))
    return killed(bench, cases, start)


def small_cifar(bench: Bench) -> tuple[str, ...]:
    """The keys of short chains on 2,000 images of noise, with ResNet18."""
    data = bench.work / "data"
    write_cifar(data)
    few = ("dataset.train=2000", "dataset.test=500", "initial=200", "budget=100")
    return f"data={data}", "dataset=cifar100", "backbone=resnet18", *few, *SHORT


def killed(bench: Bench, cases: Mapping[str, Case], start: Sequence[str | Path] = CHAIN) -> Found:
    """Chains stopped and killed, each against one that was not; the cases side by side, as starting takes the time."""
    pairs = {
        name: [write(bench, f"{name}_{how}", *words, method=method) for how in ("calm", "shaken")]
        for name, (method, words) in cases.items()
    }
    bench.side_by_side([partial(_killed, bench, name, *pair, start) for name, pair in pairs.items()])
    return {}


def _killed(bench: Bench, name: str, calm: Path, shaken: Path, start: Sequence[str | Path]) -> None:
    began = time.monotonic()
    assert run(bench, calm, start=start) == 0, tail(calm)
    seconds = round(time.monotonic() - began, 1)
    ends = [run(bench, shaken, signal.SIGTERM, 0.3, start), run(bench, shaken, signal.SIGKILL, 0.8, start)]
    ends.append(run(bench, shaken, start=start))
    assert ends[-1] == 0, tail(shaken)
    assert ends[:2] == [EXIT_INTERRUPTED, -signal.SIGKILL], f"{name} had ended before it was killed: {ends}"
    assert outcome(calm) == outcome(shaken), f"{name} differs"
    committed = run_folder.read_round(calm / "round-1")
    assert committed.metrics["gpus"] == int(bench.cuda), committed.metrics["gpus"]
    memory = {key: value for key, value in committed.provenance.items() if key.endswith("_mib")}
    bench.told[name] = {"undisturbed_s": seconds, "exit_statuses": ends, **memory}


def one_process_group(bench: Bench) -> Found:
    """World's collectives on tensors of the device, alone in their group: types, shapes, layouts."""
    backend = "cpu:gloo,cuda:nccl" if bench.cuda else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        world, device = World(0, 1), torch.device(bench.kind)
        world._alone, world._store, world._control = False, dist.HashStore(), dist.new_group(backend="gloo")
        layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        network = synchronise(layers, world, cuda=bench.cuda).to(device, memory_format=torch.channels_last)
        world.align([network])
        images = torch.randn(4, 3, 8, 8, device=device)
        network(images).square().mean().backward()
        before = [parameter.grad.clone() for parameter in network.parameters()]
        world.sum_gradients(network.parameters())
        for was, parameter in zip(before, network.parameters(), strict=True):
            assert torch.equal(was, parameter.grad)
            assert was.stride() == parameter.grad.stride()
        assert world.most(3, True) == [3, 1]
        assert world.once(lambda: 5) == 5
        assert int(world.sum(torch.tensor(7, device=device))) == 7
        assert world.gather(images).shape == (1, 4, 3, 8, 8)
        assert world.sum_losses({"a": torch.tensor(1.0, device=device)})["a"] == 1
    finally:
        dist.destroy_process_group()
    return {}


def together(bench: Bench, folder: Path, *start: str) -> tuple[int, str]:
    """The chain in two processes; the exit status of torchrun and what they said."""
    words = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", *(start or CHAIN))
    status, said = bench.ended([sys.executable, "-m", *words, folder], OMP_NUM_THREADS="4")
    return status, said[-3000:]


def two_processes_on_one_gpu(bench: Bench) -> Found:
    """By gloo they learn what one process learns, to rounding; by NCCL they are refused, saying what is wrong."""
    # In TF32 halves of a batch may be convolved by other kernels than the whole, which differ by more than rounding.
    epochs = ("minimax.epochs=0.3", "task.epochs=0.3", "threads=2", "tf32=false")
    words = ("dataset=digits", "rounds=2", "initial=20", "budget=20", *epochs)
    alone, both, shared = (write(bench, name, *words) for name in ("alone", "both", "shared"))
    assert run(bench, alone) == 0, tail(alone)
    script = bench.work / "by_gloo.py"
    script.write_text(GLOO)
    status, said = together(bench, both, str(script))
    assert status == 0, said
    found, expected = losses(both), losses(alone)
    pairs = [(a, b) for name in expected for a, b in zip(found[name], expected[name], strict=True)]
    far = [abs(a - b) / max(abs(b), 1e-3) for a, b in pairs]
    told = bench.told
    told |= {"relative_difference_of_losses": max(far), "of_the_first": far[0]}
    assert max(far) < 5e-2, {name: (found[name][:3], expected[name][:3]) for name in expected}
    if bench.cuda:
        began = time.monotonic()
        status, said = together(bench, shared)
        told |= {"refused_after_s": round(time.monotonic() - began, 1), "status": status}
        assert status != 0, "two processes shared a GPU"
        assert "processes share a GPU" in said, said
    return {}


def a_gpu_that_torch_does_not_find_is_named(bench: Bench) -> Found:
    """A process that has been given a GPU and sees none does not train on the CPU."""
    folder = write(bench, "blind", "dataset=digits", "device=auto", "rounds=1", "task.epochs=0.1", method="random")
    job = {"CUDA_VISIBLE_DEVICES": "-1", "SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "1"}
    assert run(bench, folder, **job) != 0, "it trained on the CPU without a word"
    assert "gives GPUs, and torch" in tail(folder), tail(folder)
    assert not (folder / "round-0" / run_folder.FAILED).exists(), "recorded as an error of the code"
    return {}


def local_sweeps_share_the_gpu(bench: Bench) -> Found:
    """One chain, and four at a time, launched: seconds of each, start-up and all."""
    told = bench.told.setdefault("seconds_of_sweeps", {})
    for chains in (1, 4):
        keys = ["dataset=digits", f"seeds={chains}", "methods=[mal]", "rounds=2", "cluster=local", "threads=1"]
        keys += [*bench.epochs(5, 5), f"device={bench.kind}", f"cluster.workers={chains}"]
        keys += [f"runs={bench.work / f'sweep{chains}'}"]
        began, command = time.monotonic(), [sys.executable, "sweeps/launch.py", *keys]
        status, said = bench.ended(command)
        assert status == 0, said[-800:]
        told[f"{chains} at a time"] = round(time.monotonic() - began, 1)
    bench.told["throughput of four / of one"] = round(4 * told["1 at a time"] / told["4 at a time"], 2)
    return {}


def tests_that_need_a_gpu(bench: Bench) -> Found:
    """Those with the marker `gpu`; they are skipped in a rehearsal."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/training/test_gpu_steps.py",
    ]
    status, said = bench.ended(command)
    assert status == 0, said[-1500:]
    assert not bench.cuda or "skipped" not in said, said[-1500:]
    return {"said": said.strip().splitlines()[-1]}
