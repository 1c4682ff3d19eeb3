"""Two chains on two cores: side by side with a thread each, as local sweeps run them, against one after the other.

python -m benchmarks.side_by_side
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import HEAD, arguments, chain, interleaved, row
from mal.config.frozen import save_chain
from mal.files import write_atomic
from mal.run import folder as run_folder

CHAINS = {
    "digits, small_cnn": ("dataset=digits", "rounds=1", "minimax.epochs=5", "task.epochs=5"),
    "digits, resnet18": ("dataset=digits", "backbone=resnet18", "rounds=1", "minimax.epochs=1", "task.epochs=1"),
}


def start(place: Path, number: int, overrides: tuple[str, ...], threads: int) -> subprocess.Popen[bytes]:
    """A chain's process, in a folder of its own."""
    folder = place / str(number)
    config = chain(*overrides, f"threads={threads}", "device=cpu")
    write_atomic(folder / run_folder.CONFIG, save_chain(config).encode())
    command = [sys.executable, "-m", "mal.chain", str(folder)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stderr=subprocess.DEVNULL)


def two_chains(overrides: tuple[str, ...], beside: bool) -> None:
    """Both at once with a thread each, or one after the other with two."""
    with tempfile.TemporaryDirectory() as place:
        if beside:
            processes = [start(Path(place), number, overrides, 1) for number in range(2)]
            assert [process.wait() for process in processes] == [0, 0]
        else:
            assert [start(Path(place), number, overrides, 2).wait() for number in range(2)] == [0, 0]


def main() -> None:
    given = arguments(__doc__)
    print(HEAD)
    for name, overrides in CHAINS.items():
        beside, in_turn = partial(two_chains, overrides, True), partial(two_chains, overrides, False)
        row(f"2 chains x 1 thread / 1 x 2, {name}", interleaved(beside, in_turn, max(2, given.repeats // 4), warm=0))


if __name__ == "__main__":
    main()
