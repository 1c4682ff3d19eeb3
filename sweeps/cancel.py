"""Cancel a sweep's jobs, or one chain's; a later launch goes on from what is committed and saved.

    python sweeps/cancel.py name=digits
    python sweeps/cancel.py name=digits method=mal seed=0
      runs=DIR       default runs

The job that makes their prepared copy ends with them, unless others wait for it. For chains that run outside Slurm, it
prints the command that stops them. Exit status: 0; 1 where something of it still runs, or Slurm does not answer; 2 for
a wrong option.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"cancel.py: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

from mal.config.options import parse_options
from mal.config.registry import nearest
from mal.files import run_command, storage_fails
from mal.run import folder as run_folder
from slurm.client import NoSlurmError, SlurmError, SlurmSilentError, call
from slurm.preparing import find, waiting_for
from slurm.squeue import ChainName, Job, chains_of, read_queue, runs_hash
from slurm.submitted import claim, note_cancelled, read_submitted
from sweeps.preparing import noted
from sweeps.survey import survey

AT_ONCE = 500  # job ids in one scancel
END_SECONDS = 10.0  # for Slurm to take note


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if {"-h", "--help", "help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    try:
        options = parse_options(arguments, {"runs": "runs", "name": "", "method": "", "seed": ""})
        return cancel(Path(options["runs"]), options["name"], options["method"], _seed(options["seed"]))
    except ValueError as error:
        print(f"cancel.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of the shared storage; what was done stays done
        if isinstance(error, BrokenPipeError):  # of `| head`
            raise
        print(f"cancel.py: {storage_fails(error)}", file=sys.stderr)
        return 1
    except SlurmSilentError as error:
        print(
            f"cancel.py: Slurm does not answer ({error}). Its jobs may run on: run the same command again.",
            file=sys.stderr,
        )
        return 1
    except SlurmError as error:
        print(f"cancel.py: Slurm: {error}", file=sys.stderr)
        return 1


def cancel(runs: Path, name: str, method: str, seed: int | None) -> int:
    """Cancel the jobs of a sweep, of a method, of a seed, or of one chain; says what it did."""
    _check(runs, name, method, seed)

    def meant(chain: ChainName) -> bool:
        here = (chain.sweep, chain.runs_hash) == (name, runs_hash(runs))
        return here and method in ("", chain.method) and seed in (None, chain.seed)

    submitted = read_submitted(runs / name)
    queue = claim(_queue(), submitted, name, runs)
    ours = [job for job in queue if any(meant(chain) for chain in chains_of(job))]
    shared = [job for job in ours if not all(meant(chain) for chain in chains_of(job))]
    chosen = [job for job in ours if job not in shared]
    left = _scancel([job for job in chosen if job.alive])
    for job in chosen:
        if job.id in submitted and job.id not in left:
            note_cancelled(runs / name, job.id)
    done = len(chosen) - len(left)
    print(f"{name}: {done} jobs cancelled. What is saved stays; the launch command goes on from it.")
    left |= _cancel_preparing(runs / name, queue, chosen)
    if left:
        print(f"{len(left)} jobs are still there: {', '.join(f'{job}: {state}' for job, state in left.items())}.")
    for job in shared:
        others = ", ".join(f"{c.method}/seed-{c.seed}" for c in chains_of(job) if not meant(c))
        print(f"Job {job.id} runs {others} as well (cluster.pack) and was left alone: scancel {job.id} ends them all.")
    return 1 if _workers(runs, name, method, seed, ours) or shared or left else 0


def _cancel_preparing(sweep: Path, queue: Sequence[Job], cancelled: Sequence[Job]) -> dict[str, str]:
    """Cancel the job that makes the sweep's prepared copy, unless others wait for it; as `_scancel`."""
    copy = noted(sweep)
    job = find(queue, copy) if copy else None
    if job is None:
        return {}
    gone = {each.id for each in cancelled}
    others = [name for number, name in waiting_for(job.id).items() if number not in gone]
    if others:
        sweeps = sorted({name.split(":")[1] for name in others if name.startswith("mal:")})
        print(f"Job {job.id} makes {copy}, and {len(others)} jobs of {', '.join(sweeps)} wait for it: left alone.")
        return {}
    left = _scancel([job])
    if not left:
        print(f"Job {job.id}, which made {copy} for them alone, is cancelled too; what it wrote stays.")
    return left


def _queue() -> list[Job]:
    try:
        return read_queue()
    except NoSlurmError:
        return []


def _scancel(jobs: Sequence[Job]) -> dict[str, str]:
    """Cancel jobs; those that are still there afterwards, with their states."""
    # Those that wait first: else the end of one would start the next.
    waiting = [job.id for job in jobs if job.waiting]
    others = [job.id for job in jobs if not job.waiting]
    words = ""
    for group in (waiting, others):
        for start in range(0, len(group), AT_ONCE):
            try:
                call("scancel", *group[start : start + AT_ONCE])
            except SlurmSilentError:
                raise
            except SlurmError as error:  # of one that has ended meanwhile, or is not to be cancelled
                words = f", {error}"
    ids, deadline = {job.id for job in jobs}, time.monotonic() + END_SECONDS
    left = _still_there(ids)
    while left and time.monotonic() < deadline:
        time.sleep(0.5)
        left = _still_there(ids)
    return {job: state + words for job, state in left.items()}


def _still_there(ids: set[str]) -> dict[str, str]:
    return {job.id: job.state for job in read_queue() if job.id in ids and job.alive} if ids else {}


def _workers(runs: Path, name: str, method: str, seed: int | None, jobs: Sequence[Job]) -> int:
    """Name the chains that processes outside Slurm work on; how many."""
    in_jobs = {(chain.method, chain.seed) for job in jobs for chain in chains_of(job)}
    found = 0
    for view in survey(runs, name, []):
        meant = method in ("", view.method) and seed in (None, view.seed)
        if meant and view.state == "running" and (view.method, view.seed) not in in_jobs:
            found += 1
            host, pid = view.heartbeat["host"], view.heartbeat["pid"]
            print(f"{view.name} runs as process {pid} on {host}, not as a job: `kill {pid}` there saves and stops it.")
    return found


def _check(runs: Path, name: str, method: str, seed: int | None) -> None:
    known = run_folder.sweep_names(runs)
    if not name:
        raise ValueError(f"name= is needed: which sweep? There are: {', '.join(known) or 'none'} under runs={runs}.")
    if name not in known:
        raise ValueError(f"name={name}: no such sweep under runs={runs}{nearest(name, known) or '.'}")
    chains = [
        (folder.parent.name, int(folder.name.rpartition("-")[2])) for folder in run_folder.chain_folders(runs, name)
    ]
    methods, seeds = sorted({m for m, _ in chains}), sorted({s for _, s in chains})
    if method and method not in methods:
        hint = nearest(method, methods) or "."
        raise ValueError(f"method={method}: {name} has no such method{hint} It has: {', '.join(methods)}.")
    if seed is not None and seed not in seeds:
        raise ValueError(f"seed={seed}: {name} has no such seed. It has: {', '.join(map(str, seeds))}.")


def _seed(text: str) -> int | None:
    if text and not text.isdigit():
        raise ValueError(f"seed={text}: a whole number from 0 is allowed.")
    return int(text) if text else None


if __name__ == "__main__":
    run_command(main)
