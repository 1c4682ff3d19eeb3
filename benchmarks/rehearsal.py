"""ImageNet's size, rehearsed whole: made-up images in imagenet32's format, prepared, and the paper's rounds on them.

    python -m benchmarks.rehearsal --out /var/tmp/scale          1,281,167 images, five methods; 9 GB of disk, an hour
    python -m benchmarks.rehearsal --out DIR --images 100000     for the growth from there on
    python -m benchmarks.rehearsal --out DIR --faults            also kills the first chain and the report
    python -m benchmarks.rehearsal --out DIR --scanned 5000 --epochs 0.001      minutes: training and scans cut short

All but training is as large as in the paper: 1,000 classes, 5% of the labels at first and 5% bought per round. Training
is cut to a few hundred steps of a narrow network on crops of 16 pixels, and BALD to 5 passes; what a round would take
at the paper's epochs is by the rule of the launch's plan. Each part is timed in the chain's own process (parts.py).
What is there already is not done again, so that the command goes on where it was stopped. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.parts import run_timed
from mal.config.compose import compose_sweep
from mal.config.sizes import steps_of_round
from mal.process.start import THREAD_VARIABLES
from mal.run import folder as run_folder
from sweeps.bill import images_per_second
from sweeps.plan import freeze, reconcile, share_threads

SIDE, CELLS, BATCHES, ROUNDS = 32, 8, 10, 2
PASSES = 5  # of BALD
TRAINED = ("training", "scan")  # what may take as long as it takes
LIMIT = 0.05  # of a round at the paper's epochs, for any other part


@dataclass(frozen=True)
class Work:
    """One command beside the chains: seconds on the clock and of processors, memory at its peak (MiB)."""

    name: str
    seconds: float
    cpu: float
    mib: float


def make_images(folder: Path, counts: tuple[int, int], classes: int, seed: int = 0) -> None:
    """Write `counts` training and test images in the official pickles, train_data_batch_1 ... and val_data.

    An image is its class's picture, a colour with a pattern of 8x8 cells, half covered by noise.
    """
    rng = np.random.default_rng(seed)
    cells = rng.uniform(40, 215, (classes, 3, 1, 1)) + rng.normal(0, 60, (classes, 3, CELLS, CELLS))
    pictures = np.kron(np.clip(cells, 0, 255).astype(np.uint8) // 2, np.ones((1, 1, 4, 4), np.uint8))
    folder.mkdir(parents=True, exist_ok=True)
    parts = [len(part) for part in np.array_split(np.arange(counts[0]), BATCHES)]
    names = [f"train_data_batch_{number}" for number in range(1, BATCHES + 1)]
    for name, count in zip([*names, "val_data"], [*parts, counts[1]], strict=True):
        labels = rng.integers(0, classes, count)
        pixels = rng.integers(0, 128, (count, 3 * SIDE**2), dtype=np.uint8)
        pixels += pictures.reshape(classes, -1)[labels]
        with (folder / name).open("wb") as file:
            pickle.dump({"data": pixels, "labels": (labels + 1).tolist()}, file, protocol=4)


def overrides(given: argparse.Namespace) -> list[str]:
    """The sweep, as sweeps/launch.py takes it."""
    cut = [f"{phase}.epochs={given.epochs}" for phase in ("minimax", "task")]
    narrow = ["backbone=small_cnn", f"backbone.width={given.width}", f"dataset.crop={given.crop}", "task.lr=0.1"]
    passes = [f"method.passes={PASSES}"] if "bald" in given.methods else []
    return [*protocol(given), *narrow, *cut, *passes, f"runs={given.out}/runs", f"methods=[{given.methods}]"]


def protocol(given: argparse.Namespace) -> list[str]:
    """The paper's protocol on so many images."""
    sizes = [f"dataset.{key}={getattr(given, key)}" for key in ("classes", "test")]
    place = [f"data={given.out}/data", "loader=ffcv", "device=cpu", "threads=1", "seeds=1", f"rounds={ROUNDS}"]
    return ["dataset=imagenet32", f"dataset.train={given.images}", *sizes, *place]


def timed(name: str, *command: str | Path, log: Path, **variables: str) -> Work:
    """Run a command of this Python to its end, its output to `log`."""
    began = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=output, stderr=subprocess.STDOUT, env=environment(**variables)
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} ended with status {process.returncode}: {log}")
    return Work(name, time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def environment(**variables: str) -> dict[str, str]:
    """One thread per library, as a chain of one core has it."""
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "OMP_WAIT_POLICY": "PASSIVE", **variables}


