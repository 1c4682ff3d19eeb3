"""From chains to jobs: what is missing in the queue, each job's sbatch script, and submitting.

Jobs of a chain share one name and wait for each other (singleton); the job for round r has the target "committed up to
round r", whatever happened to those before it. Jobs are submitted round by round over all chains, so that a submission
limit met half way leaves every chain able to go on.
"""

from __future__ import annotations

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
from mal.run.code_copy import code_variables
from slurm.attempts import FOLDER
from slurm.client import SlurmError, SlurmSilentError, call
from slurm.profile import Profile, submitit_parameters
from slurm.squeue import Job, by_chain, chains_of, job_comment, job_name, pack_name, read_queue

# Slurm's words where a user, an account or a QOS may have no more jobs for now.
_LIMIT = re.compile(r"accounting/QOS policy|QOSMax|QOSGrp|AssocMax|AssocGrp|MaxSubmit|MaxJobCount|limit", re.IGNORECASE)
SILENT_ATTEMPTS = 10  # of one sbatch while the controller is silent: about 90 s
PACK_LOGS = ".slurm"


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
    """Submits the jobs of one sweep by one profile; code: the kept copy that they run."""

    def __init__(self, sweep: str, runs: Path, profile: Profile, code: Path) -> None:
        self.sweep, self.runs, self.profile, self.code = sweep, runs.resolve(), profile, code

    def missing(self, wanted: Sequence[Wanted], jobs: Iterable[Job]) -> list[Submission]:
        """The jobs that the queue lacks, round by round over all chains.

        A chain whose last queued job goes far enough lacks none: a job does what those before it left.
        """
        queued = by_chain((job for job in jobs if job.alive), self.sweep, self.runs)
        lacking: list[tuple[int, int, Submission]] = []
        for order, members in enumerate(self._groups(wanted, queued)):
            far = max((job.until for w in members for job in queued.get((w.method, w.seed), [])), default=0)
            done = min(w.committed for w in members)
            names = self._names(members, queued)
            for until in range(max(far, done) + 1, max(w.target for w in members) + 1):
                submission = Submission(self._job_name(names), names, until, members[0].dataset)
                lacking.append((until - done, order, submission))
        return [submission for _, _, submission in sorted(lacking, key=lambda entry: entry[:2])]

    def script(self, submission: Submission) -> str:
        """The sbatch script, from submitit."""
        name, minutes = submission.name, self.profile.minutes(submission.dataset)
        parameters = submitit_parameters(self.profile, submission.dataset, name)
        further = {"output": str(self._log(submission)), "comment": job_comment(submission.chains, submission.until)}
        parameters["additional_parameters"] = parameters["additional_parameters"] | further
        # after the profile's own commands, so that nothing they set comes first
        parameters["setup"] = [*parameters.get("setup", []), self._export()]
        self._executor.parameters.clear()
        self._executor.update_parameters(**parameters)
        command = [
            sys.executable,
            "-u",
            "-m",
            "slurm.job",
            *(str(self.runs / self.sweep / c) for c in submission.chains),
        ]
        command += ["--until", str(submission.until), "--minutes", str(minutes)]
        command += ["--lead", str(self.profile.signal_lead_s), "--hang-minutes", f"{self.profile.hang_minutes:g}"]
        return str(self._executor._make_submission_file_text(f"exec {shlex.join(command)}", uid=""))

    def submit(self, submissions: Sequence[Submission], report: Callable[[int], None]) -> tuple[int, str]:
        """Submit them in order; how many Slurm took, and its words where a limit stopped it, else "".

        report: called with the number taken so far. Raises SlurmError where Slurm refuses a job itself.
        """
        for number, submission in enumerate(submissions):
            try:
                self._submit(submission)
            except SlurmError as error:
                if isinstance(error, SlurmSilentError) or not _LIMIT.search(str(error)):
                    raise
                return number, str(error).partition(": ")[2]
            report(number + 1)
        return len(submissions), ""

    def _submit(self, submission: Submission) -> None:
        self._log(submission).parent.mkdir(parents=True, exist_ok=True)
        script = self.script(submission)
        for attempt in range(SILENT_ATTEMPTS):
            try:
                call("sbatch", "--parsable", text=script, attempts=1)
                return
            except SlurmSilentError:
                if attempt + 1 == SILENT_ATTEMPTS:
                    raise
                time.sleep(2 * (attempt + 1))
                # It may have reached Slurm all the same: nothing must be submitted twice.
                if any(job.name == submission.name and job.until == submission.until for job in read_queue()):
                    return

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

        return Scripts(folder=self.runs / self.sweep / PACK_LOGS)

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

    def _job_name(self, chains: tuple[str, ...]) -> str:
        if len(chains) > 1:
            return pack_name(self.sweep, chains, self.runs)
        method, _, seed = chains[0].rpartition("/seed-")
        return job_name(self.sweep, method, int(seed), self.runs)

    def _log(self, submission: Submission) -> Path:
        where = self.runs / self.sweep
        folder = where / submission.chains[0] / FOLDER if len(submission.chains) == 1 else where / PACK_LOGS
        return folder / "%j.log"


def log_of(chain: Path) -> Path | None:
    """The log that the chain's newest job, or worker process, has written into."""
    logs = [*(chain / FOLDER).glob("*.log"), *chain.glob(run_folder.LOG)]
    return max(logs, key=lambda path: path.stat().st_mtime, default=None)


def _members(job: Job) -> tuple[str, ...]:
    return tuple(f"{chain.method}/seed-{chain.seed}" for chain in chains_of(job))
