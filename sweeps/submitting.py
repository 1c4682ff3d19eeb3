"""A sweep as Slurm jobs: what is missing in the queue is submitted, one launcher at a time."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mal.config.compose import Sweep
from mal.config.frozen import load_chain
from mal.config.people import FILES
from mal.run import folder as run_folder
from mal.run.code_copy import CODE, code_hash, keep_code
from mal.run.lock import hold
from slurm import preparing
from slurm.attempts import lapsed_nodes
from slurm.avoid import lift
from slurm.client import SlurmError, SlurmSilentError, call, job_environment
from slurm.partitions import Partition, read_partitions
from slurm.profile import CPUS, Profile, check_against, chosen_partitions, load_profile, with_defaults
from slurm.squeue import Job, by_chain, name_of, read_queue, slurm_answers
from slurm.stuck import remedy, stuck
from slurm.submit import Submission, Submitter, Wanted, logical
from slurm.submitted import Submitted, claim, note_cancelled, read_submitted
from slurm.traces import explain, without_trace
from sweeps.announce import announce
from sweeps.efficiency import note_asked
from sweeps.loading import Loading, settle
from sweeps.plan import (
    ChainPlan,
    State,
    check_data,
    curves_command,
    freeze,
    leaders_of,
    reconcile,
    say_how_to_label,
    share_threads,
    status_command,
)
from sweeps.preparing import FOLDER as PREPARING
from sweeps.preparing import needing, note

LAUNCH_LOCK = ".launch.lock"
LAUNCH_MINUTES = 10.0
EXIT_PART = 3  # only a part of the jobs went in
LOST_LINES = 5


def launch_on_slurm(sweep: Sweep) -> int:
    """Reconcile the sweep with disk and queue, and submit what is missing; returns the exit status."""
    profile, said = with_defaults(load_profile(sweep.cluster))
    try:
        answers = slurm_answers()
        if not answers and not sweep.dry_run:
            raise ValueError(
                f"cluster={profile.name}: no Slurm answers here. Go to a login node, or choose cluster=local."
            )
        for line in said:
            print(line)
        profile, spare = _fit(profile, sweep, answers)
        if sweep.dry_run:
            return _dry_run(sweep, profile, answers, spare)
        with _one_launcher(sweep.runs / sweep.name):
            return _launch(sweep, profile, spare)
    except SlurmSilentError as error:
        raise ValueError(f"Slurm is here and does not answer: {error}. Run the same command again.") from None
    except SlurmError as error:
        raise ValueError(f"Slurm: {error}") from None


def _fit(profile: Profile, sweep: Sweep, answers: bool) -> tuple[Profile, bool]:
    """The profile for this cluster, and whether chains need a spare job.

    Refused where Slurm itself refuses, warned of where sinfo speaks against it.
    """
    if not answers:
        print("No Slurm answers here: the profile is checked by itself only.")
        return profile, False
    partitions = read_partitions()
    profile = profile.fit_to(partitions)
    check_graphs(profile, sweep)
    if hint := without_gpu(profile, partitions, sweep.cluster["gpus_per_node"]):
        print(hint)
    for dataset in sorted({chain.dataset.name for chain in sweep.chains}):
        if problems := check_against(profile, partitions, [dataset]):
            _ask_slurm(profile, sweep, dataset, " ".join(problems))
    return profile, any(partition.cancels for partition in chosen_partitions(profile, partitions))


def check_graphs(profile: Profile, sweep: Sweep) -> None:
    """ValueError where chains want CUDA graphs and jobs of the profile have no GPU, or several processes."""
    processes = profile.nodes * profile.tasks
    if any(chain.cuda_graphs for chain in sweep.chains) and (profile.gpus == 0 or processes > 1):
        raise ValueError(
            f"cuda_graphs=true is for one process with a GPU, and a job would have {processes} with {profile.gpus}: "
            "set it to false, or cluster.nodes=1 cluster.gpus_per_node=1 cluster.tasks_per_node=1."
        )


def _ask_slurm(profile: Profile, sweep: Sweep, dataset: str, problems: str) -> None:
    """Where sinfo speaks against a request, sbatch decides, as a site's plug-ins may choose another partition."""
    chains = tuple(f"{c.method['name']}/seed-{c.seed}" for c in sweep.chains[: profile.pack])
    submission = Submission(name_of(sweep.name, chains, sweep.runs), chains, 1, dataset)
    script = Submitter(sweep.name, sweep.runs, profile, _kept(sweep)).script(submission)
    try:
        call("sbatch", "--test-only", text=script, environment=job_environment())
    except SlurmSilentError:
        raise
    except SlurmError as error:
        raise ValueError(f"This cluster cannot run it: {problems} Slurm: {str(error).partition(': ')[2]}") from None
    print(f"Warning: {problems} Slurm takes it all the same; `python sweeps/status.py` says if it never starts.")


