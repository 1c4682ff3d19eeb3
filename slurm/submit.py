"""From chains to jobs: what is missing in the queue, each job's sbatch script, and submitting.

Jobs of a chain share one name and wait for each other (singleton); the job for round r has the target "committed up to
round r", whatever happened to those before it. Jobs are submitted round by round over all chains, so that a submission
limit met half way leaves every chain able to go on. Where very many are missing, chains that have no job become tasks
of one array instead, each from its first missing round to its last: one sbatch for all of them.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from mal.run import folder as run_folder
from mal.run.code_copy import CODE, code_variables
from slurm.attempts import FOLDER, bad_nodes
from slurm.avoid import others_remain
from slurm.client import SlurmError, SlurmFullError, SlurmSilentError, call, job_environment
from slurm.profile import Profile, submitit_parameters
from slurm.squeue import Job, array_name, by_chain, chains_of, job_comment, name_of, order, read_queue
from slurm.submitted import FOLDER as SWEEP_FOLDER
from slurm.submitted import array_file, note_aim, note_array, note_submitted, note_submitted_array
from slurm.traces import python_line, setup_lines

# Slurm's codes for as many jobs as a user, an account or a QOS may have: the only limits that pass as jobs end.
_PASSING = re.compile(r"(Max|Grp)Submit|(Max|Grp)Jobs?(Per\w*)?(Limit)?\b|MaxJobCount|queue full|temporarily unable")
# Of any limit, that of one job included, which never passes, where no code is given.
_NO_CODE = re.compile(r"Job violates accounting/QOS policy")
_CODE = re.compile(r"\b(QOS|Assoc)(Max|Min|Grp)\w+")
SILENT_ATTEMPTS = 10  # of one sbatch while the controller is silent: about 90 s


@dataclass(frozen=True)
class Wanted:
    """A chain that is to be committed up to `target`.

    takes: the chains, METHOD/seed-S, that train what it would train too -> in how many of its first rounds.
    """

    method: str
    seed: int
    dataset: str
    committed: int
    target: int
    takes: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """METHOD/seed-S."""
        return f"{self.method}/seed-{self.seed}"


@dataclass(frozen=True)
class Submission:
    """One job: the chains it works on (METHOD/seed-S), how far, and how many rounds that are; or a task of an array.

    takes: chains whose jobs for the same round a job waits for; tasks, which start in order, do not.
    """

    name: str
    chains: tuple[str, ...]
    until: int
    dataset: str
    rounds: int = 1
    task: bool = False
    takes: tuple[str, ...] = ()


class Submitter:
    """Submits the jobs of one sweep by one profile.

    code: the kept copy that they run. spare: one job more for each chain, where Slurm cancels what it preempts: else
    nothing would come back for a chain's last job.
    """

    def __init__(self, sweep: str, runs: Path, profile: Profile, code: Path, spare: bool = False) -> None:
        self.sweep, self.runs, self.profile, self.code = sweep, logical(runs), profile, code
        self.spare = spare
        self.after: str | None = None  # a job that all others wait for, and do not start where it fails
        self._seen: set[str] = set()  # jobs that are in the queue already
        self._last: dict[str, tuple[int, str]] = {}  # of each chain, the job that goes furthest: how far, and its id
        self._jobs: dict[str, list[tuple[int, str]]] = {}  # of each chain, how far its jobs go, and their ids

    def missing(self, wanted: Sequence[Wanted], jobs: Iterable[Job]) -> list[Submission]:
        """The jobs that the queue lacks, round by round over all chains.

        A chain whose last queued job goes far enough lacks none: a job does what those before it left.
        """
        jobs = list(jobs)
        queued = by_chain((job for job in jobs if job.alive), self.sweep, self.runs)
        self._seen |= {job.id for job in jobs}
        for (method, seed), theirs in queued.items():
            last = max(theirs, key=lambda job: (job.until, order(job.id)))
            self._last[f"{method}/seed-{seed}"] = last.until, last.id
            self._jobs[f"{method}/seed-{seed}"] = [(job.until, job.id) for job in theirs]
        lacking: list[tuple[int, int, Submission]] = []
        for place, members in enumerate(self._groups(wanted, queued)):
            queue = {job.id: job for w in members for job in queued.get((w.method, w.seed), [])}
            far = max((job.until for job in queue.values()), default=0)
            done, target = min(w.committed for w in members), max(w.target for w in members)
            names = self._names(members, queued)
            name = name_of(self.sweep, names, self.runs)
            if any("_" in job for job in queue):  # the only job of its chains: see `aim`
                continue
            untils = list(range(max(far, done) + 1, target + 1))
            furthest = untils.count(target) + sum(job.until >= target for job in queue.values())
            if self.spare and done < target and furthest < 2:
                untils.append(target)
            for number, until in enumerate(untils, start=max(far, done) + 1 - done):
                takes = {chain for w in members for chain, rounds in w.takes.items() if until <= rounds} - set(names)
                submission = Submission(name, names, until, members[0].dataset, takes=tuple(sorted(takes)))
                lacking.append((number, place, submission))
        submissions = [submission for _, _, submission in sorted(lacking, key=lambda entry: entry[:2])]
        return submissions if self.spare or len(lacking) < self.profile.array_from else self._as_tasks(submissions)

    def _as_tasks(self, submissions: Sequence[Submission]) -> list[Submission]:
        """Jobs of chains that have none as one task for each chain; the others as they are."""
        tasks: dict[str, Submission] = {}
        others = []
        for submission in submissions:
            if submission.chains[0] in self._last:
                others.append(submission)
            else:
                rounds = tasks[submission.name].rounds + 1 if submission.name in tasks else 1
                tasks[submission.name] = replace(submission, rounds=rounds, task=True, takes=())
        return [*tasks.values(), *others]

    def script(self, submission: Submission) -> str:
        """The sbatch script, from submitit."""
        further = {
            "output": _escaped(self._log(submission)),
            "comment": job_comment(submission.chains, submission.until),
        }
        chains = [str(self.runs / self.sweep / chain) for chain in submission.chains]
        first = {job for chain in submission.takes if (job := self._job_of(chain, submission.until))}
        # However those end: where nothing can be taken from them, the chain trains.
        waits = ",".join(["singleton", *(f"afterany:{job}" for job in sorted(first, key=order))])
        return self._script(submission, waits, further, [*chains, "--until", str(submission.until)])

    def _job_of(self, chain: str, until: int) -> str:
        """The id of the first job of a chain that commits so many rounds; empty where it has none."""
        far = [(goes, order(job), job) for goes, job in self._jobs.get(chain, ()) if goes >= until]
        return min(far)[2] if far else ""

    def array_script(self, tasks: Sequence[Submission], digest: str) -> str:
        """The sbatch script of an array; digest: of what its tasks are for."""
        log, file = self.runs / self.sweep / SWEEP_FOLDER / "%A_%a.log", array_file(self.runs / self.sweep, digest)
        further = {"output": _escaped(log), "array": f"0-{len(tasks) - 1}"}
        named = replace(tasks[0], name=array_name(self.sweep, digest, self.runs))
        return self._script(named, "", further, ["--array", str(file)])

    def _script(self, submission: Submission, waits: str, further: dict[str, str], work: Sequence[str]) -> str:
        minutes = self.profile.minutes(submission.dataset)
        parameters = submitit_parameters(self.profile, submission.dataset, submission.name)
        if self.after is not None:
            waits = ",".join(filter(None, [waits, f"afterok:{self.after}"]))
            further["kill-on-invalid-dep"] = "yes"
        del parameters["dependency"]
        parameters |= {"dependency": waits} if waits else {}
        # a comment of the user's own goes before ours: jobs are known by their ids, too
        parameters["additional_parameters"] = further | parameters["additional_parameters"]
        if avoided := self._avoided(submission):
            parameters["exclude"] = ",".join(filter(None, [self.profile.exclude, *avoided]))
        command = ["slurm.job", *work, "--minutes", str(minutes)]
        command += ["--lead", str(self.profile.signal_lead_s), "--hang-minutes", f"{self.profile.hang_minutes:g}"]
        command += ["--tasks", str(self.profile.nodes * self.profile.tasks), "--gpus", str(self.profile.gpus)]
        command += ["--code", self.code.name] if self.code.parent.name == CODE else []
        return self.text(parameters, command)

    def text(self, parameters: dict[str, Any], command: Sequence[str]) -> str:
        """An sbatch script that runs a module of the kept copy, with its arguments."""
        own = [*parameters.get("setup", []), self._export()]
        parameters = parameters | {"setup": setup_lines(own, self.runs / self.sweep)}
        self._executor.parameters.clear()
        self._executor.update_parameters(**parameters)
        return str(self._executor._make_submission_file_text(python_line(command), uid=""))

    def submit(self, submissions: Sequence[Submission], report: Callable[[int], None]) -> tuple[int, str]:
        """Submit them in order; how many Slurm took, and its words where a limit that passes stopped it, else "".

        report: called with the number taken so far. Raises SlurmError where Slurm refuses a job itself, or is silent.
        """
        tasks = [submission for submission in submissions if submission.task]
        taken, words = self._submit_tasks(tasks, report)
        for submission in submissions[len(tasks) :] if taken == len(tasks) else []:
            try:
                self._submit(submission)
            except SlurmError as error:
                if not _passes(error, taken):
                    raise
                return taken, str(error).partition(": ")[2]
            taken += 1
            report(taken)
        return taken, words

    def _submit_tasks(self, tasks: Sequence[Submission], report: Callable[[int], None]) -> tuple[int, str]:
        """Submit them as arrays, as large as Slurm takes them; how many it took, and its words as `submit`."""
        taken, size = 0, len(tasks)
        while taken < len(tasks):
            alike = _alike(tasks[taken : taken + size], self._avoided)
            try:
                self._submit_array(alike)
            except SlurmError as error:
                if isinstance(error, SlurmSilentError) or (len(alike) == 1 and not _passes(error, taken)):
                    raise
                if len(alike) == 1:
                    return taken, str(error).partition(": ")[2]
                size = (len(alike) + 1) // 2  # larger than an array may be here, or than what a limit leaves
                continue
            taken += len(alike)
            report(taken)
        return taken, ""

    def prolong(self, wanted: Iterable[Wanted]) -> None:
        """Let tasks of arrays in the queue go on as far as their chains are wanted now."""
        self.aim(chain for chain in wanted if "_" in self._last.get(chain.name, (0, ""))[1])

    def aim(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Let the last job of each chain go on to the chain's end; the chains that have no job."""
        without = []
        for chain in wanted:
            until, job = self._last.get(chain.name, (0, ""))
            if not job:
                without.append(chain)
            elif until < chain.target:
                note_aim(self.runs / self.sweep, job, chain.target)
        return without

    def _submit(self, submission: Submission) -> None:
        self._log(submission).parent.mkdir(parents=True, exist_ok=True)
        if (job := self._sbatch(submission.name, self.script(submission))) is not None:
            self._note(submission, job)

    def _submit_array(self, tasks: Sequence[Submission]) -> None:
        where = self.runs / self.sweep
        for chain in (chain for task in tasks for chain in task.chains):
            (where / chain / FOLDER).mkdir(parents=True, exist_ok=True)
        digest = note_array(where, [(task.chains, task.until) for task in tasks])
        name = array_name(self.sweep, digest, self.runs)
        found = self._sbatch(name, self.array_script(tasks, digest))
        if found is None:
            return  # its name tells the next launch
        job = found.partition("_")[0]
        note_submitted_array(where, job, name, digest, str(where / SWEEP_FOLDER / f"{job}_%a.log"))
        for number, task in enumerate(tasks):
            self._last |= dict.fromkeys(task.chains, (task.until, f"{job}_{number}"))

    def _sbatch(self, name: str, script: str) -> str | None:
        """The id of the job that was submitted, None where it is not known. Errors: those of `slurm.client.call`."""
        for attempt in range(SILENT_ATTEMPTS):
            try:
                answer = call("sbatch", "--parsable", text=script, attempts=1, environment=job_environment())
                return job_id(answer) or self._arrived(name, 0)
            except SlurmSilentError:
                if attempt + 1 == SILENT_ATTEMPTS:
                    raise
                # It may have reached Slurm all the same: nothing must be submitted twice.
                if (job := self._arrived(name, 2 * (attempt + 1))) is not None:
                    return job
        raise AssertionError("unreachable")

    def _arrived(self, name: str, wait_s: float) -> str | None:
        """The id of a job that sbatch has submitted without saying so; asked until the queue can be seen."""
        for attempt in range(SILENT_ATTEMPTS):
            time.sleep(wait_s)
            try:
                queue = read_queue()
            except SlurmSilentError:
                if attempt + 1 == SILENT_ATTEMPTS:
                    raise
                continue
            return max((j.id for j in queue if j.name == name and j.id not in self._seen), key=order, default=None)
        raise AssertionError("unreachable")

    def _note(self, submission: Submission, job: str) -> None:
        self._seen.add(job)
        for chain in submission.chains:
            self._last[chain] = submission.until, job
            self._jobs.setdefault(chain, []).append((submission.until, job))
        log = str(self._log(submission)).removesuffix("%j.log") + f"{job}.log"
        where = self.runs / self.sweep
        note_submitted(where, job, submission.name, submission.chains, submission.until, log)

    def _avoided(self, submission: Submission) -> list[str]:
        """The nodes that have failed one of the chains, where others are in service."""
        bad = sorted({n for chain in submission.chains for n in bad_nodes(self.runs / self.sweep / chain)})
        return bad if bad and others_remain(bad, self.profile.nodes, self.profile.partition or "") else []

    def _export(self) -> str:
        """A line of shell: take our packages from the kept copy, then from wherever the user has others."""
        variables = code_variables(self.code)
        exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
        return f'export {exports}"${{PYTHONPATH:+:$PYTHONPATH}}"'

    @cached_property
    def _executor(self) -> Any:
        import submitit

        class Scripts(submitit.SlurmExecutor):
            """Writes scripts also where Slurm is not installed, for dry runs."""

            @classmethod
            def affinity(cls) -> int:
                return 2

        return Scripts(folder=self.runs / self.sweep / SWEEP_FOLDER)

    def _groups(self, wanted: Sequence[Wanted], queued: dict[tuple[str, int], list[Job]]) -> list[list[Wanted]]:
        """Which chains share jobs: those whose jobs are queued as they are there, the others `pack` at a time."""
        together: dict[tuple[str, ...], list[Wanted]] = {}
        free: list[Wanted] = []
        for chain in wanted:
            if found := queued.get((chain.method, chain.seed)):
                together.setdefault(_members(found[-1]), []).append(chain)
            elif chain.committed < chain.target:
                free.append(chain)
        size = self.profile.pack
        return [*together.values(), *(free[i : i + size] for i in range(0, len(free), size))]

    def _names(self, members: Sequence[Wanted], queued: dict[tuple[str, int], list[Job]]) -> tuple[str, ...]:
        found = queued.get((members[0].method, members[0].seed))
        return _members(found[-1]) if found else tuple(chain.name for chain in members)

    def _log(self, submission: Submission) -> Path:
        where = self.runs / self.sweep
        folder = where / submission.chains[0] / FOLDER if len(submission.chains) == 1 else where / SWEEP_FOLDER
        return folder / "%j.log"


