"""A real Slurm cluster on one machine, for tests and for trying a sweep before the real cluster.

    python -m slurm.local up [dir=DIR] [nodes=2] [cpus=4] [gpus=0] [mem_gb=16]
    python -m slurm.local status [dir=DIR]
    python -m slurm.local down [dir=DIR]

It runs slurmctld, one slurmd for each node and a munged of its own from one folder, on the loopback address,
on free ports; nothing outside the folder is read or written, so several can run side by side and a Slurm or
munge that the machine already runs is not disturbed. Two partitions: `low` (the default; its jobs are
preempted and requeued) and `high`. Jobs run only as the user that started the cluster.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"slurm.local: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

import psutil

from slurm.local_conf import ClusterShape, gres_conf, slurm_conf, submit_filter
from slurm.local_processes import daemons, end, job_processes, stop_processes

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "squeue")
_SOCKET_PATH_MAX = 100  # bytes; the kernel allows 107 for the path of a Unix socket, and Slurm adds to ours
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class SlurmMissingError(RuntimeError):
    """Slurm or munge is not installed on this machine."""


def missing_programs() -> list[str]:
    """The programs that a local cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_SEARCH_PATH) is None]


def default_folder() -> Path:
    """Where `up`, `status` and `down` look when no dir is given: one cluster a user."""
    return Path(tempfile.gettempdir()) / f"local-slurm-{os.getuid()}"


