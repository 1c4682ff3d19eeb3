"""The fault study: everything that a cluster does to jobs, done to chains on a real Slurm at random moments.

    python -m tests.chaos [repeats=3] [seed=0] [only=FAULT,...] [out=FILE.md]      (make chaos)

For each fault a sweep of `repeats` chains runs on a one-machine Slurm; each chain, or the cluster, is hit at moments
drawn at random. Afterwards each chain's files are compared, byte for byte, with those of a chain of the same seed that
nothing happened to. Prints one Markdown table, and how long each row took; `only` splits the study into parts.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mal.run import folder as run_folder
from slurm.attempts import read_attempts
from slurm.local import LocalSlurm
from slurm.local_conf import ClusterShape
from slurm.squeue import Job, by_chain, read_queue
from sweeps.launch import main as launch

LAUNCH = Path(__file__).resolve().parents[1] / "sweeps" / "launch.py"
ROUNDS = 2
TIMEOUT_S = 420
CHAIN = [
    "dataset=digits", "methods=[mal]", f"rounds={ROUNDS}", "initial=20", "budget=20", "device=cpu", "threads=1",
    "backbone.width=4", "backbone.bottleneck=16", "backbone.discriminator=16",
    "minimax.epochs=4", "task.epochs=4", "checkpoint_minutes=0.01",
]  # fmt: skip
SLURM = [
    "cluster=slurm", "cluster.partition=low", "cluster.cpus_per_task=1", "cluster.gpus_per_node=0",
    "cluster.time.default=30", "cluster.signal_lead_s=60",
]  # fmt: skip


@dataclass
class Trial:
    """One sweep on one cluster, and what was done to it."""

    cluster: LocalSlurm
    runs: Path
    seeds: int
    rng: random.Random
    span: float
    extra: list[str] = field(default_factory=list)
    injected: int = 0
    by_hand: int = 0

    @property
    def arguments(self) -> list[str]:
        """Of launch.py."""
        return [*CHAIN, *SLURM, f"runs={self.runs}", f"seeds={self.seeds}", *self.extra]

    @property
    def chains(self) -> list[Path]:
        """The chains' folders, by seed."""
        return [run_folder.chain_folder(self.runs, "digits", "mal", seed) for seed in range(self.seeds)]

    def launch(self) -> None:
        """What a person types; its words go to a log."""
        with contextlib.redirect_stdout(io.StringIO()) as words:
            status = launch(self.arguments)
        if status:
            raise RuntimeError(f"launch.py returned {status}: {words.getvalue()}")

    def launcher(self) -> subprocess.Popen[bytes]:
        """The same in a process of its own."""
        with (self.runs.parent / "launch.log").open("ab") as log:
            return subprocess.Popen([sys.executable, LAUNCH, *self.arguments], stdout=log, stderr=log)

    def done(self) -> bool:
        return all(run_folder.committed_rounds(chain) >= ROUNDS for chain in self.chains)

    def running(self, seed: int | None = None) -> list[Job]:
        """Jobs of a chain, or of all, that are on a node."""
        chains = by_chain(read_queue(), "digits", self.runs)
        return [j for key, jobs in chains.items() for j in jobs if j.state == "RUNNING" and seed in (None, key[1])]

    def pause(self, share: float = 1.0) -> None:
        """Until a random moment."""
        time.sleep(self.rng.uniform(0, self.span * share))

    def workers(self, seed: int | None = None) -> list[psutil.Process]:
        """The processes of a chain, or of all, that do its work; not their srun."""
        folders = {str(chain.resolve()) for chain in (self.chains if seed is None else [self.chains[seed]])}
        found = []
        for process in psutil.process_iter(["cmdline", "name"]):
            words = process.info["cmdline"] or []
            if "mal.chain" in words and folders & set(words) and not process.info["name"].startswith("srun"):
                found.append(process)
        return found


Fault = Callable[[Trial], None]


def wait_for(true: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll; TimeoutError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.2)