def _kept(sweep: Sweep) -> Path:
    """Where a launch keeps the code, or would keep it."""
    return logical(sweep.runs) / sweep.name / CODE / code_hash()


@contextlib.contextmanager
def _one_launcher(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LAUNCH_LOCK
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold(lock, 0))
        except TimeoutError:
            print("Another launcher is submitting this sweep: waiting for it ...", flush=True)
            try:
                held.enter_context(hold(lock, 60 * LAUNCH_MINUTES))
            except TimeoutError:
                raise ValueError(
                    f"{folder} was being launched by another process for {LAUNCH_MINUTES:g} minutes."
                ) from None
        yield


def _memory(profile: Profile) -> float:
    """Bytes that a process has, where the profile says how much it asks for on a node."""
    if profile.mem_gb is None:
        return math.inf
    return profile.mem_gb * 2**30 / (profile.tasks * profile.pack)


def _launch(sweep: Sweep, profile: Profile, spare: bool) -> int:
    plans, loading = _plans(sweep, profile)
    check_data(plans, _memory(profile), copy=loading.copy)
    queue, lost = _look(sweep)
    kept = keep_code(sweep.runs / sweep.name)
    submitter = Submitter(sweep.name, sweep.runs, profile, _kept(sweep).with_name(kept.name), spare)
    wanted = _wanted(plans, queue, sweep)
    submissions = submitter.missing(wanted, queue)
    waiting = _say(plans, queue, sweep)
    if loading.copy is None:
        _say_lost(sweep, lost)
    announce(sweep, plans, loading, describe(profile, sweep), profile.nodes * profile.gpus)
    freeze(plans)
    if loading.copy and submissions and (first := needing(plans)):
        submitter.after = _prepare(submitter, first, loading.copy, queue, lost)
    note_asked(sweep.runs / sweep.name, profile, sorted({plan.config.dataset.name for plan in plans}))
    submitter.prolong(wanted)
    for (method, seed), jobs in by_chain(queue, sweep.name, sweep.runs).items():
        lift(jobs, lapsed_nodes(sweep.runs / sweep.name / method / f"seed-{seed}"))
    room = len(submissions) if profile.max_jobs is None else max(0, profile.max_jobs - len(queue))
    taken, words = _submit(submitter, submissions[:room], sweep.name)
    if left := len(submissions) - taken:
        why = words or f"cluster.max_jobs={profile.max_jobs}, and {len(queue)} were in the queue"
        print(f"{left} jobs are not submitted ({why}). {_how_to_go_on(submitter.aim(wanted), len(wanted))}")
    print(f"See:      {status_command(sweep)}")
    print(f"Results:  {sweep.runs / sweep.name}    Curves: {curves_command(sweep)}")
    say_how_to_label(sweep, plans)
    if left:
        return EXIT_PART
    return 1 if waiting or any(plan.state is State.FAILED for plan in plans) else 0


def _look(sweep: Sweep) -> tuple[list[Job], list[Submitted]]:
    """The queue with the sweep's own jobs by their ids, and those that ended before our code started."""
    folder = sweep.runs / sweep.name
    submitted = read_submitted(folder)
    queue = claim(read_queue(), submitted, sweep.name, sweep.runs)
    return queue, without_trace(folder, submitted, queue)


def _submit(submitter: Submitter, submissions: Sequence[Submission], name: str) -> tuple[int, str]:
    """Submit; how many Slurm took, and its words where it did not take all."""
    begun, taken, progress = time.monotonic(), [0], _progress(len(submissions))

    def report(done: int) -> None:
        taken[0] = done
        progress(done)

    try:
        words = submitter.submit(submissions, report)[1]
    except SlurmError as error:
        if not taken[0]:
            raise
        words = str(error)
    seconds, left = time.monotonic() - begun, len(submissions) - taken[0]
    print(f"{name}: {taken[0]} jobs submitted in {seconds:.1f} s, {left} left.")
    return taken[0], words


