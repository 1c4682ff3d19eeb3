"""Labels from people, for a sweep of oracle=files: what is asked for, and taking what they answered.

    python sweeps/label.py name=flowers                          what each chain waits for, and the files to fill in
    python sweeps/label.py name=flowers import=FILE[,FILE...]    checks files of labels and takes them; the files of
                                                                 several annotators together are merged by majority
    python sweeps/label.py name=flowers serve=true               a page for labelling, for this machine's browser alone
      runs=DIR        default runs
      port=NUMBER     of the page, default a free one

Files: a filled-in copy of to_label.csv, the JSON or JSON-MIN of Label Studio, CVAT for images 1.1 or Datumaro 1.0 of
CVAT, a folder of PNG maps for segmentation (docs/labels.md). All of a file is taken, or nothing. Exit status: 0; 2
where something is wrong, which is named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"label.py: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

from mal.config.options import parse_boolean, parse_options
from mal.config.registry import nearest
from mal.files import run_command, storage_fails
from mal.labels.asking import SHEET, TO_LABEL, asking_folder, awaited
from mal.labels.importing import Taken, chains_of, import_files
from mal.listing import some
from mal.run import folder as run_folder

LISTED = 20
OPTIONS = {"runs": "runs", "name": "", "import": "", "serve": "false", "port": "0"}


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if {"-h", "--help", "help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    try:
        options = parse_options(arguments, OPTIONS)
        sweep = _sweep(Path(options["runs"]), options["name"])
        if options["import"]:
            files = [Path(name) for name in options["import"].strip("[]").split(",") if name]
            say_taken(import_files(sweep, files), sweep.name)
        if parse_boolean("serve", options["serve"]):
            from mal.labels.page import serve

            serve(sweep, _port(options["port"]))
        say_waiting(sweep)
    except ValueError as error:
        print(f"label.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of the shared storage; what was done stays done
        if isinstance(error, BrokenPipeError):  # of `| head`
            raise
        print(f"label.py: {storage_fails(error)}", file=sys.stderr)
        return 2
    return 0


def say_waiting(sweep: Path) -> None:
    """A line for each chain, with the files to fill in where it waits."""
    for folder, config in chains_of(sweep):
        found, committed = awaited(folder, config), run_folder.committed_rounds(folder)
        other = "is done" if committed >= config.rounds else "waits for nobody: run the launch command again"
        print(f"{folder.parent.name:<28} {found or other}")
        if found:
            asking = asking_folder(folder, committed)
            print(f"{'':<28} {asking / TO_LABEL}, {SHEET}")


def say_taken(taken: Taken, name: str) -> None:
    """What an import came to."""
    before = f"; {taken.before} were there before" if taken.before else ""
    print(f"{name}: {len(taken.rows)} answers taken{before}.")
    lists = {
        "answered differently, the majority's answer taken": taken.disagreements,
        "without a majority, so not taken": taken.undecided,
    }
    for what, lines in lists.items():
        if lines:
            more = f"\n  and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
            print(f"{len(lines)} images {what}:\n  " + "\n  ".join(lines[:LISTED]) + more)
    if taken.missing:
        print(f"{len(taken.missing)} images still lack an answer: {some(taken.missing)}.")


def _sweep(runs: Path, name: str) -> Path:
    known = run_folder.sweep_names(runs)
    if not name:
        raise ValueError(f"name= is needed: which sweep? There are: {', '.join(known) or 'none'} under runs={runs}.")
    if name not in known:
        raise ValueError(f"name={name}: no such sweep under runs={runs}{nearest(name, known) or '.'}")
    return runs / name


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError(f"port={text} is not a port: give a number from 1024 to 65535, or 0 for a free one.")
    return int(text)


if __name__ == "__main__":
    run_command(main)
