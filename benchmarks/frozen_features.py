"""Heads on the features of a frozen encoder at ImageNet's size: seconds and memory of each part of each round.

    python -m benchmarks.frozen_features --folder /var/tmp/frozen --make          # 1,281,167 x 512 made-up features
    python -m benchmarks.frozen_features --folder /var/tmp/frozen --method coreset --until 1
    python -m benchmarks.frozen_features --folder /var/tmp/frozen --table

A run goes on where the one before ended. Seconds are those of the processor and of the clock; on two idle cores the
latter are the less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mal.config.compose import compose_sweep
from mal.config.frozen import save_chain
from mal.files import atomic_file, write_atomic
from mal.run import folder as run_folder
from mal.run.heartbeat import read_progress

POOL, TEST, CLASSES, FAMILIES, LATENT, WIDTH = 1_281_167, 50_000, 1000, 100, 64, 512
BUDGET, ROUNDS = 64_058, 4
RECIPE = ("minimax.epochs=1", "minimax.batch=512", "task.epochs=3", "task.batch=512")
LOOK_SECONDS = 0.5


def make(folder: Path) -> None:
    """Features with a structure of classes: families of ten, in 64 dimensions, seen through a random layer of ReLUs."""
    random = np.random.default_rng(0)
    families = 0.75 * random.standard_normal((FAMILIES, LATENT))
    centres = families.repeat(CLASSES // FAMILIES, axis=0) + 0.35 * random.standard_normal((CLASSES, LATENT))
    layer = random.standard_normal((LATENT, WIDTH)).astype(np.float32) / 8
    for part, count in (("train", POOL), ("test", TEST)):
        labels = random.integers(0, CLASSES, count)
        with atomic_file(folder / f"{part}.npy") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (count, WIDTH)}
            np.lib.format.write_array_header_1_0(file, header)
            for first in range(0, count, 2**16):
                codes = centres[labels[first : first + 2**16]]
                codes = (codes + random.standard_normal(codes.shape)).astype(np.float32)
                file.write(np.maximum(codes @ layer, 0).astype(np.float16).tobytes())
        with atomic_file(folder / f"{part}_labels.npy") as file:
            np.save(file, labels)


def chain_of(folder: Path, method: str) -> Path:
    """The folder of a method's chain, its configuration written."""
    arguments = [
        "dataset=own_features",
        f"features={folder}",
        f"methods=[{method}]",
        "seeds=1",
        f"rounds={ROUNDS}",
        *RECIPE,
    ]
    arguments += [f"initial={BUDGET}", f"budget={BUDGET}", "floor=off", "threads=2", f"data={folder}", "name=frozen"]
    (config,) = compose_sweep([*arguments, f"runs={folder / 'runs'}"]).chains
    chain = run_folder.chain_folder(config.runs, config.name, method, 0)
    if not (chain / run_folder.CONFIG).is_file():
        write_atomic(chain / run_folder.CONFIG, save_chain(config).encode())
    return chain


def run(folder: Path, method: str, until: int) -> int:
    """The chain up to a round, watched: each look's seconds are those of the phase that its heartbeat names."""
    chain = chain_of(folder, method)
    parts: dict[tuple[int, str], dict[str, float]] = defaultdict(lambda: {"cpu": 0.0, "clock": 0.0, "mib": 0.0})
    process = subprocess.Popen([sys.executable, "-m", "mal.chain", str(chain), "--until", str(until)])
    watched, cpu, clock = psutil.Process(process.pid), 0.0, time.monotonic()
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        number = min(run_folder.committed_rounds(chain), until - 1)
        phase = (read_progress(run_folder.round_folder(chain, number)) or {}).get("phase", "start")
        try:
            times, memory = watched.cpu_times(), watched.memory_full_info()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        now, used = time.monotonic(), times.user + times.system
        part = parts[number, phase]
        part["cpu"], part["clock"] = part["cpu"] + used - cpu, part["clock"] + now - clock
        part["mib"] = max(part["mib"], memory.uss / 2**20)  # without the mapped features, which are the page cache's
        cpu, clock = used, now
    with (folder / "parts.jsonl").open("a") as file:
        for (number, phase), part in parts.items():
            file.write(json.dumps({"method": method, "round": number, "phase": phase, **part}) + "\n")
    return process.returncode


def table(folder: Path) -> str:
    """Markdown: a line for each part of each round."""
    sums: dict[tuple[str, int, str], dict[str, Any]] = {}
    for line in (folder / "parts.jsonl").read_text().splitlines():
        part = json.loads(line)
        key = part["method"], part["round"], part["phase"]
        before = sums.get(key, {"cpu": 0.0, "clock": 0.0, "mib": 0.0})
        added = {name: before[name] + part[name] for name in ("cpu", "clock")}
        sums[key] = {**added, "mib": max(before["mib"], part["mib"])}
    rows = [
        "| method | round | part | s of processor | s of clock | MiB of its own, peak |",
        "|---|---|---|---|---|---|",
    ]
    for (method, number, phase), part in sums.items():
        rows.append(f"| {method} | {number} | {phase} | {part['cpu']:.0f} | {part['clock']:.0f} | {part['mib']:,.0f} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--method")
    parser.add_argument("--until", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.folder)
    if arguments.method:
        return run(arguments.folder, arguments.method, arguments.until)
    if arguments.table:
        print(table(arguments.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
