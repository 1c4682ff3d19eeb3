"""Launch a sweep, or go on with it: one chain for each method and seed, run here or as Slurm jobs.

    python sweeps/launch.py dataset=digits seeds=3
    python sweeps/launch.py dataset=imagenet seeds=3 cluster=slurm dry_run=true

Run it again after any interruption: it does what is missing and nothing else. `--help` explains every key;
`show_config=METHOD` prints what a method would run with and where each value comes from; completion in bash:
source <(python sweeps/launch.py completion=bash).
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"launch.py: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

from mal.config.compose import Sweep, compose_sweep
from mal.config.conf_folders import CONF, GROUPS, choices, names, own_folder
from mal.config.registry import nearest
from mal.files import run_command, storage_fails
from sweeps import habits, show
from sweeps.encoding import settle_features

if TYPE_CHECKING:
    from sweeps.plan import ChainPlan

EXIT_USAGE, EXIT_STOPPED = 2, 130
KINDS = ("auto", "local", "slurm")  # auto: settled before, so it is this machine


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    if "completion=bash" in arguments:
        from sweeps.completion import script

        print(script())
        return 0
    try:
        if {"-h", "--help", "help"} & set(arguments):
            print(help_text(arguments))
            return 0
        shown, arguments = show.asked(arguments)
        habits.answer(arguments)
        if shown:
            print(show.show(shown, arguments))
            return 0
        settled = settle_features(choose_cluster(arguments))
        if settled is None:
            return 0
        sweep = compose_sweep(settled)
        if not sweep.watch:
            return launch(sweep)
        from sweeps.watching import watch

        return watch(sweep, launch)
    except ValueError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:  # of the shared storage; what was done stays done
        if isinstance(error, BrokenPipeError):  # of `| head`
            raise
        print(f"launch.py: {storage_fails(error)}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt as stop:  # once chains run, the signal is theirs to save at
        print(f"launch.py: {str(stop) or 'stopped'}; no chain runs here.", file=sys.stderr)
        return EXIT_STOPPED


def choose_cluster(arguments: list[str]) -> list[str]:
    """The arguments with cluster=auto settled: Slurm where it answers, unless a number of local workers is given."""
    chosen = [a for a in arguments if a.startswith(("cluster=", "cluster.workers="))]
    if chosen not in ([], ["cluster=auto"]):
        return arguments
    from slurm.client import SlurmError
    from slurm.squeue import slurm_answers

    try:
        answers = slurm_answers()
    except SlurmError as error:  # nothing is computed on a login node because Slurm is silent for a moment
        raise ValueError(
            f"Slurm is here and does not answer ({error}). Launch again when it does, or choose cluster=local to "
            "compute on this machine."
        ) from None
    if not answers:
        return arguments
    return [*(a for a in arguments if a not in chosen), "cluster=slurm"]


def launch(sweep: Sweep) -> int:
    """Reconcile, say what will happen, and do it."""
    kind = sweep.cluster.get("kind")
    if kind not in KINDS:
        hint = nearest(str(kind), KINDS) or "."
        raise ValueError(
            f"cluster.kind={kind} is unknown{hint} Known: {', '.join(KINDS)}. A profile of your own that begins with "
            "`defaults: [slurm, _self_]` has it."
        )
    if kind == "slurm":
        from sweeps.submitting import launch_on_slurm

        return launch_on_slurm(sweep)
    return launch_here(sweep)


def launch_here(sweep: Sweep) -> int:
    """The same in worker processes of this machine."""
    from mal.run.code_copy import keep_code
    from sweeps.announce import announce
    from sweeps.gpus import require_gpu
    from sweeps.loading import settle
    from sweeps.local import devices_of, memory_of, run_local, worker_count
    from sweeps.plan import check_data, cores, curves_command, freeze, reconcile, say_how_to_label, share_threads
    from sweeps.preparing import needing, prepare_here
    from sweeps.table import Board

    plans = reconcile(sweep)
    to_run = [plan for plan in plans if plan.to_run]
    require_gpu([plan.config for plan in to_run])
    wanted = sweep.cluster.get("workers")
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        raise ValueError(f"cluster.workers={wanted} must be a whole number from 0 (0: as many as the machine carries).")
    workers = worker_count(wanted, to_run)
    share_threads(plans, cores() // workers)
    memory = memory_of(to_run)
    loading = settle(plans, min(memory[0] / (2 * workers), memory[1]), sweep.prepare)
    check_data(plans, *memory, dry_run=sweep.dry_run, copy=loading.copy)
    for plan in plans:
        print(plan.line())
    where = f"this machine, {workers} chains at a time, each with {threads(plans)}"
    announce(sweep, plans, loading, where, len(devices_of(to_run)[:1]))
    rounds = sum(plan.target - plan.committed for plan in to_run)
    print(
        f"{sweep.name}: {len(to_run)} of {len(plans)} chains to run, {rounds} rounds, {workers} at a time", flush=True
    )
    if sweep.dry_run:
        return 0
    if loading.copy and (first := needing(plans)):
        prepare_here(first.config)
    freeze(plans)
    if to_run:
        status = run_local(plans, workers, Board(workers), keep_code(sweep.runs / sweep.name))
    else:
        status = 1 if any(plan.state.name == "FAILED" for plan in plans) else 0
    say_how_to_label(sweep, plans)
    print(f"Results: {sweep.runs / sweep.name}    Curves: {curves_command(sweep)}")
    return status


def threads(plans: Sequence[ChainPlan]) -> str:
    """The threads of the chains to run, for people."""
    counts = sorted({plan.config.threads for plan in plans if plan.to_run}) or [0]
    return f"{' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} thread{'s' * (counts != [1])}"


def help_text(arguments: Sequence[str] = ()) -> str:
    """The module's text, the choices of each group and every key of mal/conf/config.yaml with its comment.

    arguments: of the command line, where conf=DIR offers further choices.
    """
    own, _ = own_folder(arguments)
    lines = [(__doc__ or "").strip(), ""]
    for group in GROUPS:
        key = "methods=[NAME,...]" if group == "method" else f"{group}=NAME"
        lines += textwrap.wrap("  ".join(choices(group)), 100, initial_indent=f"{key:<20}", subsequent_indent=" " * 20)
        if own and (mine := names(own / group)):
            lines += textwrap.wrap(
                "  ".join(mine), 100, initial_indent=f"{'  in conf=':<20}", subsequent_indent=" " * 20
            )
    _, _, keys = (CONF / "config.yaml").read_text().partition("# -- ")
    lines += ["", "Every key, with its default (??? is set by the dataset's file):", "", f"# -- {keys.rstrip()}"]
    lines += [
        "",
        "A dataset's, backbone's or method's own keys: dataset.KEY, backbone.KEY, method.KEY, in mal/conf/*/NAME.yaml.",
        "Your own files: DIR/dataset/NAME.yaml, DIR/cluster/NAME.yaml ..., with conf=DIR, or in ./conf.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
