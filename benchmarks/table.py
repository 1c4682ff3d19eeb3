"""Every benchmark in a form that fits ten minutes on two quiet cores: one table of ratios.

python -m benchmarks.table [--threads 1 --clock cpu]        (or: make bench)
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.measure import arguments

RATIOS = ("training", "scanning", "whole_round", "startup", "side_by_side")
# Scripts with options of their own.
OTHERS = {"acquisition": ("--quick",), "loaders": ("--quick",)}


def main() -> None:
    given = arguments(__doc__)
    began = time.monotonic()
    options = ("--repeats", str(given.repeats), "--threads", str(given.threads), "--clock", given.clock)
    commands = dict.fromkeys(RATIOS, options) | OTHERS
    failed = []
    for name, words in commands.items():
        print(f"== {name}.py {' '.join(words)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], check=False).returncode:
            failed.append(name)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes{'; failed: ' + ', '.join(failed) if failed else ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
