"""Profiles: what they refuse, and what they ask of Slurm."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mal.config.checks import CONF, choices
from mal.config.compose import compose_sweep
from slurm.local import LocalSlurm
from slurm.partitions import NodeKind, Partition, parse_gpus, parse_minutes, read_partitions
from slurm.profile import Profile, check_against, load_profile, submitit_parameters
from sweeps.submitting import check_graphs
from tests.slurm_cluster import cluster, shared_cluster

__all__ = ["cluster", "shared_cluster"]
EXAMPLES = ("slurm", "scavenge", "university_a100")
OLD = NodeKind(nodes=4, cpus=16, mem_gb=64, gpus={"v100": 2}, features=frozenset())
NEW = NodeKind(nodes=2, cpus=64, mem_gb=512, gpus={"a100": 4}, features=frozenset({"ib"}))
PARTITIONS = {
    "gpu": Partition("gpu", True, True, 1440, (OLD, NEW), frozenset({"vision"}), frozenset({"normal", "long"})),
    "cpu": Partition("cpu", False, False, None, (NodeKind(9, 32, 128, {}, frozenset()),)),
}


def profile(**keys: Any) -> Profile:
    return load_profile({"name": "mine", "kind": "slurm", **keys})


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_files_are_profiles(name: str) -> None:
    loaded = load_profile(compose_sweep([f"cluster={name}"]).cluster)
    assert loaded.name == name
    assert loaded.minutes("digits") == (loaded.time["default"])


def test_the_template_is_a_whole_profile_to_copy_and_no_choice() -> None:
    template = OmegaConf.to_container(OmegaConf.load(CONF / "cluster" / "template.yaml"))
    assert isinstance(template, dict)
    assert template.pop("defaults") == ["slurm", "_self_"]
    assert set(template) | {"kind"} == set(Profile.__dataclass_fields__)
    assert load_profile(template).name == "template"
    assert "template" not in choices("cluster")
    with pytest.raises(ValueError, match=r"cluster=template is a file to copy, not a choice: copy .*template\.yaml to"):
        compose_sweep(["cluster=template"])


def test_every_key_can_be_set_on_the_command_line() -> None:
    """A key that stands in no file cannot be overridden."""
    section = compose_sweep(["cluster=slurm"]).cluster
    assert set(section) == set(Profile.__dataclass_fields__)
    chosen = compose_sweep(["cluster=slurm", "cluster.partition=gpu", "cluster.time.default=30"]).cluster
    assert load_profile(chosen).partition == "gpu"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"partitoin": "gpu"}, "cluster.partitoin is unknown; did you mean partition"),
        ({"nodes": 0}, "cluster.nodes=0: a whole number from 1"),
        ({"cpus_per_task": 2.5}, "cluster.cpus_per_task=2.5: a whole number from 1"),
        ({"gpus_per_node": True}, "cluster.gpus_per_node=True: a whole number from 0"),
        ({"mem_gb": -1}, "cluster.mem_gb=-1: a number above 0"),
        ({"signal_lead_s": 30}, "cluster.signal_lead_s=30: a whole number from 60"),
        ({"time": {"digits": 5}}, "cluster.time has no `default`"),
        ({"time": 60}, "cluster.time=60: a mapping is allowed"),
        ({"time": {"default": "2h"}}, "cluster.time.default=2h: minutes above 0"),
        ({"time": {"default": 60, "digits": {"fti": 3}}}, "cluster.time.digits.fti is unknown; did you mean fit"),
        ({"time": {"default": 3}}, "cluster.time.default=3 minutes: less than half is left"),
        ({"modules": "cuda"}, "cluster.modules=cuda: a list of words"),
        ({"pack": 2, "gpus_per_node": 2}, "cluster.pack=2 puts several chains on one GPU and needs"),
        ({"sbatch": {"job_name": "x"}}, "cluster.sbatch.job_name: the toolkit sets --job-name itself"),
        ({"sbatch": {"exclusive": False}}, "cluster.sbatch.exclusive=False: true"),
        ({"kind": "lsf"}, "cluster.kind=lsf: slurm is allowed"),
    ],
)
def test_what_cannot_be_is_refused_by_name(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message.replace('.', '[.]')}"):
        profile(**keys)


def test_phases_add_up_to_a_job_s_time() -> None:
    timed = profile(
        time={"default": 30, "imagenet": {"fit": 600, "task": 720.5, "score": 60}}, nodes=2, gpus_per_node=4
    )
    assert (timed.minutes("imagenet"), timed.minutes("digits")) == (1381, 30)


@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ({"nodes": 2, "gpus_per_node": 4, "gpu_type": "a100", "account": "vision", "qos": "long"}, []),
        ({"partition": "gpus"}, ["cluster.partition=gpus is unknown here; did you mean gpu or cpu? It has cpu, gpu."]),
        ({"partition": "cpu"}, ["cluster.partition=cpu: that partition is not up."]),
        ({"time": {"default": 1500}}, ["cluster.time.digits: 1500 minutes, but gpu allows 1440."]),
        ({"account": "audio"}, ["cluster.account=audio: gpu allows vision."]),
        ({"qos": "short"}, ["cluster.qos=short: gpu allows long, normal."]),
        ({"nodes": 7}, ["cluster.nodes=7, but gpu has 6."]),
        ({"gpus_per_node": 8}, ["cluster.gpus_per_node: 8, but the nodes of gpu that fit otherwise have up to 4."]),
        ({"gpus_per_node": 3, "gpu_type": "v100"}, ["cluster.gpus_per_node: 3, but the nodes of gpu that fit"]),
        ({"nodes": 3, "gpus_per_node": 4}, ["cluster.gpus_per_node: 4, but the nodes of gpu that fit otherwise"]),
        (
            {"gpus_per_node": 4, "cpus_per_task": 17},
            ["cluster.cpus_per_task: 68 per node in all, but the nodes of gpu"],
        ),
        ({"gpus_per_node": 1, "gpu_type": "v100", "mem_gb": 65}, ["cluster.mem_gb: 65, but the nodes of gpu that fit"]),
    ],
)
def test_what_this_cluster_cannot_do_is_found(keys: dict[str, Any], problems: list[str]) -> None:
    found = check_against(profile(**keys), PARTITIONS, ["digits"])
    assert len(found) == len(problems)
    assert all(line.startswith(start) for line, start in zip(found, problems, strict=True))


def test_a_gpu_is_asked_for_where_there_is_one() -> None:
    assert profile().fit_to(PARTITIONS).gpus_per_node == 1
    assert profile(partition="cpu").fit_to(PARTITIONS).gpus_per_node == 0
    assert profile(gpus_per_node=4).fit_to(PARTITIONS).gpus_per_node == 4
    assert profile(gpus_per_node=4).tasks == 4
    assert profile(partition="cpu").fit_to(PARTITIONS).tasks == 1


def test_processes_do_not_share_a_gpu() -> None:
    words = r"cluster\.tasks_per_node=4: 4 processes cannot share the {} GPUs of a node\..*cluster\.gpus_per_node=0"
    with pytest.raises(ValueError, match=words.format(2)):
        profile(tasks_per_node=4, gpus_per_node=2)
    with pytest.raises(ValueError, match=words.format(1)):
        profile(tasks_per_node=4).fit_to(PARTITIONS)
    assert profile(tasks_per_node=4, gpus_per_node=0).tasks == 4
    assert profile(tasks_per_node=4, partition="cpu").fit_to(PARTITIONS).tasks == 4
    assert profile(tasks_per_node=2, gpus_per_node=4).tasks == 2


def test_cuda_graphs_are_for_one_process_with_a_gpu() -> None:
    sweep = compose_sweep(["cuda_graphs=true", "methods=[random]", "seeds=1"])
    check_graphs(profile(gpus_per_node=1), sweep)
    check_graphs(profile(gpus_per_node=4, nodes=2), compose_sweep(["methods=[random]", "seeds=1"]))
    for keys in ({"gpus_per_node": 0}, {"gpus_per_node": 2}, {"gpus_per_node": 1, "nodes": 2}):
        with pytest.raises(ValueError, match=r"cuda_graphs=true is for one process with a GPU, and a job would have"):
            check_graphs(profile(**keys), sweep)


def test_slurm_s_notations() -> None:
    assert [parse_minutes(t) for t in ("1-00:00:00", "02:30:00", "30:00", "infinite")] == [1440, 150, 30, None]
    assert parse_gpus("gpu:a100:4(S:0-1),gpu:2,mps:100,tmp:gpu:7") == {"a100": 4, "": 2}
    assert parse_gpus("(null)") == {}


def test_no_torch_is_needed() -> None:
    code = "import sys, slurm.profile, slurm.squeue, slurm.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.slurm
def test_the_partitions_of_a_real_cluster(cluster: LocalSlurm) -> None:
    partitions = read_partitions()
    assert set(partitions) == {"low", "high"}
    low = partitions["low"]
    assert (low.default, low.up, low.minutes, low.nodes) == (True, True, 1440, 2)
    assert low.kinds == (NodeKind(2, 4, 16.0, {"": 2}, frozenset()),)
    assert check_against(profile(nodes=2, gpus_per_node=2, cpus_per_task=2), partitions, ["digits"]) == []
    problems = check_against(profile(nodes=3), partitions, ["digits"])
    assert problems == ["cluster.nodes=3, but low has 2."]


@pytest.mark.slurm
def test_slurm_gives_a_job_what_the_profile_asks_for(cluster: LocalSlurm, tmp_path: Path) -> None:
    """Through submitit and sbatch; what Slurm has understood is read back from it."""
    import submitit

    asked = profile(
        partition="high",
        nodes=2,
        gpus_per_node=2,
        cpus_per_task=2,
        mem_gb=3,
        time={"default": 60, "digits": {"fit": 10, "task": 6}},
        signal_lead_s=90,
        sbatch={"nice": 7, "begin": "now+1hour"},
        setup=["export FROM_SETUP=1"],
    )
    executor = submitit.SlurmExecutor(tmp_path)
    executor.update_parameters(**submitit_parameters(asked, "digits", "mal:a:b:s0:abcdef"))
    job = executor.submit(print, "hello")
    shown = dict(p.partition("=")[::2] for p in cluster.run("scontrol", "show", "job", job.job_id).split())
    expected = {
        "JobName": "mal:a:b:s0:abcdef",
        "Partition": "high",
        "NumNodes": "2-2",
        "NumTasks": "4",
        "CPUs/Task": "2",
        "MinMemoryNode": "3G",
        "TimeLimit": "00:16:00",
        "Requeue": "1",
        "Nice": "7",
    }
    assert {key: shown.get(key) for key in expected} == expected
    assert shown["TresPerNode"].replace("/", ":") == "gres:gpu:2"  # gres/gpu:2 from Slurm 23.11 on
    script = job.paths.submission_file.read_text()
    for line in ("--dependency=singleton", "--signal=USR2@90", "--open-mode=append", "--requeue"):
        assert f"#SBATCH {line}\n" in script
    assert "\nexport FROM_SETUP=1\n" in script
    assert "#SBATCH --cpus-per-task=2\n" in script
    assert "srun" not in script