def logical(path: Path) -> Path:
    """A path from the root, as the shell sees it: links are not followed, as a node may have others."""
    if path.is_absolute():
        return path
    shell = Path(os.environ.get("PWD", ""))
    return (shell if shell.is_absolute() and shell.exists() and shell.samefile(Path.cwd()) else Path.cwd()) / path


def log_of(chain: Path) -> Path | None:
    """The log that the chain's newest job, or worker process, has written into."""
    logs = [*(chain / FOLDER).glob("*.log"), *chain.glob(run_folder.LOG)]
    return max(logs, key=lambda path: path.stat().st_mtime, default=None)


def _members(job: Job) -> tuple[str, ...]:
    return tuple(f"{chain.method}/seed-{chain.seed}" for chain in chains_of(job))


def _passes(error: SlurmError, taken: int) -> bool:
    """Whether Slurm refuses for now only; taken: jobs that it has just taken."""
    words = str(error)
    if isinstance(error, SlurmFullError):
        return True
    if isinstance(error, SlurmSilentError):
        return False
    if _CODE.search(words) or not _NO_CODE.search(words):
        return bool(_PASSING.search(words))
    return taken > 0  # it took jobs like this one: only their number can be too large


def _alike(tasks: Sequence[Submission], avoided: Callable[[Submission], list[str]]) -> Sequence[Submission]:
    """The first of them that can be tasks of one array: on one data set, and away from the same nodes."""
    first = tasks[0].dataset, avoided(tasks[0])
    return list(takewhile(lambda task: (task.dataset, avoided(task)) == first, tasks))


def _escaped(log: Path) -> str:
    """A path with a pattern of Slurm's as its name, whose folders mean what they say."""
    return str(log.parent).replace("%", "%%") + f"/{log.name}"


def job_id(answer: str) -> str | None:
    """The id in what `sbatch --parsable` says, ID or ID;CLUSTER, below whatever a wrapper of the site says."""
    found = re.findall(r"^(\d+)(?:;\S+)?$", answer.strip(), re.MULTILINE)
    return found[-1] if found else None
