"""Faults of all kinds at random moments, over hours: sweep after sweep of small chains on a one-machine Slurm."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mal.files import write_atomic
from mal.run import folder as run_folder
from mal.run.code_copy import code_hash
from mal.run.heartbeat import read_progress
from slurm.attempts import read_attempts
from slurm.client import SlurmError
from slurm.local import LocalSlurm
from slurm.local_conf import ClusterShape
from slurm.squeue import read_queue
from slurm.stuck import stuck
from tests.chaos.launches import LAUNCHES
from tests.chaos.records import ChainRow, FaultRow, Records
from tests.chaos.strikes import INTERRUPTING, PROLOG, STRIKES, prepare_faults, resume_nodes
from tests.chaos.trial import Trial, bare_path, files_of, private_cluster, undisturbed, wait_for
from tests.slurm.fakes import failing_calls, forbidding_requeue

ROUNDS = 3
HANG_MINUTES = 3  # of a silent round; less is no hang where two cores carry tens of processes
LONGEST_SECONDS = 1500.0  # of a sweep
MOST_FAULTS = 24  # of a sweep: chains that take longer to start than faults are apart would never end
LOOK_SECONDS = 3.0  # between two looks for a chain that nobody works on
# Of sweeps: how often, arguments, and what their jobs find on their nodes.
SWEEPS: dict[str, tuple[int, list[str], str]] = {
    "plain": (6, [], ""),
    "two nodes": (1, ["cluster.nodes=2"], ""),
    "short limit": (1, ["cluster.time.default=3", "cluster.hang_minutes=60"], ""),
    "requeue forbidden": (1, [], "export PATH={folder}/forbidding:$PATH"),
    "no flock": (1, [], "export NO_FLOCK=1"),
    "no scontrol": (1, [], "export PATH={folder}/bare"),
    "few jobs": (1, ["cluster.max_jobs=4"], ""),
    "an array": (2, ["cluster.array_from=4"], ""),
    "two chains per job": (1, ["cluster.pack=2"], ""),
    "reading processes": (1, ["loader=torch"], ""),
}


@dataclass
class Open:
    """A fault whose chains have not all gone on yet; pids: of their processes when it struck."""

    kind: str
    target: str
    moment: float
    pids: dict[int, int]
    waiting: set[int]
    helped: str = ""  # released, or person
    longest: float = 0.0


@dataclass
class Storm:
    """The state of a study over hours."""

    cluster: LocalSlurm
    records: Records
    kinds: Sequence[str]
    mtbf: float
    rng: random.Random
    reference: Path
    setup: str
    version: str
    chains: int = 4
    bad: int = 0
    struck: int = 0
    sweeps: int = 0
    sweep: str = ""
    open: list[Open] = field(default_factory=list)
    helped: Counter[tuple[str, int]] = field(default_factory=Counter)
    idle: dict[int, float] = field(default_factory=dict)
    looked: float = 0.0

    def run_sweep(self, until: float, faults: int) -> None:
        """One sweep from its launch to its end, struck until there were so many faults or the time is over."""
        trial = self._trial()
        begun, before, strike = time.time(), self.struck, threading.Thread(target=lambda: None)
        strike.start()
        self._launch(trial)
        following = time.time() + self.rng.expovariate(1 / self.mtbf)
        while not trial.done() and time.time() - begun < LONGEST_SECONDS:
            if not strike.is_alive():
                more = self.struck < min(faults, before + MOST_FAULTS) and time.time() < until
                if more and time.time() >= following:
                    following += self.rng.expovariate(1 / self.mtbf)
                    strike = self._strike(trial)
                self._help(trial)
            self._follow(trial)
            time.sleep(0.2)
        strike.join()
        self._follow(trial)
        self._end(trial, begun)

    def _trial(self) -> Trial:
        self.sweeps += 1
        self.sweep = self.rng.choices(list(SWEEPS), [weight for weight, _, _ in SWEEPS.values()])[0]
        _, extra, found = SWEEPS[self.sweep]
        lines = [self.setup, *([found.format(folder=self.cluster.folder)] if found else [])]
        extra = [*extra, f"cluster.setup={lines}"]
        extra += [] if self.sweep == "short limit" else [f"cluster.hang_minutes={HANG_MINUTES}"]
        seeds = min(2, self.chains) if self.sweep == "two nodes" else self.chains
        self.open, self.helped, self.idle = [], Counter(), {}
        runs = self.cluster.folder / f"runs-{self.sweeps}"
        return Trial(self.cluster, runs, seeds, self.rng, 0.0, extra, rounds=ROUNDS)

    def _launch(self, trial: Trial) -> None:
        kind = self.rng.choice(list(LAUNCHES))
        begun = time.time()
        helped = LAUNCHES[kind](trial)
        if kind != "plain":
            self.struck += 1
            outcome = "person" if helped else "went on"
            self.bad += helped
            row = FaultRow(*self._stamp(), kind, f"{trial.seeds} chains", outcome, time.time() - begun)
            self._note(row)

    def _strike(self, trial: Trial) -> threading.Thread:
        """Strike now; the rest of it, until it is mended, in a thread."""
        kind = self.rng.choice(self.kinds)
        pids = {seed: _pid(chain) for seed, chain in enumerate(trial.chains)}
        moment, steps = time.time(), STRIKES[kind](trial)
        try:
            seeds = [seed for seed in next(steps) if run_folder.committed_rounds(trial.chains[seed]) < ROUNDS]
        except SlurmError as error:
            print(f"{kind}: {error}", flush=True)
            seeds = []
        if seeds:
            self.struck += 1
            target = " ".join(f"mal/seed-{seed}" for seed in seeds)
            self.open.append(Open(kind, target, moment, pids, set(seeds)))
            print(f"{now()} {kind}: {target}", flush=True)
        thread = threading.Thread(target=self._mend, args=(kind, steps))
        thread.start()
        return thread

    def _mend(self, kind: str, steps: Iterator[list[int]]) -> None:
        try:
            list(steps)
        except Exception:  # of one fault's own doing: told, and counted as bad
            self.bad += 1
            print(f"{kind} could not be mended:\n{traceback.format_exc()}", flush=True)

    def _follow(self, trial: Trial) -> None:
        """Close the faults whose chains have all gone on."""
        for fault in list(self.open):
            for seed in sorted(fault.waiting):
                if _went_on(trial.chains[seed], fault, fault.pids[seed]):
                    fault.waiting.discard(seed)
                    fault.longest = time.time() - fault.moment
            if not fault.waiting:
                self._close(fault, fault.helped or ("done" if trial.done() else "went on"))

    def _close(self, fault: Open, outcome: str) -> None:
        self.open.remove(fault)
        row = FaultRow(*self._stamp(), fault.kind, fault.target, outcome, fault.longest)
        self._note(row)

    def _stamp(self) -> tuple[str, str, str, str]:
        """The first columns of a row."""
        return now(), code_hash(), self.version, self.sweep

    def _note(self, row: FaultRow | ChainRow) -> None:
        print(row, flush=True)
        self.records.add(row)

    def _help(self, trial: Trial) -> None:
        """Do what a person would have to: release what is held, launch again where nothing works on a chain."""
        if time.time() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.time()
        try:
            resume_nodes(trial)
            jobs = {seed: trial.jobs(seed, over=True) for seed in range(trial.seeds)}
        except SlurmError:
            return
        for seed, chain in enumerate(trial.chains):
            held = stuck(jobs[seed])
            if run_folder.committed_rounds(chain) >= ROUNDS or (jobs[seed] and held is None):
                self.idle.pop(seed, None)
                continue
            since = self.idle.setdefault(seed, self.looked)
            if self.looked - since < (0 if held and "held" in held.reason else 2 * LOOK_SECONDS if not held else 60):
                continue
            self._help_with(trial, seed, "released" if held is not None and "held" in held.reason else "person")
            if held is not None:
                trial.cluster.run("scontrol", "release", held.id, check=False)
            else:
                trial.extra = [*(word for word in trial.extra if word != "retry=true"), "retry=true"]
                trial.launcher().wait(300)
            self.idle.pop(seed)
            return

    def _help_with(self, trial: Trial, seed: int, how: str) -> None:
        """Count it, and keep what is needed to see why."""
        self.helped[how, seed] += 1
        for fault in [fault for fault in self.open if seed in fault.waiting][-1:]:
            fault.helped = how
        if how == "released":
            return
        kept = Path(tempfile.mkdtemp(prefix="chaos-person-")) / "runs"
        shutil.copytree(trial.runs, kept, ignore=shutil.ignore_patterns("code"))
        print(f"{now()} a person must look at mal/seed-{seed} ({kept})", flush=True)

    def _end(self, trial: Trial, begun: float) -> None:
        """Compare, and clear up."""
        for fault in list(self.open):
            self._close(fault, "done" if trial.done() else "lost")
        reference = self._reference(trial)
        fine = True
        for seed, chain in enumerate(trial.chains):
            committed = run_folder.committed_rounds(chain)
            same = files_of(chain) == files_of(run_folder.chain_folder(reference, "digits", "mal", seed))
            attempts = read_attempts(chain)
            useful = sum(attempt.seconds - attempt.lost for attempt in attempts)
            last = run_folder.round_folder(chain, committed - 1) / run_folder.COMMITTED
            spent = (last.stat().st_mtime if committed else time.time()) - begun
            persons, released = self.helped["person", seed], self.helped["released", seed]
            row = ChainRow(
                *self._stamp(), f"mal/seed-{seed}", ROUNDS, committed, same, persons, released, useful, spent
            )
            self._note(row)
            fine = fine and same and committed == ROUNDS
        self.bad += not fine
        if not fine:
            shutil.copytree(trial.runs, Path(tempfile.mkdtemp(prefix="chaos-kept-")) / "runs")
        trial.cluster.run("scancel", "--me", check=False)
        with contextlib.suppress(TimeoutError, SlurmError):
            wait_for(lambda: not read_queue(), "the queue to drain", 90)
        for flag in trial.cluster.folder.glob("gpu-*"):
            flag.unlink(missing_ok=True)
        shutil.rmtree(trial.runs, ignore_errors=True)

    def _reference(self, trial: Trial) -> Path:
        """Chains that nothing happened to; of jobs of two nodes by such jobs."""
        if self.sweep != "two nodes":
            return self.reference
        calm = self.reference.with_name(f"{self.reference.name}-two-nodes")
        if not calm.exists():
            by_two = Trial(trial.cluster, calm, trial.seeds, self.rng, 0.0, ["cluster.nodes=2"], rounds=ROUNDS)
            by_two.launch()
            wait_for(by_two.done, "undisturbed chains on two nodes", 600)
        return calm


def run_storm(
    records: Records,
    kinds: Sequence[str],
    mtbf: float,
    faults: int,
    seconds: float,
    seed: int,
    chains: int,
    reference: Path | None,
) -> int:
    """Strike until there were so many faults, or for so long; exit status 1 where something was not as it must be.

    chains: of each sweep. reference: where undisturbed chains are kept for the next time; None: nowhere.
    """
    rng, until = random.Random(seed), time.time() + seconds
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    prolog = folder / "prolog"
    write_atomic(prolog, PROLOG.replace("STORM", str(folder)).encode())
    prolog.chmod(0o755)
    shape = ClusterShape(
        nodes=3, grace_s=5, kill_wait_s=3, gpus_per_node=0, user_signal=seed % 2 == 1,
        # Processes of a job of two nodes meet on a port that follows from its number: not on that of another study.
        extra={"Prolog": str(prolog), "FirstJobId": str(1 + 10_000 * (seed % 1000))},
    )  # fmt: skip
    setup = prepare_faults(folder, failing_calls(folder))
    forbidding_requeue(folder / "forbidding")
    bare_path(folder / "bare")
    reference = (reference or folder / "reference").resolve()
    undisturbed(reference, chains, ROUNDS)
    with private_cluster(shape, folder) as cluster:
        version = cluster.run("squeue", "--version").split()[-1]
        storm = Storm(cluster, records, kinds, mtbf, rng, reference, setup, version, chains)
        while storm.struck < faults and time.time() < until:
            storm.run_sweep(until, faults)
            print(records.table().partition("\n")[0], flush=True)
    print(records.table())
    return int(storm.bad > 0)


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pid(chain: Path) -> int:
    beat = read_progress(run_folder.round_folder(chain, run_folder.committed_rounds(chain))) or {}
    return int(beat.get("pid", 0))


def _went_on(chain: Path, fault: Open, pid: int) -> bool:
    """Whether a process works on the chain after the fault: another one where the first was ended by it."""
    committed = run_folder.committed_rounds(chain)
    if committed >= ROUNDS:
        return True
    beat = read_progress(run_folder.round_folder(chain, committed)) or {}
    if "interrupted" in beat or float(beat.get("updated", 0.0)) <= fault.moment:
        return False
    return int(beat["pid"]) != pid or fault.kind not in INTERRUPTING