class LocalSlurm:
    """One cluster in one folder; a context manager that stops it at the end.

    It also stops when this Python process ends, even by SIGKILL. Slurm's commands reach it with `env` in
    their environment. Errors: SlurmMissingError; ValueError for a folder that cannot serve; RuntimeError with
    the daemons' last lines when the cluster does not come up.
    """

    def __init__(self, folder: Path, shape: ClusterShape | None = None) -> None:
        self.folder = Path(folder).resolve()
        self.shape = shape or ClusterShape()
        self._children: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalSlurm:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def conf(self) -> Path:
        """The cluster's slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """What a client's environment needs to reach this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """Standard output of a Slurm command; with `check` a failing one raises RuntimeError."""
        env = {**os.environ, **self.env}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self, guarded: bool = True, timeout_s: float = 60) -> None:
        """Start afresh (an older queue in this folder is forgotten) and wait until every node is idle.

        `guarded`: the cluster stops when this process ends, however it ends.
        """
        self._prepare_folder()
        if guarded:
            self._start_guard()
        key, sock, seed = (self.folder / f"munge.{part}" for part in ("key", "socket", "seed"))
        self._spawn(
            "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}",
            f"--seed-file={seed}", f"--pid-file={self.folder / 'munged.pid'}",
        )  # fmt: skip
        # --force: munge wants a socket that every user can reach; ours alone shall
        try:
            self._wait_for("munged made no socket", sock.exists, timeout_s)
            self.start_controller()
            for name in self.shape.node_names:
                self.start_node(name)
            self.wait_nodes("idle", timeout_s=timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the daemons and everything that still runs in a job; harmless when nothing does."""
        atexit.unregister(self.stop)
        stop_processes(self.folder)
        for child in self._children:
            child.wait(timeout=30)
        self._children.clear()
        if self._guard is not None:
            # Not by closing its pipe: children forked meanwhile, a loader's workers say, hold it open too.
            self._guard.kill()
            self._guard.wait()
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard = None

    def start_controller(self) -> None:
        """Start slurmctld; it takes up the queue that it left in the folder."""
        child = self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.conf))

        def answers() -> bool:
            if child.poll() is not None:
                raise RuntimeError(f"slurmctld ended with {child.returncode}\n{self._last_lines()}")
            return "UP" in self.run("scontrol", "ping", check=False)

        self._wait_for("slurmctld does not answer", answers, 30)

    def kill_controller(self, signum: int = signal.SIGKILL) -> None:
        """End slurmctld (SIGTERM: it saves its state first); jobs run on."""
        self._end(daemons(self.conf, ["slurmctld"]), signum)

    def restart_controller(self) -> None:
        """What an administrator's restart of slurmctld does."""
        self.kill_controller(signal.SIGTERM)
        self.start_controller()

    def start_node(self, name: str) -> None:
        """Start the slurmd of node `name`; a lost node returns to service by itself."""
        self._spawn(name, "slurmd", "-D", "-N", name, "-f", str(self.conf))

    def kill_node(self, name: str, with_jobs: bool = True) -> None:
        """Lose node `name`: SIGKILL for its slurmd and, unless it is only cut off, its jobs.

        Slurm notices after `shape.slurmd_timeout_s`, calls the node down and requeues its jobs.
        """
        victims = [p for p in daemons(self.conf, ["slurmd"]) if name in p.cmdline()]
        if with_jobs:
            victims += job_processes(self.folder, name)
        self._end(victims, signal.SIGKILL)

    def wait_nodes(self, state: str, names: Sequence[str] = (), timeout_s: float = 60) -> None:
        """Wait until sinfo calls `names` (default: every node) `state`, as in idle, down, mixed."""
        wanted = set(names or self.shape.node_names)

        def all_there() -> bool:
            rows = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).splitlines()
            found = dict(row.split() for row in rows)
            return all(found.get(name, "").rstrip("*") == state for name in wanted)

        self._wait_for(f"nodes {sorted(wanted)} are not {state}", all_there, timeout_s)

    def _prepare_folder(self) -> None:
        missing = missing_programs()
        if missing:
            raise SlurmMissingError(
                f"a local cluster needs {', '.join(missing)}: install the Debian packages slurm-wlm and munge"
            )
        if len(os.fsencode(self.folder)) > _SOCKET_PATH_MAX - len("/munge.socket"):
            raise ValueError(f"dir={self.folder}: too long for a Unix socket; choose a dir of under 80 bytes")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise ValueError(f"dir={self.folder}: belongs to another user; choose another dir")
        if daemons(self.conf):
            raise ValueError(f"dir={self.folder}: a cluster runs there; stop it (down) or choose another dir")
        self._write_files()

    def _write_files(self) -> None:
        self.folder.chmod(0o700)
        for name in ("state", "spool", "log"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in (self.folder / "state", self.folder / "log", *self._spools()):
            path.mkdir(parents=True)
        for name in ("munge.key", "munge.socket", "munge.socket.lock", "munge.seed"):
            (self.folder / name).unlink(missing_ok=True)
        key = self.folder / "munge.key"
        subprocess.run([_program("mungekey"), "--create", f"--keyfile={key}"], check=True)
        self.conf.write_text(slurm_conf(self.folder, self.shape))
        (self.folder / "gres.conf").write_text(gres_conf(self.shape))
        if self.shape.submit_limit:
            (self.folder / "job_submit.lua").write_text(submit_filter(self.shape.submit_limit))

    def _spools(self) -> list[Path]:
        return [self.folder / "spool" / name for name in self.shape.node_names]

    def _spawn(self, log: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log" / f"{log}.log").open("ab") as out:
            child = subprocess.Popen(
                [_program(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**_clean_environment(), **self.env},
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def _start_guard(self) -> None:
        """Leave a process that reads our pipe: its end, at our death of any kind, means: clean up."""
        atexit.register(self.stop)
        root = str(Path(__file__).resolve().parents[1])
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "slurm.local", "down", f"dir={self.folder}", "when=stdin_closes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, "PYTHONPATH": root},
            start_new_session=True,
        )

    def _wait_for(self, failure: str, true: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{failure} after {timeout_s:g} s\n{self._last_lines()}")
            time.sleep(0.1)

    def _last_lines(self, count: int = 8) -> str:
        tails = []
        for log in sorted((self.folder / "log").glob("*.log")):
            tails += [f"{log}:", *log.read_text(errors="replace").splitlines()[-count:]]
        return "\n".join(tails)

    def _end(self, processes: Iterable[psutil.Process], signum: int) -> None:
        end(list(processes), signum)
        for child in self._children:
            child.poll()  # reaps it


def _program(name: str) -> str:
    path = shutil.which(name, path=_SEARCH_PATH)
    assert path is not None, f"{name} vanished"
    return path


def _clean_environment() -> dict[str, str]:
    """The environment without the variables of a job that this process may run in."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}


_SHAPE_KEYS = ("nodes", "cpus", "gpus", "mem_gb", "grace_s", "submit_limit")


def _options(arguments: Sequence[str]) -> dict[str, str]:
    allowed = ["dir", *_SHAPE_KEYS, "when"]
    options = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in allowed:
            raise ValueError(f"{argument}: not an option; allowed are {'=, '.join(allowed)}=")
        if key in _SHAPE_KEYS and not value.isdigit():
            raise ValueError(f"{key}={value}: a whole number is allowed; change {key}")
        options[key] = value
    return options


def _shape(options: Mapping[str, str]) -> ClusterShape:
    plain = ClusterShape()
    return ClusterShape(
        nodes=int(options.get("nodes", plain.nodes)),
        cpus_per_node=int(options.get("cpus", plain.cpus_per_node)),
        gpus_per_node=int(options.get("gpus", 0)),  # a job that is given a pretended one stops: torch finds none
        mem_gb_per_node=int(options.get("mem_gb", plain.mem_gb_per_node)),
        grace_s=int(options.get("grace_s", plain.grace_s)),
        submit_limit=int(options.get("submit_limit", plain.submit_limit)),
    )


def _up(folder: Path, shape: ClusterShape) -> None:
    cluster = LocalSlurm(folder, shape)
    cluster.start(guarded=False)
    print(cluster.run("sinfo"))
    print(f"\nTo use it:   export SLURM_CONF={cluster.conf}")
    print(f"To stop it:  python -m slurm.local down dir={folder}")


def _status(folder: Path) -> int:
    cluster = LocalSlurm(folder)
    running = sorted(p.name() for p in daemons(cluster.conf))
    if not running:
        print(f"no cluster runs in {cluster.folder}")
        return 1
    print(f"{cluster.folder}: {', '.join(running)}")
    print(cluster.run("sinfo", check=False))
    print(cluster.run("squeue", check=False))
    return 0


def main(arguments: Sequence[str]) -> int:
    """Entry of `python -m slurm.local`; returns the exit status."""
    if not arguments or arguments[0] not in ("up", "status", "down"):
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help", "help") else 2
    options = _options(arguments[1:])
    folder = Path(options.get("dir") or default_folder()).resolve()
    if arguments[0] == "up":
        _up(folder, _shape(options))
    elif arguments[0] == "status":
        return _status(folder)
    else:
        if options.get("when") == "stdin_closes":
            sys.stdin.read()
        print(f"stopped {stop_processes(folder)} processes of {folder}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
