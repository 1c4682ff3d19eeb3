"""The fault studies: everything that a cluster does to jobs, done to chains on a real Slurm at random moments.

    python -m tests.chaos [repeats=3] [seed=0] [only=FAULT,...] [out=FILE.md]      (make chaos)
    python -m tests.chaos mtbf=15 faults=N [seed=0] [minutes=M] [chains=4] [kinds=KIND,...] [out=DIR]
                          [reference=DIR]
    python -m tests.chaos table [out=DIR]

The first prints a table with a row for each fault: a sweep of `repeats` chains that is struck by it; `only` splits the
study into parts. The second strikes sweep after sweep with faults of all kinds, `mtbf` seconds apart in the mean,
until there were N, or for M minutes; a row for each fault and each chain goes to CSV files in DIR (docs/reliability),
so that several runs add up; `reference` keeps the undisturbed chains for the next. The third prints their summary.
Chains are compared, byte for byte, with those of the same seed that nothing happened to. Exit status 1 where a chain
differs, lost a round, or needed a person.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from mal.config.options import parse_options
from tests.chaos.cases import CASES, HEADER, study
from tests.chaos.records import Records
from tests.chaos.storm import run_storm
from tests.chaos.strikes import STRIKES
from tests.chaos.trial import ROUNDS, undisturbed

RECORDS = "docs/reliability"


def main(arguments: list[str]) -> int:
    """The command line."""
    try:
        if arguments[:1] == ["table"]:
            options = parse_options(arguments[1:], {"out": RECORDS})
            print(Records(Path(options["out"])).table())
            return 0
        if any(argument.startswith("mtbf=") for argument in arguments):
            return _storm(arguments)
        return _table(arguments)
    except ValueError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2


def _storm(arguments: list[str]) -> int:
    defaults = {"mtbf": "15", "faults": "100", "seed": "0", "minutes": "600", "chains": "4"}
    options = parse_options(arguments, defaults | {"kinds": "", "out": RECORDS, "reference": ""})
    kinds = _known("kinds", options["kinds"], list(STRIKES))
    records = Records(Path(options["out"]))
    seed, faults, seconds = int(options["seed"]), int(options["faults"]), 60 * float(options["minutes"])
    reference = Path(options["reference"]) if options["reference"] else None
    return run_storm(records, kinds, float(options["mtbf"]), faults, seconds, seed, int(options["chains"]), reference)


def _table(arguments: list[str]) -> int:
    options = parse_options(arguments, {"repeats": "3", "seed": "0", "only": "", "out": ""})
    seeds, rng = int(options["repeats"]), random.Random(int(options["seed"]))
    chosen = _known("only", options["only"], list(CASES))
    with tempfile.TemporaryDirectory(prefix="chaos-reference-") as folder:
        span = undisturbed(Path(folder), seeds)
        print(f"an undisturbed chain of {ROUNDS} rounds: {span:.1f} s", flush=True)
        outcomes = []
        for key in chosen:
            outcomes.append(study(CASES[key], Path(folder), span, seeds, rng))
            print(f"{outcomes[-1].row()}  {key}, {outcomes[-1].seconds:.0f} s", flush=True)
    table = "\n".join([HEADER, *(outcome.row() for outcome in outcomes)])
    print(f"\n{table}")
    if options["out"]:
        Path(options["out"]).write_text(table + "\n")
    bad = [o.name for o in outcomes if o.identical < o.chains or o.lost or o.by_hand or not o.injected]
    if bad:
        print(f"\nNot as it must be (or nothing was hit: another seed=): {'; '.join(bad)}", file=sys.stderr)
    return int(bool(bad))


def _known(key: str, text: str, known: list[str]) -> list[str]:
    """The words of an option, all of them where it is empty."""
    chosen = text.split(",") if text else known
    if wrong := sorted(set(chosen) - set(known)):
        raise ValueError(f"{key}={','.join(wrong)} unknown; allowed are {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
