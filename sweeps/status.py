"""The state of every chain of the sweeps, from the files and from Slurm's queue; also without Slurm.

    python sweeps/status.py                     every sweep under runs/
    python sweeps/status.py name=digits         one sweep
      runs=DIR       default runs
      watch=true     again every 10 s, until nothing runs or waits
      --json         for programs
      efficiency=true    what its jobs asked for and used, and the keys to change

A round is # committed, > running, q queued, l waiting for labels from people (sweeps/label.py), x failed, . missing
(nothing works on it: run the launch command again), ? unknown (Slurm does not answer). Exit status: 0; 1 where you must
act: a chain failed, its job is stuck, or its jobs ended before our code started; 2 for a wrong option; 3 where Slurm
does not answer.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"status.py: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

from mal.config.options import parse_boolean, parse_options
from mal.files import run_command, storage_fails
from slurm.client import NoSlurmError, SlurmError
from slurm.squeue import Job, read_queue
from slurm.submitted import read_submitted
from slurm.traces import explain
from sweeps.efficiency import report
from sweeps.survey import ChainView, names_asked, survey

WIDTH = 100
WATCH_SECONDS = 10.0
SIGNS = {"committed": "#", "running": ">", "queued": "q", "labels": "l", "failed": "x", "missing": ".", "unknown": "?"}
EXIT_PERSON, EXIT_SILENT = 1, 3
LOST_LINES = 5
MANY_ROUNDS = 16


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if {"-h", "--help", "help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    try:
        as_json = "--json" in arguments
        defaults = {"runs": "runs", "name": "", "watch": "false", "efficiency": "false"}
        options = parse_options([a for a in arguments if a != "--json"], defaults)
        watch = parse_boolean("watch", options["watch"])
        runs = Path(options["runs"])
        names = names_asked(runs, options["name"])
        if parse_boolean("efficiency", options["efficiency"]):
            print("\n".join(line for name in names for line in report(runs, name)))
            return 0
        while True:
            sweeps, slurm = look(runs, names)
            show(runs, sweeps, slurm, as_json, clear=watch and sys.stdout.isatty())
            views = [view for views in sweeps.values() for view in views]
            if not watch or not {view.state for view in views} & {"running", "queued", "unknown", "labels"}:
                return _exit_status(views, slurm)
            time.sleep(WATCH_SECONDS)
    except ValueError as error:
        print(f"status.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of the shared storage; what was done stays done
        if isinstance(error, BrokenPipeError):  # of `| head`
            raise
        print(f"status.py: {storage_fails(error)}", file=sys.stderr)
        return EXIT_SILENT
    except KeyboardInterrupt:
        return 130


def look(runs: Path, names: Sequence[str]) -> tuple[dict[str, list[ChainView]], str]:
    """The chains of each sweep, and what is to be said about Slurm."""
    queue, slurm = _queue()
    sweeps = {name: survey(runs, name, queue) for name in names}
    if queue is not None:
        slurm = "\n".join(_without_trace(runs, sweeps))
    return sweeps, slurm


def _exit_status(views: Sequence[ChainView], slurm: str) -> int:
    if any(view.state in ("failed", "stuck") or view.lost for view in views):
        return EXIT_PERSON
    return EXIT_SILENT if slurm else 0


def _without_trace(runs: Path, sweeps: dict[str, list[ChainView]]) -> list[str]:
    """Lines on jobs that ended before our code started; chains whose jobs were cancelled instead are freed of them."""
    lines = []
    for name, views in sweeps.items():
        ids = {number for view in views for number in view.lost}
        told = explain([job for number, job in read_submitted(runs / name).items() if number in ids])
        for view in views:
            view.lost = [number for number in view.lost if number in told]
            if view.lost and view.state == "missing":
                view.note = f"{len(view.lost)} jobs ended without a trace"
        if told:
            lines.append(f"{name}: {len(told)} jobs ended without a trace, before our code started:")
            lines += [f"  {line}" for line in list(told.values())[:LOST_LINES]]
    return lines


def show(runs: Path, sweeps: dict[str, list[ChainView]], slurm: str, as_json: bool, clear: bool = False) -> None:
    """Print them as JSON, or as a table."""
    if as_json:
        print(json.dumps({"runs": str(runs), "slurm": slurm, "sweeps": {n: _plain(v) for n, v in sweeps.items()}}))
        return
    lines = [line for name, views in sweeps.items() for line in [*table(runs, name, views), ""]]
    if slurm:
        lines.append(slurm)
    if clear:
        rows = shutil.get_terminal_size().lines - 2
        lines = lines if len(lines) <= rows else [*lines[: rows - 1], f"... {len(lines) - rows + 1} more lines"]
        print("\x1b[H\x1b[2J", end="")
    print("\n".join(lines).rstrip(), flush=True)


def table(runs: Path, name: str, views: Sequence[ChainView]) -> list[str]:
    """A sweep's lines, none longer than 100 columns."""
    width, wide = min(32, max((len(view.shown) for view in views), default=0)), _cells_width(views)
    lines = [_cut(line) for line in _summary(name, views)]
    for view in views:
        cells = "".join(SIGNS[cell] for cell in view.cells)
        if len(cells) > MANY_ROUNDS:
            cells = _squeezed(cells)
        value = "" if view.value is None else f"{view.value:6.2f}%"
        head = f"  {view.shown:<{width}} {cells:<{wide}} {view.committed:>2}/{view.rounds:<2} {value:>7}  "
        detail = _detail(view)
        lines.append(
            _cut(f"{head}{view.state:<8} {detail.partition('; ')[0] if view.state == 'stuck' else detail}".rstrip())
        )
        if view.state == "stuck":
            lines.append(f"  {'':<{width}} {detail.partition('; ')[2]}")
        if window := _window(view):
            lines.append(_cut(f"  {'':<{width}} {window}"))
        if view.diverged:
            lines.append(_cut(f"  {'':<{width}} DIVERGED: {view.diverged}"))
        if view.log and (view.state == "failed" or view.tail):
            lines.append(f"  {'':<{width}} log: {_short(view.log, runs)}")
        lines += [f"  {'':<{width}}   {line}" for line in view.tail]  # whole: the end of an error is its point
    return lines