def _how_to_go_on(without: Sequence[Wanted], chains: int) -> str:
    if not without:
        return "The last job of each chain goes on to the chain's end. Run the same command again to submit the others."
    others = "; the last job of each other chain goes on to its end" if len(without) < chains else ""
    some = ", ".join(chain.name for chain in without[:3]) + (" ..." if len(without) > 3 else "")
    return f"Run the same command again when some have run: {len(without)} chains have no job ({some}){others}."


def _prepare(
    submitter: Submitter, plan: ChainPlan, copy: Path, queue: Sequence[Job], ended: Sequence[Submitted]
) -> str:
    """The id of the job that makes the copy: one that is queued, or a new one. ended: jobs that never started."""
    logs = note(submitter.runs / submitter.sweep, copy)
    if job := preparing.find(queue, copy):
        print(f"Job {job.id} makes {copy} already ({job.state.lower()}); the chains start when it is whole.")
        return job.id
    for never in ended:  # by Slurm, as the job before had failed
        note_cancelled(submitter.runs / submitter.sweep, never.job)
    number = preparing.submit(preparing.script(submitter, plan.folder, copy, logs), copy)
    print(f"Job {number} makes {copy} first; the chains start when it is whole. Its log: {logs / f'{number}.log'}")
    return number


def _plans(sweep: Sweep, profile: Profile) -> tuple[list[ChainPlan], Loading]:
    plans = reconcile(sweep)
    share_threads(plans, profile.cpus // profile.pack)
    return plans, settle(plans, _memory(profile) / 2, sweep.prepare)


def _wanted(plans: Sequence[ChainPlan], queue: Sequence[Job], sweep: Sweep) -> list[Wanted]:
    """The chains that jobs are for: not those that failed, nor those that a process outside Slurm works on."""
    queued = by_chain(queue, sweep.name, sweep.runs)
    takes = leaders_of(plans)
    wanted = []
    for plan in plans:
        target = plan.target
        if plan.state is State.RUNNING:
            if (plan.config.method["name"], plan.config.seed) not in queued:
                continue
            # what runs has read its number of rounds; more can be added when it is done
            target = min(target, load_chain(plan.folder / run_folder.CONFIG).rounds)
        elif not plan.to_run:
            continue
        config = plan.config
        if config.dataset.oracle == FILES:
            target = min(target, plan.committed + 1)  # the round after it needs labels that nobody has given
        others = {f"{chain.parent.name}/{chain.name}": rounds for chain, rounds in takes.get(plan.folder, {}).items()}
        wanted.append(Wanted(config.method["name"], config.seed, config.dataset.name, plan.committed, target, others))
    return wanted


def _say(plans: Sequence[ChainPlan], queue: Sequence[Job], sweep: Sweep) -> int:
    """A line for each chain; how many wait for a person."""
    queued, waiting = by_chain(queue, sweep.name, sweep.runs), 0
    for plan in plans:
        jobs = [job for job in queued.get((plan.config.method["name"], plan.config.seed), []) if job.alive]
        note = f"{len(jobs)} jobs in the queue" if jobs and plan.state is not State.FAILED else ""
        if (held := stuck(jobs)) is not None:
            waiting += 1
            note = f"{note or plan.note}; job {held.id} never starts by itself ({held.reason}): {remedy(held)}"
        print(plan.line(note))
    sys.stdout.flush()
    return waiting


def _say_lost(sweep: Sweep, lost: Sequence[Submitted]) -> None:
    told = explain(lost)
    for job in lost:
        if job.job not in told and not sweep.dry_run:
            note_cancelled(sweep.runs / sweep.name, job.job)  # so Slurm remembers, for a while
    if told:
        print(f"{len(told)} jobs ended without a trace, before our code started; new ones may do the same:")
        print("\n".join(f"  {line}" for line in list(told.values())[:LOST_LINES]), flush=True)


def _progress(total: int) -> Callable[[int], None]:
    """A reporter: one line that counts on a terminal, a line now and then elsewhere."""
    terminal, last = sys.stdout.isatty(), [time.monotonic()]

    def report(done: int) -> None:
        if terminal:
            print(f"\rsubmitting {done}/{total}", end="\n" if done == total else "", flush=True)
        elif time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            print(f"submitting {done}/{total}", flush=True)

    return report


def _dry_run(sweep: Sweep, profile: Profile, answers: bool, spare: bool) -> int:
    plans, loading = _plans(sweep, profile)
    check_data(plans, _memory(profile), dry_run=True, copy=loading.copy)
    queue, lost = _look(sweep) if answers else ([], [])
    submitter = Submitter(sweep.name, sweep.runs, profile, _kept(sweep), spare)
    submissions = submitter.missing(_wanted(plans, queue, sweep), queue)
    _say(plans, queue, sweep)
    _say_lost(sweep, lost)
    announce(sweep, plans, loading, describe(profile, sweep), profile.nodes * profile.gpus)
    print(_estimate(plans, submissions, profile))
    if loading.copy and (first := needing(plans)):
        text = preparing.script(submitter, first.folder, loading.copy, sweep.runs / sweep.name / PREPARING)
        print(f"\n# ---- sbatch: {loading.copy}\n{text.rstrip()}")
        print("# the jobs below also wait for that one: --dependency=singleton,afterok:ID --kill-on-invalid-dep=yes")
    if tasks := [submission for submission in submissions if submission.task]:
        chains = f"{', '.join(tasks[0].chains)} to {', '.join(tasks[-1].chains)}"
        print(f"\n# ---- sbatch: an array of {len(tasks)} tasks, {chains}, each to the end of its chain")
        print(submitter.array_script(tasks, "DIGEST").rstrip())
    last: tuple[str, ...] = ()
    for submission in sorted(submissions[len(tasks) :], key=lambda s: (s.name, s.until)):
        if submission.chains == last:
            print(f"# then the same with --until {submission.until}, its comment likewise")
            continue
        last = submission.chains
        print(f"\n# ---- sbatch: {', '.join(last)} up to round {submission.until - 1}")
        print(submitter.script(submission).rstrip())
    print("\nA dry run: nothing was written or submitted.")
    return 0


def without_gpu(profile: Profile, partitions: Mapping[str, Partition], asked: int | None) -> str:
    """What to say where chains would compute on CPUs though the cluster has GPUs; asked: what the user asked for."""
    others = [p.name for p in partitions.values() if any(kind.gpu_count(profile.gpu_type) for kind in p.kinds)]
    if profile.gpus or asked is not None or not others:
        return ""
    here = ", ".join(partition.name for partition in chosen_partitions(profile, partitions)) or "the default partition"
    return (
        f"No GPU in {here}: the chains compute on its CPUs. GPUs are in {', '.join(others)}: "
        f"cluster.partition={others[0]} (or cluster.gpus_per_node=0, if CPUs are meant)."
    )


def describe(profile: Profile, sweep: Sweep) -> str:
    """What the jobs ask for, for people."""
    place = f"partition {profile.partition}" if profile.partition else "the default partition"
    fitted = "" if sweep.cluster["cpus_per_task"] is not None or profile.cpus == CPUS else " (all that its nodes have)"
    datasets = {chain.dataset.name for chain in sweep.chains}
    minutes = max(profile.minutes(dataset) for dataset in datasets)
    tasks = f"{profile.tasks} x {profile.cpus} CPUs{fitted}"
    nodes, gpus = _counted(profile.nodes, "node"), _counted(profile.gpus, "GPU")
    return f"Slurm, {place}: jobs of {nodes}, {gpus}, {tasks}, {minutes} minutes"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _estimate(plans: Sequence[ChainPlan], submissions: Sequence[Submission], profile: Profile) -> str:
    """What the jobs take at most and, by what is committed, in fact: GPU-hours, or hours of nodes without GPUs."""
    most = sum(profile.minutes(submission.dataset) * submission.rounds for submission in submissions) / 60
    rounds = sum(submission.rounds for submission in submissions)
    units, unit = profile.nodes * (profile.gpus or 1), "GPU-hours" if profile.gpus else "node-hours"
    gpus = f"with {_counted(profile.gpus, 'GPU')}" if profile.gpus else "without GPUs"
    text = f"{len(submissions)} jobs of {_counted(profile.nodes, 'node')} {gpus}: at most {most * units:.1f} {unit}"
    seconds = [
        float(run_folder.read_json(run_folder.round_folder(plan.folder, number) / run_folder.METRICS)["seconds"])
        for plan in plans
        for number in range(plan.committed)
    ]
    if seconds:
        hours = sum(seconds) / len(seconds) * rounds * profile.pack / 3600
        text += f"; by the {len(seconds)} rounds committed so far about {hours * units:.2f} ({hours:.2f} hours of jobs)"
    return text + "."