def prepare(given: argparse.Namespace) -> None:
    """The images and their prepared copy, where they are not there yet."""
    source, works = given.out / "data" / "imagenet32", given.out / "works.jsonl"
    if not (source / "val_data").is_file():
        began, cpu = time.monotonic(), time.process_time()
        make_images(source, (given.images, given.test), given.classes)
        note(works, Work("making up the images", time.monotonic() - began, time.process_time() - cpu, 0))
    if not (given.out / "data" / "prepared").is_dir():
        keys = [word for word in protocol(given) if word.startswith(("dataset", "data="))]
        note(works, timed("prepare", "-m", "mal.data.prepare", *keys, "workers=1", log=given.out / "prepare.log"))
    if not (given.out / "launch.log").is_file():
        words = ("sweeps/launch.py", *overrides(given), "cluster=local", "dry_run=true")
        note(works, timed("plan of a launch", *words, log=given.out / "launch.log"))


def note(path: Path, work: Work) -> None:
    """Append a line."""
    with path.open("a") as lines:
        lines.write(json.dumps(dataclasses.asdict(work)) + "\n")


def run_chains(given: argparse.Namespace) -> list[Path]:
    """The chains of the sweep, `--at-once` at a time; their folders."""
    plans = reconcile(compose_sweep(overrides(given)))
    share_threads(plans, 1)
    freeze(plans)
    folders = [plan.folder for plan in plans]
    waiting, running = [plan.folder for plan in plans if plan.to_run], []
    try:
        while waiting or running:
            while waiting and len(running) < given.at_once:
                running.append(start(given, waiting.pop(0)))
            time.sleep(0.5)
            for process in [process for process in running if process.poll() is not None]:
                running.remove(process)
                if process.returncode:
                    raise SystemExit(f"a chain ended with status {process.returncode}: {given.out}/*.log")
    finally:
        for process in running:  # of sessions of their own, as a launcher's
            process.kill()
    return folders


def start(given: argparse.Namespace, chain: Path, kill: str = "") -> subprocess.Popen[bytes]:
    """A chain in a process of its own, which takes its parts down in OUT/METHOD.jsonl."""
    name = "killed" if "killed" in chain.parts else chain.parent.name
    command = [sys.executable, "-m", "benchmarks.rehearsal", "--out", str(given.out), "--chain", str(chain)]
    command += ["--kill", kill, "--scanned", str(given.scanned)]
    with (given.out / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)


def faults(given: argparse.Namespace, chain: Path) -> str:
    """Kill a twin of the chain in its selection, where that takes long, and in its commit, and compare."""
    kills = ("select", "commit") if chain.parent.name == "coreset" else ("commit",)
    twin = given.out / "killed" / chain.relative_to(given.out / "runs")
    if not twin.is_dir():
        twin.mkdir(parents=True)
        shutil.copy(chain / run_folder.CONFIG, twin)
        ended = [start(given, twin, kill).wait() for kill in (*kills, "")]
        assert ended == [*(-9 for _ in kills), 0], ended
    same = [results(a) == results(b) for a, b in zip(*map(run_folder.round_folders, (chain, twin)), strict=True)]
    assert all(same), same
    return f"{len(same)} rounds of {chain.parent.name} after SIGKILL in {' and '.join(kills)}: byte-identical"