def each_chain(trial: Trial, hit: Callable[[int], bool], share: float = 0.8) -> None:
    """Hit every chain once, at a random moment of its first `share`; one that is done by then is hit no more."""
    moments = sorted((trial.rng.uniform(0, share * trial.span), seed) for seed in range(trial.seeds))
    wait_for(lambda: len(trial.running()) >= min(trial.seeds, 2) or trial.done(), "jobs to start")
    begun = time.monotonic()
    for moment, seed in moments:
        time.sleep(max(0.0, moment - (time.monotonic() - begun)))
        while run_folder.committed_rounds(trial.chains[seed]) < ROUNDS:
            if hit(seed):
                trial.injected += 1
                break
            time.sleep(0.05)


def all_chains(trial: Trial, hit: Callable[[], int], times: int = 2) -> None:
    """Hit the cluster at random moments; `hit` returns how many jobs were hit."""
    for _ in range(times):
        wait_for(lambda: trial.running() or trial.done(), "jobs to start")
        trial.pause(0.5)
        if trial.done():
            return
        trial.injected += hit()


# ---------------------------------------------------------------------------------------------- faults


def preempted(trial: Trial) -> None:
    """A job of a higher partition takes both nodes for a second."""

    def hit() -> int:
        found = len(trial.running())
        command = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
        job = int(trial.cluster.run(*command, "--wrap=sleep 1"))
        wait_for(lambda: not any(j.id == job for j in read_queue()), "the preempting job")
        return found

    all_chains(trial, hit)


def timed_out(trial: Trial) -> None:
    """The process is frozen until Slurm's warning is pending: a round that is longer than its time limit."""
    frozen: list[psutil.Process] = []

    def wake() -> None:
        while not trial.done():
            for process in list(frozen):
                if _pending(process.pid, signal.SIGUSR2):
                    frozen.remove(process)
                    _signal([process], signal.SIGCONT)
            time.sleep(0.1)

    def hit(seed: int) -> bool:
        workers = trial.workers(seed)
        _signal(workers, signal.SIGSTOP)
        frozen.extend(workers)
        return bool(workers)

    threading.Thread(target=wake, daemon=True).start()
    each_chain(trial, hit)


def out_of_time(trial: Trial) -> None:
    """The process is frozen and stays so: the time limit itself."""
    each_chain(trial, lambda seed: _signal(trial.workers(seed), signal.SIGSTOP))


def hung(trial: Trial) -> None:
    """The process is frozen: only its heartbeat tells."""
    each_chain(trial, lambda seed: _signal(trial.workers(seed), signal.SIGSTOP))


def requeued(trial: Trial) -> None:
    """An administrator's scontrol requeue."""
    each_chain(trial, lambda seed: _slurm(trial, seed, "scontrol", "requeue"))


def cancelled(trial: Trial) -> None:
    """Scancel of a chain's first job, on its node; the second does the work of both."""

    def hit(seed: int) -> bool:
        queued = by_chain(read_queue(), "digits", trial.runs).get(("mal", seed), [])
        return len(queued) > 1 and _slurm(trial, seed, "scancel")

    each_chain(trial, hit, share=0.3)  # while there is a second


def killed(trial: Trial) -> None:
    """SIGKILL of the working process."""
    each_chain(trial, lambda seed: _signal(trial.workers(seed), signal.SIGKILL))


def killed_saving(trial: Trial) -> None:
    """SIGKILL while a checkpoint is half written: its temporary file is there."""

    def hit(seed: int) -> bool:
        workers = trial.workers(seed)
        deadline = time.monotonic() + 2
        while workers and time.monotonic() < deadline:
            for folder in run_folder.round_folders(trial.chains[seed]):
                parts = [n for n in _names(folder / run_folder.CHECKPOINT) if n.endswith(".tmp") and ".ckpt" in n]
                if parts:
                    return _signal(workers, signal.SIGKILL)
        return False

    each_chain(trial, hit)


def node_lost(trial: Trial) -> None:
    """A node dies with everything on it, and comes back later."""
    all_chains(trial, lambda: _lose_node(trial, with_jobs=True))


