"""A sweep as Slurm jobs: what is missing in the queue is submitted, one launcher at a time."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from mal.config.compose import Sweep
from mal.config.frozen import load_chain
from mal.run import folder as run_folder
from mal.run.code_copy import CODE, code_hash, keep_code
from slurm.client import SlurmError, slurm_answers
from slurm.partitions import read_partitions
from slurm.profile import Profile, check_against, load_profile
from slurm.squeue import Job, by_chain, read_queue
from slurm.submit import Submission, Submitter, Wanted
from sweeps.plan import ChainPlan, State, check_data, freeze, reconcile

LAUNCH_LOCK = ".launch.lock"
LAUNCH_MINUTES = 10.0
EXIT_PART = 3  # a limit let only a part of the jobs through


def launch_on_slurm(sweep: Sweep) -> int:
    """Reconcile the sweep with disk and queue, and submit what is missing; returns the exit status."""
    profile = load_profile(sweep.cluster)
    answers = slurm_answers()
    if not answers and not sweep.dry_run:
        raise ValueError(f"cluster={profile.name}: no Slurm answers here. Go to a login node, or choose cluster=local.")
    try:
        profile = _fit(profile, sweep, answers)
        if sweep.dry_run:
            return _dry_run(sweep, profile, answers)
        with _one_launcher(sweep.runs / sweep.name):
            return _launch(sweep, profile)
    except SlurmError as error:
        raise ValueError(f"Slurm: {error}") from None


def _fit(profile: Profile, sweep: Sweep, answers: bool) -> Profile:
    """The profile for this cluster; refused where the cluster could never run its jobs."""
    if not answers:
        print("No Slurm answers here: the profile is checked by itself only.")
        return profile
    partitions = read_partitions()
    profile = profile.fit_to(partitions)
    datasets = sorted({chain.dataset.name for chain in sweep.chains})
    if problems := check_against(profile, partitions, datasets):
        raise ValueError("This cluster cannot run it: " + " ".join(problems))
    return profile


def _one_launcher(folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LAUNCH_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("Another launcher is submitting this sweep: waiting for it ...", flush=True)
        try:
            lock.acquire(timeout=60 * LAUNCH_MINUTES)
        except Timeout:
            raise ValueError(
                f"{folder} was being launched by another process for {LAUNCH_MINUTES:g} minutes."
            ) from None
    return lock


def _launch(sweep: Sweep, profile: Profile) -> int:
    plans = _plans(sweep, profile)
    check_data(plans)
    queue = read_queue()
    submitter = Submitter(sweep.name, sweep.runs, profile, keep_code(sweep.runs / sweep.name))
    submissions = submitter.missing(_wanted(plans, queue, sweep), queue)
    _say(plans, queue, sweep)
    freeze(plans)
    room = len(submissions) if profile.max_jobs is None else max(0, profile.max_jobs - len(queue))
    begun = time.monotonic()
    taken, words = submitter.submit(submissions[:room], _progress(len(submissions[:room])))
    print(f"{sweep.name}: {taken} jobs submitted in {time.monotonic() - begun:.1f} s, {len(submissions) - taken} left.")
    if left := len(submissions) - taken:
        why = words or f"cluster.max_jobs={profile.max_jobs}, and {len(queue)} were in the queue"
        print(f"{left} jobs are not submitted ({why}). Run the same command again when some have run.")
    print(f"See:      python sweeps/status.py runs={sweep.runs} name={sweep.name}")
    print(f"Results:  {sweep.runs / sweep.name}    Curves: python analysis/curves.py name={sweep.name}")
    if any(plan.state is State.FAILED for plan in plans):
        return 1
    return EXIT_PART if left else 0


def _plans(sweep: Sweep, profile: Profile) -> list[ChainPlan]:
    plans = reconcile(sweep)
    for plan in plans:  # frozen, as the number of threads moves the last bits
        if plan.config.threads == 0:
            plan.config = dataclasses.replace(plan.config, threads=max(1, profile.cpus_per_task // profile.pack))
    return plans


def _wanted(plans: Sequence[ChainPlan], queue: Sequence[Job], sweep: Sweep) -> list[Wanted]:
    """The chains that jobs are for: not those that failed, nor those that a process outside Slurm works on."""
    queued = by_chain(queue, sweep.name, sweep.runs)
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
        wanted.append(Wanted(config.method["name"], config.seed, config.dataset.name, plan.committed, target))
    return wanted


def _say(plans: Sequence[ChainPlan], queue: Sequence[Job], sweep: Sweep) -> None:
    queued = by_chain((job for job in queue if job.alive), sweep.name, sweep.runs)
    for plan in plans:
        jobs = len(queued.get((plan.config.method["name"], plan.config.seed), []))
        print(plan.line(f"{jobs} jobs in the queue" if jobs and plan.state is not State.FAILED else ""))
    sys.stdout.flush()


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


def _dry_run(sweep: Sweep, profile: Profile, answers: bool) -> int:
    plans = _plans(sweep, profile)
    check_data(plans, dry_run=True)
    queue = read_queue() if answers else []
    kept = sweep.runs.resolve() / sweep.name / CODE / code_hash()  # as it would be
    submitter = Submitter(sweep.name, sweep.runs, profile, kept)
    submissions = submitter.missing(_wanted(plans, queue, sweep), queue)
    _say(plans, queue, sweep)
    print(_estimate(plans, submissions, profile))
    last: tuple[str, ...] = ()
    for submission in sorted(submissions, key=lambda s: (s.name, s.until)):
        if submission.chains == last:
            print(f"# then the same with --until {submission.until}, its comment likewise")
            continue
        last = submission.chains
        print(f"\n# ---- sbatch: {', '.join(last)} up to round {submission.until - 1}")
        print(submitter.script(submission).rstrip())
    print("\nA dry run: nothing was written or submitted.")
    return 0


def _estimate(plans: Sequence[ChainPlan], submissions: Sequence[Submission], profile: Profile) -> str:
    most = sum(profile.gpu_hours(submission.dataset) for submission in submissions)
    gpus = profile.nodes * profile.gpus
    text = f"{len(submissions)} jobs of {profile.nodes} nodes with {profile.gpus} GPUs: at most {most:.1f} GPU-hours"
    seconds = [
        float(run_folder.read_json(run_folder.round_folder(plan.folder, number) / run_folder.METRICS)["seconds"])
        for plan in plans
        for number in range(plan.committed)
    ]
    if seconds:
        hours = sum(seconds) / len(seconds) * len(submissions) * profile.pack / 3600
        text += f"; by the {len(seconds)} rounds committed so far about {hours * gpus:.2f} ({hours:.2f} hours of jobs)"
    return text + "."
