"""Remove what finished chains no longer need: left checkpoints, logs, copies of the code that no round names.

    python sweeps/prune.py                          what would go, of every sweep under runs/; removes nothing
    python sweeps/prune.py name=digits apply=true   removes it
      runs=DIR                       default runs
      what=checkpoints,logs,code     default: all three

Never touched: committed rounds, configurations, windows.jsonl; chains that are not finished, that a process works on or
that have a job in the queue; the code of a sweep that has such chains. Exit status: 0; 1 where Slurm or the storage
does not answer, and nothing more is removed; 2 for a wrong option.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"prune.py: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

from mal.config.options import parse_boolean, parse_options
from mal.config.registry import nearest
from mal.files import run_command, storage_fails
from mal.run import folder as run_folder
from mal.run.code_copy import CODE
from mal.run.lock import hold
from slurm.client import NoSlurmError, SlurmError
from slurm.squeue import Job, read_queue
from sweeps.loading import size
from sweeps.survey import ChainView, names_asked, survey

KINDS = ("checkpoints", "logs", "code")
FRESH_SECONDS = 3600.0  # a copy of the code so young may be that of a launch whose chains are about to start


@dataclass(frozen=True)
class Useless:
    """What may go. chain: whose it is, None for what is a sweep's."""

    kind: str
    path: Path
    chain: Path | None = None

    @property
    def bytes(self) -> int:
        """Of the file, or of all files below the folder."""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if {"-h", "--help", "help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    try:
        options = parse_options(arguments, {"runs": "runs", "name": "", "what": ",".join(KINDS), "apply": "false"})
        runs, apply = Path(options["runs"]), parse_boolean("apply", options["apply"])
        names, kinds = names_asked(runs, options["name"]), _kinds(options["what"])
        queue = _queue()
        for name in names:
            prune(runs, name, kinds, queue, apply)
        return 0
    except ValueError as error:
        print(f"prune.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of the shared storage
        if isinstance(error, BrokenPipeError):  # of `| head`
            raise
        print(f"prune.py: {storage_fails(error)}", file=sys.stderr)
        return 1
    except SlurmError as error:
        print(f"prune.py: Slurm does not answer ({error}), so what its jobs need is not known.", file=sys.stderr)
        return 1


def prune(runs: Path, name: str, kinds: Sequence[str], queue: Sequence[Job], apply: bool) -> None:
    """Say what a sweep no longer needs, and remove it where `apply` says so."""
    views = survey(runs, name, queue)
    finished = [view for view in views if _is_finished(view)]
    print(f"{name}: {len(finished)} of {len(views)} chains are finished")
    others = [f"{view.name} ({_why(view)})" for view in views if view not in finished]
    if others:
        print(f"  left alone   {', '.join(others)}")
    found = [each for view in finished for each in useless_in(view.folder)]
    found += [] if others else [*left_shared(runs / name), *unnamed_code(runs / name)]
    found = [each for each in found if each.kind in kinds]
    total = 0
    for kind in kinds:
        sizes = [each.bytes for each in found if each.kind == kind]
        total += sum(sizes)
        print(f"  {kind:<12} {len(sizes):>5} {size(sum(sizes)):>10}")
    if not apply:
        print(f"  nothing was removed; apply=true removes {size(total)}")
        return
    removed = sum(_remove(each) for each in found)
    print(f"  removed      {size(removed)}")


def _is_finished(view: ChainView) -> bool:
    return view.state == "done" and not view.jobs


def _why(view: ChainView) -> str:
    return "a job in the queue" if view.state == "done" else view.state


def useless_in(chain: Path) -> Iterator[Useless]:
    """What a finished chain leaves: working state of rounds, also of writers that were killed, and logs."""
    for folder in run_folder.round_folders(chain):
        if (checkpoint := folder / run_folder.CHECKPOINT).is_dir():
            yield Useless("checkpoints", checkpoint, chain)
        yield from (Useless("checkpoints", path, chain) for path in sorted(folder.glob(".*.tmp")))
    for path in (chain / run_folder.LOG, *sorted((chain / "slurm").glob("*.log"))):
        if path.is_file():
            yield Useless("logs", path, chain)


def left_shared(sweep: Path) -> list[Useless]:
    """What chains kept for each other, where one was killed before it removed it."""
    folder = sweep / run_folder.SHARED
    return [Useless("checkpoints", folder)] if folder.is_dir() else []


def unnamed_code(sweep: Path) -> list[Useless]:
    """Copies of the code that no committed round was run by, and what a killed launch left of one."""
    named = set()
    for chain in run_folder.chain_folders(sweep.parent, sweep.name):
        for number in range(run_folder.committed_rounds(chain)):
            path = run_folder.round_folder(chain, number) / run_folder.PROVENANCE
            named.add(run_folder.read_json(path).get("code"))
    copies = sorted((sweep / CODE).iterdir()) if (sweep / CODE).is_dir() else []
    old = [copy for copy in copies if time.time() - copy.stat().st_mtime > FRESH_SECONDS]
    return [Useless("code", copy) for copy in old if copy.name not in named]


def _remove(useless: Useless) -> int:
    """Remove it, unless a process has begun to work on its chain meanwhile; the bytes removed."""
    with contextlib.ExitStack() as held:
        if useless.chain is not None:
            try:
                held.enter_context(hold(useless.chain / run_folder.LOCK, 0))
            except TimeoutError:
                print(f"  {useless.chain} is being worked on: left alone")
                return 0
        removed, path = useless.bytes, useless.path
        if useless.kind == "code":
            # Under another name first: a launch must not take half of a copy for the whole of it.
            path = path.rename(path.with_name(f".{path.name}-{os.getpid()}"))
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return removed


def _queue() -> list[Job]:
    try:
        return read_queue()
    except NoSlurmError:
        return []


def _kinds(text: str) -> list[str]:
    for word in text.split(","):
        if word not in KINDS:
            raise ValueError(f"what={word} is unknown{nearest(word, KINDS) or '.'} Allowed: {','.join(KINDS)}.")
    return [kind for kind in KINDS if kind in text.split(",")]


if __name__ == "__main__":
    run_command(main)