def node_cut_off(trial: Trial) -> None:
    """Slurm loses sight of a node whose jobs run on, and starts them elsewhere."""
    all_chains(trial, lambda: _lose_node(trial, with_jobs=False))


def every_process_signalled(trial: Trial) -> None:
    """SIGTERM to everything under the job: its Python, srun's processes and their children."""

    def hit(seed: int) -> bool:
        found = trial.workers(seed)
        return _signal([c for p in found for c in [p, *p.children(recursive=True)]], signal.SIGTERM)

    each_chain(trial, hit)


def controller_restarted(trial: Trial) -> None:
    """Slurmctld restarts while a launcher submits."""
    launcher = trial.launcher()
    wait_for(lambda: read_queue() or launcher.poll() is not None, "the first submission")
    trial.cluster.restart_controller()
    trial.injected += trial.seeds
    trial.by_hand += launcher.wait() != 0


def launcher_killed(trial: Trial) -> None:
    """SIGKILL of the launcher after some sbatch; the same command again."""
    launcher = trial.launcher()
    wanted = trial.rng.randint(1, trial.seeds * ROUNDS - 1)
    wait_for(lambda: len(read_queue()) >= wanted or launcher.poll() is not None, "some submissions")
    launcher.kill()
    launcher.wait()
    trial.injected += trial.seeds
    trial.launch()
    _check_no_doubles(trial)


def two_launchers(trial: Trial) -> None:
    """The same command twice at once."""
    both = [trial.launcher(), trial.launcher()]
    trial.injected += trial.seeds
    trial.by_hand += sum(launcher.wait() != 0 for launcher in both)
    _check_no_doubles(trial)


def no_scontrol(trial: Trial) -> None:
    """Preempted where the node has neither scontrol nor squeue."""
    preempted(trial)


def rank_signalled(trial: Trial) -> None:
    """SIGTERM to rank 1 of two alone: both save and leave."""

    def hit(seed: int) -> bool:
        return _signal([p for p in trial.workers(seed) if p.environ().get("SLURM_PROCID") == "1"], signal.SIGTERM)

    each_chain(trial, hit)


def rank_killed(trial: Trial) -> None:
    """SIGKILL of rank 1 of two."""

    def hit(seed: int) -> bool:
        return _signal([p for p in trial.workers(seed) if p.environ().get("SLURM_PROCID") == "1"], signal.SIGKILL)

    each_chain(trial, hit)


# ---------------------------------------------------------------------------------------------- helpers


