"""The local cluster is a real one: jobs over two nodes, chains in order, preemption, lost nodes, restarts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from slurm.local import LocalSlurm, SlurmMissingError, main
from slurm.local_conf import ClusterShape
from slurm.local_processes import daemons, job_processes
from slurm.squeue import read_queue
from tests.slurm_cluster import cluster, shared_cluster, short_folder, wait_until

__all__ = ["cluster", "shared_cluster", "short_folder"]
pytestmark = pytest.mark.slurm


def submit(cluster: LocalSlurm, log: Path, script: str, *options: str) -> int:
    """Sbatch of a shell script that writes into `log`; the job's id."""
    command = ["sbatch", "--parsable", f"--output={log}", "--open-mode=append", "--requeue", *options]
    return int(cluster.run(*command, f"--wrap={script}"))


def text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def states(*job_ids: int) -> list[str]:
    return [job.state for job in read_queue([str(job) for job in job_ids])]


def test_two_nodes_and_their_gpus(cluster: LocalSlurm, tmp_path: Path) -> None:
    out = cluster.run(
        "srun",
        "--nodes=2",
        "--gpus-per-node=2",
        "sh",
        "-c",
        "echo $SLURMD_NODENAME $SLURM_PROCID $CUDA_VISIBLE_DEVICES",
    )
    assert sorted(out.splitlines()) == ["n1 0 0,1", "n2 1 0,1"]
    with pytest.raises(RuntimeError, match="configuration is not available"):
        submit(cluster, tmp_path / "log", "true", "--gpus-per-node=3")


def test_singleton_jobs_run_in_order_past_a_failure(cluster: LocalSlurm, tmp_path: Path) -> None:
    log = tmp_path / "log"
    chain = ["--job-name=mal:a:b:s0:abcdef", "--dependency=singleton"]
    ids = [submit(cluster, log, f"echo start {i}; sleep 0.3; echo end {i}; exit {i}", *chain) for i in range(3)]
    assert ids == sorted(ids)
    wait_until(lambda: "end 2" in text(log), "the last job of the chain")
    assert text(log).split("\n") == [f"{what} {i}" for i in range(3) for what in ("start", "end")] + [""]


def test_a_preempted_job_is_warned_requeued_and_precedes_its_chain(cluster: LocalSlurm, tmp_path: Path) -> None:
    log, warned = tmp_path / "log", tmp_path / "warned"
    # undisturbed it would sleep; warned, it requeues its job within the grace time, as a chain's job does. SIGTERM may
    # come twice: the second would end what the trap runs. srun could lose what it prints then, hence a file.
    step = f"""
        trap "trap '' TERM; echo warned >{warned}; scontrol requeue $SLURM_JOB_ID; exit 75" TERM
        [ -f {warned} ] && cat {warned}
        echo run ${{SLURM_RESTART_COUNT:-0}}
        [ "$SLURM_RESTART_COUNT" ] && exit
        sleep 60 & wait
    """
    (tmp_path / "step.sh").write_text(step)
    chain = ["--partition=low", "--exclusive", "--nodes=2", "--job-name=chain", "--dependency=singleton"]
    first = submit(cluster, log, f"srun --ntasks=1 --nodes=1 sh {tmp_path / 'step.sh'}", *chain)
    second = submit(cluster, log, "echo the next job", *chain)
    wait_until(lambda: "run 0" in text(log), "the first job to start")
    submit(cluster, tmp_path / "high", "sleep 0.5", "--partition=high", "--exclusive", "--nodes=2")
    wait_until(warned.exists, "the warning of a preemption")
    wait_until(lambda: states(first) == ["PENDING"], "the preempted job to wait again")
    assert states(second) == ["PENDING"]
    wait_until(lambda: "the next job" in text(log), "the chain to go on")
    lines = [line for line in text(log).splitlines() if line in ("run 0", "warned", "run 1", "the next job")]
    assert lines == ["run 0", "warned", "run 1", "the next job"]


