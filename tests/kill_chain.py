"""A chain killed with SIGKILL at random moments and run again until done, against one that nothing happened to.

    python -m tests.kill_chain --kills 20

Moments are drawn in turn inside training, scoring, checkpointing and committing: after a random time in the phase, or
just before a random one of its file operations. Each attempt is a new process that runs mal.chain; its process image,
with torch loaded, is copied by fork, so that no time goes into imports. --fresh starts `python -m mal.chain` each time
instead, killed after a random time wherever it then is. Exit status 0 if every round's labeled.npy, query.npy and
metric values are byte-identical to the undisturbed chain's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.chain import run_chain
from mal.config.schema import Chain
from mal.files import write_atomic
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from tests.chains import chain_config, environment, outcome, write_chain

KINDS = ("training", "scoring", "checkpointing", "committing")
CONFIG = ("rounds=3", "minimax.epochs=2", "task.epochs=2", "checkpoint_minutes=0.002")
LONGEST = {"training": 0.5, "scoring": 0.05}  # seconds after the phase began
OPERATIONS = {"checkpointing": 12, "committing": 28}  # file operations to choose from


@dataclass
class Fate:
    """Where the process is to die: after `wait` seconds in a phase, or at a file operation of a kind of write."""

    kind: str
    phases: tuple[str, ...]
    wait: float
    operation: int
    note: Path

    def install(self) -> None:
        """From now on this process watches its own file operations, through which it knows where it is."""
        self.armed, self.phase = False, "start"
        sys.addaudithook(self._at)

    def _at(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "shutil.rmtree"):
            return
        path = str(arguments[1] if event == "os.rename" else arguments[0])
        if event == "os.rename" and path.endswith(run_folder.PROGRESS):
            self.phase = json.loads(Path(arguments[0]).read_text())["phase"]
            if self.phase in self.phases and not self.armed:
                self.armed = True
                threading.Timer(self.wait, self._die).start()
        elif self.kind in OPERATIONS and self._belongs(path):
            self.operation -= 1
            if self.operation < 0:
                self._die(f"before {event} of {Path(path).name}")

    def _belongs(self, path: str) -> bool:
        if self.kind == "checkpointing":
            return ".ckpt" in path
        return self.phase == "commit" and "round-" in path and run_folder.PROGRESS not in path

    def _die(self, where: str = "") -> None:
        self.kind = ""  # the note is no file operation of the chain
        text = f"{self.phase}, {where or f'{1000 * self.wait:.0f} ms after {self.phases[0]} began'}"
        descriptor = os.open(self.note, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, text.encode())
        os.kill(os.getpid(), signal.SIGKILL)


def draw(kind: str, chooser: random.Random, note: Path) -> Fate:
    """A random moment of a kind."""
    phases = {"training": ("minimax", "task"), "scoring": ("score", "evaluate")}.get(kind, ())
    return Fate(
        kind=kind,
        phases=(chooser.choice(phases),) if phases else (),
        wait=chooser.uniform(0, LONGEST.get(kind, 0)),
        operation=chooser.randrange(OPERATIONS.get(kind, 1)),
        note=note,
    )


def forked(folder: Path, fate: Fate) -> int:
    """One attempt in a copy of this process; its wait status."""
    child = os.fork()
    if child == 0:
        fate.install()
        run_chain(folder, None, Interrupt())
        os._exit(0)
    return os.waitpid(child, 0)[1]


def fresh(folder: Path, seconds: float) -> int:
    """One attempt by `python -m mal.chain`, killed after some seconds; its exit status as waitpid has it."""
    process = subprocess.Popen([sys.executable, "-m", "mal.chain", str(folder)], env=environment())
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return signal.SIGKILL


def state(folder: Path) -> str:
    """Where the chain is, seen from outside."""
    number = run_folder.committed_rounds(folder)
    place = run_folder.round_folder(folder, number)
    written = sorted(path.name for path in place.glob("*.*") if path.is_file() and not path.name.startswith("."))
    saved = sorted(path.name for path in place.glob("checkpoint/*.ckpt"))
    left = [f.name for f in run_folder.round_folders(folder)[:number] if (f / run_folder.CHECKPOINT).exists()]
    parts = [f"{number} rounds committed"]
    parts += [f"checkpoints {', '.join(saved)}"] if saved else []
    parts += [f"uncommitted {', '.join(written)}"] if written else []
    parts += [f"working state left in {', '.join(left)}"] if left else []
    return "; ".join(parts)


def torment(folder: Path, kills: int, seed: int, start_afresh: bool) -> Counter[str]:
    """Run the chain until done, killing it `kills` times; prints each death, returns how many of each kind.

    A chain that is done before all its deaths is moved aside, checked later like the last, and begun anew.
    """
    chooser, deaths = random.Random(seed), Counter[str]()
    note = folder.parent / "died"
    while True:
        kind = KINDS[sum(deaths.values()) % len(KINDS)] if not start_afresh else "anywhere"
        if sum(deaths.values()) == kills:
            fate = Fate("training", (), 0.0, 0, note)  # no phase: it lives
            status = forked(folder, fate)
        elif start_afresh:
            status = fresh(folder, chooser.uniform(2, 12))
        else:
            status = forked(folder, draw(kind, chooser, note))
        if status == signal.SIGKILL:
            deaths[kind] += 1
            where = note.read_text() if note.exists() else ""
            note.unlink(missing_ok=True)
            print(f"{sum(deaths.values()):3}  {kind:14} {where:52} {state(folder)}", flush=True)
        elif status != 0:
            raise SystemExit(f"an attempt ended with status {status}")
        elif sum(deaths.values()) < kills:
            aside = folder.with_name(f"{folder.name}-{len(list(folder.parent.iterdir()))}")
            folder.rename(aside)
            write_atomic(folder / run_folder.CONFIG, (aside / run_folder.CONFIG).read_bytes())
        else:
            return deaths


def differences(folder: Path, undisturbed: Path) -> list[str]:
    """What of the chain is not the undisturbed one's."""
    found, expected = outcome(folder), outcome(undisturbed)
    wrong = [f"{folder.name}: rounds {sorted(found)}"] if found.keys() != expected.keys() else []
    for number in sorted(expected.keys() & found.keys()):
        wrong += [f"{folder.name}/{number}: {key}" for key, v in expected[number].items() if found[number][key] != v]
    return wrong


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--method", default="mal")
    parser.add_argument("--fresh", action="store_true", help="a new interpreter for each attempt")
    options = parser.parse_args()
    config: Chain = chain_config(*CONFIG, method=options.method)
    with tempfile.TemporaryDirectory() as place:
        undisturbed = write_chain(Path(place, "undisturbed"), config)
        began = time.monotonic()
        run_chain(undisturbed, None, Interrupt())
        print(f"undisturbed: {config.rounds} rounds in {time.monotonic() - began:.1f} s", flush=True)
        folder = write_chain(Path(place, "killed"), config)
        deaths = torment(folder, options.kills, options.seed, options.fresh)
        chains = [path.parent for path in folder.parent.glob(f"*/{run_folder.CONFIG}")]
        wrong = [line for chain in chains for line in differences(chain, undisturbed)]
    print(
        f"{sum(deaths.values())} kills ({', '.join(f'{n} {kind}' for kind, n in deaths.items())}), {len(chains)} chains"
    )
    print("\n".join(wrong) or "byte-identical: labeled.npy, query.npy, metric values, histories of losses")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
