"""The environment means what it means: what leaks in stays out, what is asked for is honoured, or refused."""

import os
from pathlib import Path

import pytest

from mal.process.start import start_chain
from mal.run import folder as run_folder
from slurm.attempts import read_attempts
from slurm.local import LocalSlurm
from slurm.profile import load_profile, with_defaults
from slurm.squeue import read_queue
from slurm.submitted import read_submitted
from sweeps.launch import main as launch
from tests.chains import SHORT, chain_config, outcome, run_chain_process, write_chain
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]
ON_SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.time.digits=10")


def test_defaults_of_sbatch_are_honoured_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith(("SBATCH_", "SLURM_"))]:
        monkeypatch.delenv(key)
    given = {"ACCOUNT": "vision", "RESERVATION": "course", "QOS": "long", "PARTITION": "gpu", "TIMELIMIT": "5"}
    for key, value in given.items():
        monkeypatch.setenv(f"SBATCH_{key}", value)
    plain = load_profile({"name": "mine", "kind": "slurm", "gpus_per_node": 0, "partition": "mine"})
    profile, said = with_defaults(plain)
    assert (profile.account, profile.qos, profile.partition) == ("vision", "long", "mine")
    assert profile.sbatch == {"reservation": "course"}
    assert "SBATCH_ACCOUNT=vision is taken for cluster.account." in said
    assert "SBATCH_TIMELIMIT=5 is not used: the profile decides (cluster.*, cluster.sbatch.*)." in said
    for variable in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS"):
        monkeypatch.setenv(variable, "north")
        with pytest.raises(ValueError, match=f"{variable}=north sends jobs to another cluster"):
            with_defaults(plain)
        monkeypatch.delenv(variable)


def test_jobs_of_other_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cluster\.sbatch\.clusters=north: jobs of another cluster could not be"):
        load_profile({"name": "mine", "kind": "slurm", "sbatch": {"clusters": "north"}})


def test_a_local_worker_is_no_task_of_what_surrounds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launched inside `srun -n4 --pty bash`, by torchrun, or with their variables left over."""
    around = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    around |= {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "x"}
    for key, value in around.items():
        monkeypatch.setenv(key, value)
    folder = write_chain(tmp_path, chain_config("rounds=1", method="random"))
    process, _ = start_chain(folder, 1, tmp_path / "log.txt", 1, {"CUDA_VISIBLE_DEVICES": ""})
    assert process.wait(timeout=120) == 0
    assert run_folder.committed_rounds(folder) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--code", "0123456789ab"], "but the job was launched with 0123456789ab: PYTHONPATH has not reached"),
        (["--tasks", "4"], "1 processes share the work, but the job asked for 4."),
        (["--gpus", "1"], "the job asked for 1 GPUs on each node, and torch "),
    ],
)
def test_what_was_asked_for_is_checked_where_it_runs(tmp_path: Path, asked: list[str], words: str) -> None:
    folder = write_chain(tmp_path, chain_config("device=auto", method="random"))
    done = run_chain_process(folder, *asked)
    assert done.returncode == 78
    assert words in done.stderr
    assert not (run_folder.round_folder(folder, 0) / run_folder.FAILED).exists()  # of the place


@pytest.mark.slurm
@pytest.mark.parametrize("surroundings", ["torchrun", "srun and --export=NONE"])
def test_a_job_of_two_tasks_whatever_the_launching_shell_holds(
    cluster: LocalSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surroundings: str
) -> None:
    leaks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "no-such-host", "MASTER_PORT": "29500"}
    more = []
    if surroundings != "torchrun":
        leaks = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
        leaks |= {"SBATCH_EXPORT": "NONE"}
        more = ["+cluster.sbatch.export=NONE"]
    for key, value in leaks.items():
        monkeypatch.setenv(key, value)
    chosen = [*ON_SLURM, "cluster.gpus_per_node=0", "cluster.tasks_per_node=2", "collective_minutes=0.5", *more]
    assert launch([*SHORT, "methods=[random]", "seeds=1", "rounds=1", *chosen, f"runs={tmp_path}"]) == 0
    wait_until(lambda: not read_queue(), "the job", timeout_s=120)
    chain = tmp_path / "digits" / "random" / "seed-0"
    assert [attempt.cause for attempt in read_attempts(chain)] == ["done"]
    provenance = run_folder.read_round(chain / "round-0").provenance
    (script,) = (tmp_path / "digits" / "code").iterdir()
    assert provenance["code"] == script.name
    assert outcome(chain)["round-0"]["value"] > 0
    assert len(read_submitted(tmp_path / "digits")) == 1