def test_a_lost_node_s_job_runs_again_elsewhere(cluster: LocalSlurm, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit(cluster, log, 'echo $SLURMD_NODENAME; [ "$SLURM_RESTART_COUNT" ] || sleep 60')
    wait_until(lambda: text(log), "the job to start")
    lost = text(log).strip()
    cluster.kill_node(lost)
    assert not job_processes(cluster.folder, lost)
    wait_until(lambda: len(text(log).split()) == 2, "the job on another node")
    assert set(text(log).split()) == {"n1", "n2"}
    wait_until(lambda: states(job) == ["COMPLETED"], "the job to end")
    cluster.start_node(lost)
    cluster.wait_nodes("idle")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_jobs_outlive_the_controller(cluster: LocalSlurm, tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    chain = ["--job-name=chain", "--dependency=singleton"]
    submit(cluster, log, f"echo start; sleep {2 if how == 'restart' else 6}; echo end", *chain)
    submit(cluster, log, "echo the next job", *chain)
    wait_until(lambda: "start" in text(log), "the job to start")
    started = time.time()
    if how == "restart":
        cluster.restart_controller()
    else:
        # what slurmctld has not yet written, seconds after it happened, a crash of it undoes
        saved = cluster.folder / "state" / "job_state"
        wait_until(lambda: saved.exists() and saved.stat().st_mtime > started, "slurmctld to save its state")
        cluster.kill_controller()
        cluster.start_controller()
    wait_until(lambda: "the next job" in text(log), "the chain to go on")
    assert text(log).splitlines() == ["start", "end", "the next job"]


def test_a_limit_on_submissions_answers_as_a_qos_does(tmp_path: Path, short_folder: Path) -> None:
    with LocalSlurm(short_folder, ClusterShape(nodes=1, submit_limit=2)) as limited:
        for _ in range(2):
            submit(limited, tmp_path / "log", "true", "--hold")
        with pytest.raises(RuntimeError, match=r"QOSMaxSubmitJobPerUserLimit\n.*Job violates accounting/QOS policy"):
            submit(limited, tmp_path / "log", "true", "--hold")


def test_nothing_is_left_behind(cluster: LocalSlurm, short_folder: Path, tmp_path: Path) -> None:
    """Beside another cluster, with a job that left its process group, and with this cluster still there afterwards."""
    log = tmp_path / "pid"
    with LocalSlurm(short_folder, ClusterShape(nodes=1)) as second:
        submit(second, log, "setsid sleep 1000 & echo $!; sleep 1000")
        wait_until(lambda: text(log), "the job to start")
        assert len(daemons(second.conf)) == 3
    assert not daemons(second.conf)
    assert not job_processes(second.folder)
    assert not _alive(int(text(log)))
    assert len(daemons(cluster.conf)) == 4


def test_a_child_forked_meanwhile_does_not_keep_it_from_stopping(short_folder: Path) -> None:
    with LocalSlurm(short_folder) as running:
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert daemons(running.conf) == []


def test_the_owner_s_sudden_death_stops_the_cluster(short_folder: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from slurm.local import LocalSlurm\n"
        "LocalSlurm(Path(sys.argv[1])).start(); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[2]
    owner = subprocess.run([sys.executable, "-c", code, str(short_folder)], cwd=root, check=False)
    assert owner.returncode == -signal.SIGKILL
    wait_until(lambda: not daemons(short_folder / "slurm.conf"), "the daemons to end")


def test_up_status_down(short_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"dir={short_folder}"
    assert main(["up", where, "nodes=1"]) == 0
    try:
        assert f"SLURM_CONF={short_folder / 'slurm.conf'}" in capsys.readouterr().out
        assert main(["status", where]) == 0
        assert "slurmctld" in capsys.readouterr().out
        assert "Gres=" not in LocalSlurm(short_folder).conf.read_text()  # torch would find no pretended GPU
        with pytest.raises(ValueError, match="a cluster runs there"):
            main(["up", where])
    finally:
        main(["down", where])
    assert not daemons(short_folder / "slurm.conf")
    assert main(["status", where]) == 1


def test_missing_programs_are_named_with_their_packages(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm.local._SEARCH_PATH", str(short_folder))
    with pytest.raises(SlurmMissingError, match=r"slurmctld.*install the Debian packages slurm-wlm and munge"):
        LocalSlurm(short_folder).start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "nodes=two"], "nodes=two: a whole number is allowed; change nodes"),
        (["up", "node=2"], "node=2: not an option; allowed are dir=, nodes="),
        (["up", "gpus=99"], "gpus_per_node=99: 0 to 7 is allowed"),
        (["up", f"dir=/tmp/{'x' * 90}"], "too long for a Unix socket; choose a dir of under 80 bytes"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(arguments)


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
