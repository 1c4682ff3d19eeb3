"""What of the CUDA paths holds and how fast they are, on one GPU in at most eight minutes; each check by itself.

python -m benchmarks.gpu [--out DIR] [--seconds 450] [--device cuda|cpu] [--only NAME,NAME]        (or: make gpu)

Writes DIR/gpu.json after every check. `--device cpu` rehearses all that a CPU can run of it. Exit status: the number of
checks that failed; one that was left out for lack of time is named and fails nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu import arithmetic, processes, speed
from benchmarks.gpu.checks import Bench, run_all

CHECKS = (*arithmetic.CHECKS, *processes.CHECKS, *speed.CHECKS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_out"), help="folder of gpu.json (default gpu_out)")
    parser.add_argument("--seconds", type=float, default=450, help="for all checks (default 450)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    parser.add_argument("--only", default="", help="names of checks, separated by commas")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name]
    if unknown := set(names) - {function.__name__ for _, function in CHECKS}:
        known = ", ".join(function.__name__ for _, function in CHECKS)
        parser.error(f"--only={given.only}: {', '.join(sorted(unknown))} is unknown. Known: {known}.")
    with tempfile.TemporaryDirectory() as work:
        return run_all(CHECKS, Bench(given.device, Path(work)), given.out, given.seconds, names)


if __name__ == "__main__":
    sys.exit(main())