def _summary(name: str, views: Sequence[ChainView]) -> list[str]:
    committed, wanted = sum(v.committed for v in views), sum(v.rounds for v in views)
    states = Counter(view.state for view in views)
    words = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    left = [v.left_s for v in views if v.left_s is not None]
    in_turns = sum(left) / (states["running"] or len(left) or 1)  # chains that wait follow those that run
    eta = f", about {duration(max(*left, in_turns))} left" if left else ""
    hours, lost = sum(v.hours for v in views), sum(v.lost_hours for v in views)
    gpu, lost_gpu = sum(v.gpu_hours for v in views), sum(v.lost_gpu_hours for v in views)
    causes: Counter[str] = Counter()
    for view in views:
        causes.update(view.interruptions)
    told = f" ({', '.join(f'{count} {cause}' for cause, count in causes.most_common())})" if causes else ""
    nodes = Counter(node for view in views for node in view.bad_nodes)
    avoided = ", ".join(f"{node} ({count} chains)" for node, count in nodes.most_common())
    return [
        f"{name}: {committed}/{wanted} rounds committed; chains: {words}{eta}",
        f"  spent {hours:.2f} h, {gpu:.2f} GPU-hours; lost to preemption {lost:.2f} h, {lost_gpu:.2f} GPU-hours{told}",
        *([f"  nodes that failed chains, which avoid them now: {avoided}"] if avoided else []),
    ]


def _detail(view: ChainView) -> str:
    if view.state != "running":
        return view.note
    if not view.heartbeat:
        return f"starting {view.note}".strip()
    beat = view.heartbeat
    percent = "" if view.percent is None else f" {beat['step']}/{beat['steps']} {view.percent:.0f}%"
    left = f", {duration(view.left_s)} left" if view.left_s is not None else ""
    if view.left_s is None and beat.get("eta_phase") is not None:
        left = f", phase {duration(beat['eta_phase'])} left"
    age = f"heartbeat {duration(view.age or 0.0)} ago"
    return f"{beat.get('phase', '')}{percent}{left}, {age} {view.note}".rstrip()


def _window(view: ChainView) -> str:
    """What the last window of steps of a running chain said: losses, speed, memory."""
    beat = view.heartbeat
    if view.state != "running" or "losses" not in beat:
        return ""
    losses = ", ".join(f"{name} {'NaN' if x is None else f'{x:.3g}'}" for name, x in beat["losses"].items())
    memory = "" if beat.get("device_mib") is None else f"; {beat['device_mib']:,} MiB on the GPU"
    return f"{losses}; {beat['images_per_s']:,.0f} images/s{memory}"


def duration(seconds: float) -> str:
    """For people, short: 42s, 3m10s, 5h20m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}m"


def _squeezed(cells: str) -> str:
    """Many rounds as counts, e.g. 12# 1> 27q."""
    counts = Counter(cells)
    return " ".join(f"{counts[sign]}{sign}" for sign in SIGNS.values() if counts[sign])


def _cells_width(views: Sequence[ChainView]) -> int:
    return max((len(v.cells) if len(v.cells) <= MANY_ROUNDS else 14 for v in views), default=1)


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def _short(path: Path, runs: Path) -> str:
    return str(path.relative_to(runs)) if path.is_relative_to(runs) else str(path)


def _plain(views: Sequence[ChainView]) -> list[dict[str, Any]]:
    more = ("name", "shown", "age", "percent")
    return [
        {key: str(value) if isinstance(value, Path) else value for key, value in asdict(view).items()}
        | {key: getattr(view, key) for key in more}
        for view in views
    ]


def _queue() -> tuple[list[Job] | None, str]:
    """The queue; None, and what is to be said, where there is a Slurm that does not tell."""
    try:
        return read_queue(), ""
    except NoSlurmError:
        return [], ""
    except SlurmError as error:
        return None, f"Slurm's queue is not known ({error}); this is what the disk tells."


if __name__ == "__main__":
    run_command(main)
