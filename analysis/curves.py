"""From runs to a paper's curves, figures, tables and report.

Run it as `python analysis/curves.py [runs=DIR] [name=NAME] [out=figures]`; `--help` explains each key.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

try:
    from mal.packages import REPORTS, require

    require(REPORTS)
except ImportError as error:
    sys.exit(
        f"curves.py: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

from analysis.options import HELP, Options, hint, parse, sweeps_of, wants_help
from mal.files import run_command, storage_fails

if TYPE_CHECKING:
    from analysis.reading import Runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when every report asked for is written, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if wants_help(arguments):
        print(HELP, end="")
        return 0
    try:
        options = parse(arguments)
        reports = reports_of(options)
        for name, sweeps in reports:
            write(options, name, sweeps, optional=not options.names and len(reports) > 1)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # of `| head`
            raise
        print(f"error: {storage_fails(error)}", file=sys.stderr)
        return 2
    return 0


def reports_of(options: Options) -> list[tuple[str, tuple[str, ...]]]:
    """Name and sweeps of each report to write. Raises ValueError where a sweep or the runs folder is not there."""
    known = sweeps_of(options.runs, options.names)
    if options.names:
        return [("+".join(options.names), options.names)]
    return [(name, (name,)) for name in known]


def write(options: Options, name: str, sweeps: tuple[str, ...], optional: bool = False) -> None:
    """Read the sweeps and write OUT/NAME.

    optional: a sweep without a committed round is passed over with a line; else it is a ValueError.
    """
    from analysis import report
    from analysis.reading import load

    began = time.perf_counter()
    runs = only(load(options.runs, sweeps), options.methods)
    if runs.rounds.empty:
        errors = "".join(f" {chain.label} failed: {chain.failed[1]}." for chain in runs.chains if chain.failed)
        errors += "".join(f" {finding.text}" for finding in runs.findings)
        message = (
            f"{name}: none of its {len(runs.chains)} chains has a committed round yet, so nothing to draw.{errors}"
        )
        if not optional:
            raise ValueError(message)
        print(message)
        return
    print(
        f"{name}: {len(runs.rounds):,} rounds of {len(runs.chains)} chains, read in {time.perf_counter() - began:.1f} s"
    )
    written = report.build(runs, name, options)
    for finding in written.findings:
        print(f"  warning ({finding.kind}): {finding.text}")
    for line in written.left_out:
        print(f"  left out: {line}")
    count = sum(len(section.pictures) for section in written.sections)
    drawn = f"{count} figure{'s' * (count != 1)} as PNG and PDF, " if count else ""
    seconds = time.perf_counter() - began
    print(f"  {written.folder}/: {drawn}curves.csv, tables/, report.md, report.html ({seconds:.1f} s)")
    if options.figures:
        print(f"  figure: {written.folder / 'curves.png'}")


def only(runs: Runs, methods: Sequence[str]) -> Runs:
    """The runs of these methods, all where none is named. Raises ValueError for one that the sweeps do not have."""
    known = list(dict.fromkeys(chain.method for chain in runs.chains))
    for method in methods:
        if method not in known:
            raise ValueError(
                f"methods: {method} is in none of the sweeps{hint(method, known)} Known: {', '.join(known)}."
            )
    if not methods:
        return runs
    from analysis.reading import Runs

    rounds = runs.rounds[runs.rounds["method"].isin(methods)].reset_index(drop=True)
    return Runs(rounds, tuple(chain for chain in runs.chains if chain.method in methods), runs.findings)


if __name__ == "__main__":
    run_command(main)