def _pending(pid: int, number: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def _signal(processes: list[psutil.Process], number: int) -> bool:
    sent = False
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            sent = True
    return sent


def _slurm(trial: Trial, seed: int, *command: str) -> bool:
    for job in trial.running(seed):
        trial.cluster.run(*command, str(job.id))
        return True
    return False


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _lose_node(trial: Trial, with_jobs: bool) -> int:
    busy = [job.nodes for job in trial.running()]
    if not busy:
        return 0
    node = trial.rng.choice(sorted(set(busy)))
    trial.cluster.kill_node(node, with_jobs=with_jobs)
    trial.cluster.wait_nodes("down", [node])
    time.sleep(1)
    trial.cluster.start_node(node)
    wait_for(lambda: "down" not in trial.cluster.run("sinfo", "--noheader", "--format=%T"), "the node to return")
    return busy.count(node)


def _check_no_doubles(trial: Trial) -> None:
    for chain, jobs in by_chain(read_queue(), "digits", trial.runs).items():
        untils = [job.until for job in jobs if job.alive]
        assert len(set(untils)) == len(untils), f"{chain} has two jobs for one round: {untils}"


def _bare_path(folder: Path) -> str:
    """A PATH that has srun and a shell's tools, but neither scontrol nor squeue."""
    folder.mkdir()
    for program in ("srun", "bash", "sh", "git", "env"):
        if found := shutil.which(program):
            (folder / program).symlink_to(found)
    return str(folder)


@dataclass(frozen=True)
class Case:
    """A fault of the table."""

    name: str
    fault: Fault
    shape: ClusterShape
    launched: bool = True  # before the fault; else the fault launches
    extra: tuple[str, ...] = ()


PLAIN = ClusterShape(grace_s=5, kill_wait_s=3, slurmd_timeout_s=3, gpus_per_node=0)
BOTH = ("cluster.nodes=2",)
SHORT = ("cluster.time.default=3",)
CASES = {
    "preempt": Case("preempted, 5 s of grace", preempted, PLAIN),
    "preempt_now": Case("preempted without grace", preempted, ClusterShape(grace_s=0, kill_wait_s=3)),
    "preempt_usr": Case(
        "preempted with the user signal, 5 s of grace",
        preempted,
        ClusterShape(grace_s=5, kill_wait_s=3, user_signal=True),
    ),
    "preempt_usr_now": Case(
        "preempted with the user signal, without grace",
        preempted,
        ClusterShape(grace_s=0, kill_wait_s=3, user_signal=True),
    ),
    "no_scontrol": Case("preempted, no `scontrol` and no `squeue` on the node", no_scontrol, PLAIN),
    "timeout": Case("time limit, warned by SIGUSR2", timed_out, PLAIN, extra=SHORT),
    "limit": Case("time limit, the warning ignored", out_of_time, PLAIN, extra=SHORT),
    "hang": Case("hung (frozen) process", hung, PLAIN, extra=("cluster.hang_minutes=0.3",)),
    "requeue": Case("`scontrol requeue`", requeued, PLAIN),
    "scancel": Case("`scancel` of one job of the chain", cancelled, PLAIN),
    "kill": Case("SIGKILL of the process", killed, PLAIN),
    "kill_saving": Case("SIGKILL in the middle of a checkpoint", killed_saving, PLAIN),
    "workers": Case("SIGTERM to every process of the step", every_process_signalled, PLAIN),
    "node": Case("node lost with its jobs", node_lost, PLAIN),
    "cut_off": Case("node cut off, its jobs running on", node_cut_off, PLAIN),
    "two_preempt": Case("two-node job preempted", preempted, PLAIN, extra=BOTH),
    "two_signal": Case("two-node job, SIGTERM to rank 1 alone", rank_signalled, PLAIN, extra=BOTH),
    "two_kill": Case("two-node job, SIGKILL of rank 1", rank_killed, PLAIN, extra=BOTH),
    "controller": Case("slurmctld restarted during the launch", controller_restarted, PLAIN, launched=False),
    "launcher": Case("launcher killed after sbatch, launched again", launcher_killed, PLAIN, launched=False),
    "launchers": Case("two launchers at once", two_launchers, PLAIN, launched=False),
}


@dataclass
class Outcome:
    """A row of the table."""

    name: str
    injected: int
    chains: int
    identical: int
    lost: int
    by_hand: int
    redone: float
    seconds: float

    def row(self) -> str:
        cells = [self.name, self.injected, f"{self.identical} of {self.chains}", self.lost, self.by_hand]
        return f"| {' | '.join(map(str, cells))} | {self.redone:.1f} |"


HEADER = """\
| fault | times injected | chains byte-identical | rounds lost | interventions needed | s lost per fault |
|---|---|---|---|---|---|"""


def files_of(chain: Path) -> dict[str, bytes | str]:
    """What must not depend on what happened: indices, metric values, losses."""
    found: dict[str, bytes | str] = {}
    for folder in run_folder.round_folders(chain)[:ROUNDS]:
        if not run_folder.is_committed(folder):
            continue
        for name in (run_folder.LABELED, run_folder.QUERY, run_folder.HISTORY):
            if (folder / name).exists():
                found[f"{folder.name}/{name}"] = (folder / name).read_bytes()
        metrics = run_folder.read_json(folder / run_folder.METRICS)
        found[f"{folder.name}/metrics"] = repr({k: metrics[k] for k in ("value", "per_class", "labeled")})
    return found


def undisturbed(runs: Path, seeds: int) -> float:
    """Run the reference chains in worker processes; mean seconds of a chain, starts included."""
    begun = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        status = launch([*CHAIN, f"runs={runs}", f"seeds={seeds}", "cluster=local", "cluster.workers=2"])
    assert status == 0, "the reference chains failed"
    return (time.monotonic() - begun) * 2 / seeds


def study(case: Case, reference: Path, span: float, seeds: int, rng: random.Random) -> Outcome:
    """Run one case."""
    begun = time.monotonic()
    with _cluster(case.shape) as cluster:
        extra = list(case.extra)
        if case.fault is no_scontrol:
            bare = _bare_path(cluster.folder / "bin")
            extra.append(f"cluster.setup=['export PATH={bare}']")
        trial = Trial(cluster, cluster.folder / "runs", seeds, rng, span, extra)
        if case.extra == BOTH:  # equal to what two processes arrive at undisturbed
            calm = Trial(cluster, cluster.folder / "calm", seeds, rng, span, extra)
            calm.launch()
            _finish(calm)
            reference = calm.runs
        if case.launched:
            trial.launch()
        case.fault(trial)
        _finish(trial)
        lost = sum(ROUNDS - run_folder.committed_rounds(chain) for chain in trial.chains)
        same = [
            files_of(chain) == files_of(run_folder.chain_folder(reference, "digits", "mal", seed))
            for seed, chain in enumerate(trial.chains)
        ]
        redone = sum(attempt.lost for chain in trial.chains for attempt in read_attempts(chain))
        if not all(same) or trial.by_hand:
            shutil.copytree(trial.runs, Path(tempfile.mkdtemp(prefix="chaos-kept-")) / "runs")
    redone /= max(1, trial.injected)
    return Outcome(case.name, trial.injected, seeds, sum(same), lost, trial.by_hand, redone, time.monotonic() - begun)


def _finish(trial: Trial) -> None:
    """Wait for the chains; where no job is left to finish them, a person would have to launch again."""
    deadline = time.monotonic() + TIMEOUT_S
    while not trial.done() and time.monotonic() < deadline:
        if not read_queue() and not trial.done():
            open_ends = [chain for chain in trial.chains if run_folder.committed_rounds(chain) < ROUNDS]
            print(f"    a person must look at {open_ends}", flush=True)
            trial.by_hand += len(open_ends)
            trial.extra.append("retry=true")
            trial.launch()
        time.sleep(0.5)


@contextlib.contextmanager
def _cluster(shape: ClusterShape) -> Iterator[LocalSlurm]:
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with LocalSlurm(folder, shape) as cluster:
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """The command line; exit status 1 where a chain differs, lost a round, needed an intervention or was never hit."""
    options = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := set(options) - {"repeats", "seed", "only", "out"}:
        print(
            f"chaos.py: {', '.join(sorted(unknown))} unknown; repeats=, seed=, only=, out= are allowed", file=sys.stderr
        )
        return 2
    seeds, rng = int(options.get("repeats", "3")), random.Random(int(options.get("seed", "0")))
    chosen = options["only"].split(",") if "only" in options else list(CASES)
    if wrong := set(chosen) - set(CASES):
        print(f"chaos.py: only={','.join(sorted(wrong))} unknown; rows are {', '.join(CASES)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="chaos-reference-") as folder:
        span = undisturbed(Path(folder), seeds)
        print(f"an undisturbed chain of {ROUNDS} rounds: {span:.1f} s", flush=True)
        outcomes = []
        for key in chosen:
            outcomes.append(study(CASES[key], Path(folder), span, seeds, rng))
            print(f"{outcomes[-1].row()}  {key}, {outcomes[-1].seconds:.0f} s", flush=True)
    table = "\n".join([HEADER, *(outcome.row() for outcome in outcomes)])
    print(f"\n{table}")
    if "out" in options:
        Path(options["out"]).write_text(table + "\n")
    bad = [o.name for o in outcomes if o.identical < o.chains or o.lost or o.by_hand or not o.injected]
    if bad:
        print(f"\nNot as it must be (or nothing was hit: another seed=): {'; '.join(bad)}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
