"""From chains to jobs: what is missing in the queue, each job's sbatch script, and submitting.

Jobs of a chain share one name and wait for each other (singleton); the job for round r has the target "committed up to
round r", whatever happened to those before it. Jobs are submitted round by round over all chains, so that a submission
limit met half way leaves every chain able to go on.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mal.run import folder as run_folder
from mal.run.code_copy import CODE, code_variables
from slurm.attempts import FOLDER, bad_nodes
from slurm.client import SlurmError, SlurmFullError, SlurmSilentError, call, job_environment
from slurm.profile import Profile, submitit_parameters
from slurm.requeue import others_remain
from slurm.squeue import Job, by_chain, chains_of, job_comment, name_of, read_queue
from slurm.submitted import FOLDER as SWEEP_FOLDER
from slurm.submitted import note_aim, note_submitted

# Slurm's codes for as many jobs as a user, an account or a QOS may have: the only limits that pass as jobs end.
_PASSING = re.compile(r"(Max|Grp)Submit|(Max|Grp)Jobs?(Per\w*)?(Limit)?\b|MaxJobCount|queue full|temporarily unable")
# Of any limit, that of one job included, which never passes, where no code is given.
_NO_CODE = re.compile(r"Job violates accounting/QOS policy")
_CODE = re.compile(r"\b(QOS|Assoc)(Max|Min|Grp)\w+")
SILENT_ATTEMPTS = 10  # of one sbatch while the controller is silent: about 90 s


# The first line of a job's log, before anything that can fail: where it ran.
_HELLO = 'echo "job $SLURM_JOB_ID is on ${SLURMD_NODENAME:-$(hostname)}"'


@dataclass(frozen=True)
class Wanted:
    """A chain that is to be committed up to `target`."""

    method: str
    seed: int
    dataset: str
    committed: int
    target: int

    @property
    def name(self) -> str:
        """METHOD/seed-S."""
        return f"{self.method}/seed-{self.seed}"


@dataclass(frozen=True)
class Submission:
    """One job: the chains it works on (METHOD/seed-S), and how far."""

    name: str
    chains: tuple[str, ...]
    until: int
    dataset: str


class Submitter:
    """Submits the jobs of one sweep by one profile.

    code: the kept copy that they run. spare: one job more for each chain, where Slurm cancels what it preempts: else
    nothing would come back for a chain's last job.
    """

    def __init__(self, sweep: str, runs: Path, profile: Profile, code: Path, spare: bool = False) -> None:
        self.sweep, self.runs, self.profile, self.code = sweep, logical(runs), profile, code
        self.spare = spare
        self.after: int | None = None  # a job that all others wait for, and do not start where it fails
        self._seen: set[int] = set()  # jobs that are in the queue already
        self._last: dict[str, tuple[int, int]] = {}  # of each chain, the job that goes furthest: how far, and its id

    def missing(self, wanted: Sequence[Wanted], jobs: Iterable[Job]) -> list[Submission]:
        """The jobs that the queue lacks, round by round over all chains.

        A chain whose last queued job goes far enough lacks none: a job does what those before it left.
        """
        jobs = list(jobs)
        queued = by_chain((job for job in jobs if job.alive), self.sweep, self.runs)
        self._seen |= {job.id for job in jobs}
        for (method, seed), theirs in queued.items():
            self._last[f"{method}/seed-{seed}"] = max((job.until, job.id) for job in theirs)
        lacking: list[tuple[int, int, Submission]] = []
        for order, members in enumerate(self._groups(wanted, queued)):
            queue = {job.id: job for w in members for job in queued.get((w.method, w.seed), [])}.values()
            far = max((job.until for job in queue), default=0)
            done, target = min(w.committed for w in members), max(w.target for w in members)
            names = self._names(members, queued)
            untils = list(range(max(far, done) + 1, target + 1))
            if self.spare and done < target and untils.count(target) + sum(job.until >= target for job in queue) < 2:
                untils.append(target)
            for number, until in enumerate(untils, start=max(far, done) + 1 - done):
                submission = Submission(name_of(self.sweep, names, self.runs), names, until, members[0].dataset)
                lacking.append((number, order, submission))
        return [submission for _, _, submission in sorted(lacking, key=lambda entry: entry[:2])]

    def script(self, submission: Submission) -> str:
        """The sbatch script, from submitit."""
        name, minutes = submission.name, self.profile.minutes(submission.dataset)
        parameters = submitit_parameters(self.profile, submission.dataset, name)
        log = str(self._log(submission)).replace("%", "%%").removesuffix("%%j.log") + "%j.log"
        further = {"output": log, "comment": job_comment(submission.chains, submission.until)}
        if self.after is not None:
            parameters["dependency"] = f"singleton,afterok:{self.after}"
            further["kill-on-invalid-dep"] = "yes"
        # a comment of the user's own goes before ours: jobs are known by their ids, too
        parameters["additional_parameters"] = further | parameters["additional_parameters"]
        if avoided := self._avoided(submission):
            parameters["exclude"] = ",".join(filter(None, [self.profile.exclude, *avoided]))
        chains = [str(self.runs / self.sweep / chain) for chain in submission.chains]
        command = [sys.executable, "-u", "-m", "slurm.job", *chains]
        command += ["--until", str(submission.until), "--minutes", str(minutes)]
        command += ["--lead", str(self.profile.signal_lead_s), "--hang-minutes", f"{self.profile.hang_minutes:g}"]
        command += ["--tasks", str(self.profile.nodes * self.profile.tasks), "--gpus", str(self.profile.gpus)]
        command += ["--code", self.code.name] if self.code.parent.name == CODE else []
        return self.text(parameters, command)

    def text(self, parameters: dict[str, Any], command: Sequence[str]) -> str:
        """An sbatch script that runs a command of the kept copy."""
        # after the profile's own commands, so that nothing they set comes first
        parameters = parameters | {"setup": [_HELLO, *parameters.get("setup", []), self._export()]}
        self._executor.parameters.clear()
        self._executor.update_parameters(**parameters)
        return str(self._executor._make_submission_file_text(f"exec {shlex.join(command)}", uid=""))

    def submit(self, submissions: Sequence[Submission], report: Callable[[int], None]) -> tuple[int, str]:
        """Submit them in order; how many Slurm took, and its words where a limit that passes stopped it, else "".

        report: called with the number taken so far. Raises SlurmError where Slurm refuses a job itself, or is silent.
        """
        for number, submission in enumerate(submissions):
            try:
                self._submit(submission)
            except SlurmError as error:
                if not _passes(error, number):
                    raise
                return number, str(error).partition(": ")[2]
            report(number + 1)
        return len(submissions), ""

    def aim(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Let the last job of each chain go on to the chain's end; the chains that have no job."""
        without = []
        for chain in wanted:
            until, job = self._last.get(chain.name, (0, 0))
            if not job:
                without.append(chain)
            elif until < chain.target:
                note_aim(self.runs / self.sweep, job, chain.target)
        return without

    def _submit(self, submission: Submission) -> None:
        self._log(submission).parent.mkdir(parents=True, exist_ok=True)
        script, job = self.script(submission), None
        for attempt in range(SILENT_ATTEMPTS):
            try:
                job = job_id(call("sbatch", "--parsable", text=script, attempts=1, environment=job_environment()))
                break
            except SlurmSilentError:
                if attempt + 1 == SILENT_ATTEMPTS:
                    raise
                # It may have reached Slurm all the same: nothing must be submitted twice.
                if (job := self._arrived(submission, 2 * (attempt + 1))) is not None:
                    break
        job = self._arrived(submission, 0) if job is None else job
        if job is not None:
            self._note(submission, job)

    def _arrived(self, submission: Submission, wait_s: float) -> int | None:
        """The id of a job that sbatch has submitted without saying so; asked until the queue can be seen."""
        for attempt in range(SILENT_ATTEMPTS):
            time.sleep(wait_s)
            try:
                queue = read_queue()
            except SlurmSilentError:
                if attempt + 1 == SILENT_ATTEMPTS:
                    raise
                continue
            ours = [job.id for job in queue if job.name == submission.name and job.id not in self._seen]
            return max(ours, default=None)
        raise AssertionError("unreachable")

    def _note(self, submission: Submission, job: int) -> None:
        self._seen.add(job)
        for chain in submission.chains:
            self._last[chain] = submission.until, job
        log = str(self._log(submission)).removesuffix("%j.log") + f"{job}.log"
        where = self.runs / self.sweep
        note_submitted(where, job, submission.name, submission.chains, submission.until, log)

    def _avoided(self, submission: Submission) -> list[str]:
        """The nodes that have failed one of the chains, where others are in service."""
        bad = sorted({n for chain in submission.chains for n in bad_nodes(self.runs / self.sweep / chain)})
        return bad if bad and others_remain(self.profile.partition or "", bad, self.profile.nodes) else []

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


def job_id(answer: str) -> int | None:
    """The id in what `sbatch --parsable` says, ID or ID;CLUSTER, below whatever a wrapper of the site says."""
    found = re.findall(r"^(\d+)(?:;\S+)?$", answer.strip(), re.MULTILINE)
    return int(found[-1]) if found else None