def results(folder: Path) -> dict[str, object]:
    """What a committed round says, without what time and place it was made at."""
    metrics = run_folder.read_round(folder).metrics
    found = {key: value for key, value in metrics.items() if key not in ("seconds", "preemptions", "floor")}
    names = (run_folder.LABELED, run_folder.QUERY, run_folder.HISTORY)
    return found | {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def report(given: argparse.Namespace) -> list[Work]:
    """The curves and the status of the sweep."""
    at = f"runs={given.out}/runs"
    log = given.out / "report.log"
    curves = timed("curves and report", "analysis/curves.py", at, f"out={given.out}/figures", log=log)
    return [curves, timed("status", "sweeps/status.py", at, log=log)]


def kill_report(given: argparse.Namespace, seconds: float) -> str:
    """SIGKILL at three moments of the report; written again, it must be what it was."""
    folder = given.out / "figures-killed"
    command = [sys.executable, "analysis/curves.py", f"runs={given.out}/runs", f"out={folder}"]
    for share in (0.6, 0.75, 0.9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
        time.sleep(share * seconds)
        process.kill()
        process.wait()
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment(), check=True)
    first, second = (contents(given.out / name) for name in ("figures", "figures-killed"))
    assert first == second, [name for name in first | second if first.get(name) != second.get(name)]
    return f"{len(first)} files of the report after three SIGKILLs: byte-identical"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_parts(path: Path) -> dict[str, list[float]]:
    """Of each part: own seconds, processor seconds and calls, summed over the chain's rounds, and the largest MiB."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0])
    for line in path.read_text().splitlines():
        part = json.loads(line)
        row = sums[part["name"]]
        row[:] = [row[0] + part["own"], row[1] + part["cpu"], max(row[2], part["mib"]), row[3] + 1]
    return sums


def tables(given: argparse.Namespace, chains: Sequence[Path], works: Sequence[Work]) -> str:
    """The rehearsal's tables in Markdown."""
    lines = [f"{given.images:,} images", "", "| command | s | processor s | MiB |", "|---|---|---|---|"]
    lines += [f"| {work.name} | {work.seconds:,.1f} | {work.cpu:,.1f} | {work.mib:,.0f} |" for work in works]
    head = ("method", "part", "calls", "s", "processor s", "MiB", "of a round at 224 pixels", "at 32 pixels")
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for chain in chains:
        method = chain.parent.name
        rounds = paper_rounds(given, method)
        for name, (own, cpu, mib, calls) in read_parts(given.out / f"{method}.jsonl").items():
            counted = ROUNDS - (name == "choosing")  # the last round of a chain asks for nothing
            shares = ["" if name.startswith(TRAINED) else share(cpu / counted / whole) for whole in rounds]
            lines.append(
                f"| {method} | {name} | {calls} | {own:,.1f} | {cpu:,.1f} | {mib:,.0f} | {' | '.join(shares)} |"
            )
    lines += ["", "| file of a round | bytes |", "|---|---|"]
    for path in sorted(run_folder.round_folder(chains[0], 0).iterdir()):
        lines.append(f"| {path.name} | {path.stat().st_size:,} |")
    return "\n".join(lines)


def share(part: float) -> str:
    """In percent, and whether it is more than a part may take."""
    return f"{100 * part:.2f}%" + (" TOO MUCH" if part > LIMIT else "")


def paper_rounds(given: argparse.Namespace, method: str) -> list[float]:
    """Seconds of round 0 at the paper's epochs on one GPU by the rule of the launch's plan, at 224 and 32 pixels."""
    seconds = []
    for dataset in ("imagenet", "imagenet32"):
        words = [f"dataset={dataset}", f"dataset.train={given.images}", f"dataset.test={given.test}"]
        chain = compose_sweep([*words, f"methods=[{method}]"]).chains[0]
        images = sum(steps * each for steps, each in steps_of_round(chain, 0, given.images).values())
        seconds.append(images / (images_per_second(chain) or np.nan))
    return seconds


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=lambda word: Path(word).absolute(), required=True, help="folder of everything")
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--test", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=8, help="of small_cnn, whose features are four times as many")
    parser.add_argument("--crop", type=int, default=16, help="pixels of the 32 that networks see")
    parser.add_argument("--epochs", type=float, default=0.05, help="of each training, of the pool")
    parser.add_argument("--methods", default="coreset,mal,bald,entropy,random")
    parser.add_argument("--at-once", type=int, default=2, help="chains at a time")
    parser.add_argument("--scanned", type=int, default=0, help="images of the pool that scans see; 0 (default): all")
    parser.add_argument("--faults", action="store_true", help="kill the first method's chain and the report too")
    parser.add_argument("--chain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Prepare, run, report, kill, print."""
    given = arguments()
    if given.chain:
        name = "killed" if "killed" in given.chain.parts else given.chain.parent.name
        run_timed(given.chain, given.out / f"{name}.jsonl", given.kill, given.scanned)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    prepare(given)
    chains = run_chains(given)
    works = [Work(**json.loads(line)) for line in (given.out / "works.jsonl").read_text().splitlines()]
    works += report(given)
    print(tables(given, chains, works), flush=True)
    if given.faults:
        print(faults(given, chains[0]))
        print(kill_report(given, next(work.seconds for work in works if work.name.startswith("curves"))))


if __name__ == "__main__":
    main()
