"""A cluster profile: what a job asks Slurm for, from mal/conf/cluster/NAME.yaml, checked, as submitit's parameters.

Only Slurm's own options that a chain's job may choose are keys here; name, dependency, signal, logs and requeueing are
set by the toolkit, as its recovery depends on them.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mal.config.registry import nearest
from slurm.partitions import NodeKind, Partition, parse_limit

CPUS = 4  # of a process, where the profile leaves it open and the nodes have as many
PREPARE = {"cpus": 16, "mem_gb": None, "time": 720, "partition": None}  # of the job that makes a prepared copy
PHASES = ("fit", "task", "score")  # of a round: the method's networks, the task model, the pool's scores
# Options of sbatch that chains rely on, and those that have a key of their own.
_RESERVED = (
    "job-name", "dependency", "signal", "output", "error", "open-mode", "requeue", "no-requeue", "array", "wait",
    "parsable", "wrap", "hold", "partition", "account", "qos", "constraint", "exclude", "nodes", "ntasks",
    "ntasks-per-node", "gpus", "gpus-per-node", "cpus-per-task", "mem", "time",
)  # fmt: skip
# Of another cluster than the one that squeue asks: such jobs could neither be followed nor cancelled.
_ELSEWHERE = ("clusters", "M", "cluster-constraint")
# Defaults of sbatch that a user, or a site, has set: what they choose where a profile chooses nothing.
_DEFAULTS = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
}


@dataclass(frozen=True)
class Profile:
    """What one job of a chain asks for.

    gpus_per_node: None means one where the partition has GPUs. tasks_per_node: processes of torch.distributed; None
    means one for each GPU, at least one. cpus_per_task: None means 4, or what the partition's nodes have. time: by
    dataset, with `default` for the others, for a whole round or for each phase, which are added up: minutes, or text as
    Slurm writes times (8:00:00, 1-12). pack: chains that share one job. signal_lead_s: how long before the time limit a
    job is told. hang_minutes: a round silent for so long is killed and requeued. max_jobs: most jobs that a launch
    leaves in the queue. array_from: with so many jobs missing, chains become tasks of one array. sbatch: further
    options by their long names. prepare: of the job that makes a prepared copy.
    """

    name: str
    kind: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodes: int = 1
    gpus_per_node: int | None = None
    gpu_type: str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    time: Mapping[str, Any] = field(default_factory=lambda: {"default": 240})
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    pack: int = 1
    signal_lead_s: int = 120
    hang_minutes: float = 60
    max_jobs: int | None = None
    array_from: int = 1000
    sbatch: Mapping[str, Any] = field(default_factory=dict)
    prepare: Mapping[str, Any] = field(default_factory=dict)

    def minutes(self, dataset: str) -> int:
        """Time limit of a job on `dataset`, in whole minutes."""
        chosen = self.time.get(dataset, self.time["default"])
        parts = chosen.values() if isinstance(chosen, Mapping) else [chosen]
        return math.ceil(sum(parse_limit(part) for part in parts))

    @property
    def gpus(self) -> int:
        """GPUs in each node, once `fit_to` has settled it (0 before)."""
        return self.gpus_per_node or 0

    @property
    def tasks(self) -> int:
        """Processes in each node."""
        return self.tasks_per_node or max(1, self.gpus)

    @property
    def cpus(self) -> int:
        """CPUs of each process, once `fit_to` has settled them (the default before)."""
        return self.cpus_per_task or CPUS

    def fit_to(self, partitions: Mapping[str, Partition]) -> Profile:
        """The profile with what it leaves open settled by what its partitions have: GPUs, CPUs, the preparing job.

        ValueError where its processes would share a GPU.
        """
        found = chosen_partitions(self, partitions)
        kinds = [kind for partition in found for kind in partition.kinds]
        fitted = self
        if self.gpus_per_node is None:
            fitted = replace(self, gpus_per_node=1 if any(kind.gpu_count(self.gpu_type) for kind in kinds) else 0)
            _check_shared_gpus(fitted)
        if kinds and self.cpus_per_task is None:
            fitted = replace(fitted, cpus_per_task=_fitting_cpus(fitted, kinds))
        asked = self.prepare.get("partition")
        places = chosen_partitions(replace(self, partition=asked), partitions) if asked else found
        return replace(fitted, prepare=_fitting_prepare(self.prepare, places[0])) if places else fitted


def _fitting_cpus(profile: Profile, kinds: Sequence[NodeKind]) -> int:
    """CPUS or, where too few nodes have so many, what they have."""
    able = [kind for kind in kinds if kind.gpu_count(profile.gpu_type) >= profile.gpus]
    for cpus in range(CPUS, 1, -1):
        if sum(kind.nodes for kind in able if kind.cpus >= cpus * profile.tasks) >= profile.nodes:
            return cpus
    return 1


def _fitting_prepare(section: Mapping[str, Any], partition: Partition) -> dict[str, Any]:
    """As many CPUs and as long as asked for, or as the partition has."""
    cpus = min(section["cpus"], max(kind.cpus for kind in partition.kinds))
    minutes = math.ceil(parse_limit(section["time"]))
    return {**section, "cpus": cpus, "time": min(minutes, partition.minutes or minutes)}


def load_profile(section: Mapping[str, Any]) -> Profile:
    """The profile of a configuration's `cluster` section (plain dict), checked by itself.

    ValueError names the key, the value and what is allowed.
    """
    known = [f.name for f in fields(Profile)]
    for key in section:
        if key not in known:
            raise ValueError(f"cluster.{key} is unknown{nearest(key, known) or '.'} Known: {', '.join(known)}.")
    values = {k: v for k, v in section.items() if v is not None}
    for key in ("modules", "setup"):
        values[key] = _strings(key, values.get(key, ()))
    for key in ("partition", "account", "qos", "constraint", "exclude", "gpu_type"):
        if key in values and not isinstance(values[key], str | int):
            raise ValueError(f"cluster.{key}={values[key]}: a word is allowed, e.g. cluster.{key}=name.")
        values |= {key: str(values[key])} if key in values else {}
    for key in ("time", "sbatch"):
        if not isinstance(values.get(key, {}), Mapping):
            raise ValueError(f"cluster.{key}={values[key]}: a mapping is allowed, e.g. {_EXAMPLES[key]}.")
    values["prepare"] = _prepare(values.get("prepare", {}))
    profile = Profile(**values)
    _check_numbers(profile)
    _check_time(profile)
    _check_sbatch(profile)
    return profile


def with_defaults(profile: Profile) -> tuple[Profile, list[str]]:
    """The profile with the user's own defaults of sbatch where it leaves something open; a line on each of them.

    Raises ValueError where they send jobs to another cluster.
    """
    said, chosen = [], dict[str, Any]()
    for variable in sorted(os.environ):
        value, key = os.environ[variable], _DEFAULTS.get(variable)
        if variable in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS") and value:
            raise ValueError(
                f"{variable}={value} sends jobs to another cluster, where they could not be followed: launch on a "
                f"login node of that cluster, or `unset {variable}`."
            )
        if key == "reservation" and key not in profile.sbatch:
            chosen["sbatch"] = {**profile.sbatch, key: value}
            said.append(f"{variable}={value} is taken for cluster.sbatch.{key}.")
        elif key and key != "reservation" and getattr(profile, key) is None:
            chosen[key] = value
            said.append(f"{variable}={value} is taken for cluster.{key}.")
        elif variable.startswith("SBATCH_"):
            said.append(f"{variable}={value} is not used: the profile decides (cluster.*, cluster.sbatch.*).")
    return replace(profile, **chosen), said


def check_against(profile: Profile, partitions: Mapping[str, Partition], datasets: Sequence[str]) -> list[str]:
    """What speaks against `profile` on this cluster, as far as sinfo tells: one line each, empty if nothing.

    Of several partitions, the best counts. Slurm itself takes some of these and never runs the job (too many minutes,
    say); a site's own plug-ins may make others good.
    """
    names = [None] if profile.partition is None else profile.partition.split(",")
    return min((_problems(replace(profile, partition=name), partitions, datasets) for name in names), key=len)


def _problems(profile: Profile, partitions: Mapping[str, Partition], datasets: Sequence[str]) -> list[str]:
    partition = _find(profile, partitions)
    if partition is None:
        names = ", ".join(sorted(partitions))
        if profile.partition is None:
            return [f"cluster.partition=null: this cluster has no default partition; it has {names}."]
        hint = nearest(profile.partition, partitions) or "."
        return [f"cluster.partition={profile.partition} is unknown here{hint} It has {names}."]
    problems = [] if partition.up else [f"cluster.partition={partition.name}: that partition is not up."]
    problems += _time_problems(profile, partition, datasets)
    problems += _permission_problems(profile, partition)
    return problems + _size_problems(profile, partition)


def submitit_parameters(profile: Profile, dataset: str, job_name: str) -> dict[str, Any]:
    """Keyword arguments of submitit's SlurmExecutor.update_parameters for the jobs of one chain.

    They wait for each other (singleton), append to their log, may be requeued, and are told before their time ends.
    """
    chosen = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclude": profile.exclude,
        "mem": None if profile.mem_gb is None else f"{round(profile.mem_gb * 1024)}M",
        "gpus_per_node": _gpu_request(profile),
        "setup": _setup_lines(profile) or None,
    }
    return {
        "job_name": job_name,
        "time": profile.minutes(dataset),
        "nodes": profile.nodes,
        "ntasks_per_node": profile.tasks,
        "cpus_per_task": profile.cpus,
        "dependency": "singleton",
        "signal_delay_s": profile.signal_lead_s,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own would be refused where keys are registered
        "use_srun": False,  # the job starts srun itself, and outlives it
        "additional_parameters": {"requeue": True, "open-mode": "append", **profile.sbatch},
        **{key: value for key, value in chosen.items() if value is not None},
    }


def _prepare(section: Any) -> dict[str, Any]:
    if not isinstance(section, Mapping) or set(section) - set(PREPARE):
        raise ValueError(f"cluster.prepare={section}: only these keys are allowed: {', '.join(PREPARE)}.")
    values = PREPARE | dict(section)
    cpus = values["cpus"]
    if not isinstance(cpus, int) or isinstance(cpus, bool) or cpus < 1:
        raise ValueError(f"cluster.prepare.cpus={cpus}: a whole number from 1 is allowed, e.g. 16.")
    _check_minutes("cluster.prepare.time", values["time"])
    if values["mem_gb"] is not None and not (_is_number(values["mem_gb"]) and values["mem_gb"] > 0):
        raise ValueError(f"cluster.prepare.mem_gb={values['mem_gb']}: a number above 0 is allowed (GB), or null.")
    return values


_EXAMPLES = {"time": "cluster.time.default=240", "sbatch": "+cluster.sbatch.reservation=NAME"}


def _strings(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"cluster.{key}={value}: a list of words is allowed, e.g. cluster.{key}=['a','b'].")
    return tuple(value)


def _check_numbers(profile: Profile) -> None:
    if profile.kind != "slurm":
        raise ValueError(f"cluster.kind={profile.kind}: slurm is allowed in a profile with Slurm's keys.")
    # Slurm looks at time limits every 30 s and may send the signal up to 60 s early
    lowest = {"nodes": 1, "cpus_per_task": 1, "pack": 1, "signal_lead_s": 60, "gpus_per_node": 0, "tasks_per_node": 1}
    for key, low in {**lowest, "max_jobs": 1, "array_from": 2}.items():
        value = getattr(profile, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise ValueError(f"cluster.{key}={value}: a whole number from {low} is allowed.")
    if not (_is_number(profile.hang_minutes) and profile.hang_minutes > 0):
        raise ValueError(f"cluster.hang_minutes={profile.hang_minutes}: a number above 0 is allowed (minutes).")
    if profile.mem_gb is not None and not (_is_number(profile.mem_gb) and profile.mem_gb > 0):
        raise ValueError(f"cluster.mem_gb={profile.mem_gb}: a number above 0 is allowed (GB per node), or null.")
    _check_shared_gpus(profile)
    if profile.pack > 1 and (profile.nodes > 1 or profile.tasks > 1):
        raise ValueError(
            f"cluster.pack={profile.pack} puts several chains on one GPU and needs cluster.nodes=1, "
            "cluster.gpus_per_node=1 or less and cluster.tasks_per_node=null."
        )


def _check_shared_gpus(profile: Profile) -> None:
    """A GPU of its own for each process, which NCCL insists on; on nodes without GPUs any number of processes."""
    if profile.gpus and profile.tasks > profile.gpus:
        raise ValueError(
            f"cluster.tasks_per_node={profile.tasks_per_node}: {profile.tasks} processes cannot share the "
            f"{profile.gpus} GPUs of a node. Set cluster.tasks_per_node={profile.gpus} or null, raise "
            "cluster.gpus_per_node, or compute on CPUs with cluster.gpus_per_node=0."
        )


def _check_time(profile: Profile) -> None:
    if "default" not in profile.time:
        raise ValueError("cluster.time has no `default`: e.g. cluster.time.default=240 (minutes).")
    for dataset, chosen in profile.time.items():
        parts = chosen if isinstance(chosen, Mapping) else {"": chosen}
        for phase, minutes in parts.items():
            key = f"cluster.time.{dataset}{'.' if phase else ''}{phase}"
            if phase and phase not in PHASES:
                raise ValueError(f"{key} is unknown{nearest(phase, PHASES) or '.'} Phases: {', '.join(PHASES)}.")
            _check_minutes(key, minutes)
        if profile.minutes(dataset) * 60 < 2 * profile.signal_lead_s:
            raise ValueError(
                f"cluster.time.{dataset}={profile.minutes(dataset)} minutes: less than half is left before the "
                f"warning of cluster.signal_lead_s={profile.signal_lead_s}. Raise the time, or lower the lead (to 60)."
            )


def _check_minutes(key: str, value: Any) -> None:
    refusal = f"{key}={value}: minutes above 0 are allowed, or a time as Slurm writes it (90, 8:00:00, 1-12:00)."
    if not isinstance(value, str) and not _is_number(value):
        raise ValueError(refusal)
    try:
        minutes = parse_limit(value)
    except ValueError:
        raise ValueError(refusal) from None
    if not 0 < minutes < math.inf:
        raise ValueError(refusal)


def _check_sbatch(profile: Profile) -> None:
    for key, value in profile.sbatch.items():
        plain = str(key).replace("_", "-")
        if plain in _ELSEWHERE:
            raise ValueError(
                f"cluster.sbatch.{key}={value}: jobs of another cluster could not be followed. Launch on a login node "
                "of that cluster instead."
            )
        if plain in _RESERVED:
            raise ValueError(f"cluster.sbatch.{key}: the toolkit sets --{plain} itself, or by a key of its own.")
        if value is False or not isinstance(value, str | int | float):
            raise ValueError(f"cluster.sbatch.{key}={value}: true (a bare flag), a word or a number is allowed.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def chosen_partitions(profile: Profile, partitions: Mapping[str, Partition]) -> list[Partition]:
    """The partitions that a job may run in, as far as they are known: several are separated by commas."""
    names = [None] if profile.partition is None else profile.partition.split(",")
    return [found for name in names if (found := _find(replace(profile, partition=name), partitions)) is not None]


def _find(profile: Profile, partitions: Mapping[str, Partition]) -> Partition | None:
    if profile.partition is not None:
        return partitions.get(profile.partition)
    return next((p for p in partitions.values() if p.default), None)


def _time_problems(profile: Profile, partition: Partition, datasets: Sequence[str]) -> list[str]:
    return [
        f"cluster.time.{dataset}: {profile.minutes(dataset)} minutes, but {partition.name} allows {partition.minutes}."
        for dataset in datasets
        if partition.minutes is not None and profile.minutes(dataset) > partition.minutes
    ]


def _permission_problems(profile: Profile, partition: Partition) -> list[str]:
    rules = {"account": (profile.account, partition.allowed_accounts), "qos": (profile.qos, partition.allowed_qos)}
    return [
        f"cluster.{key}={value}: {partition.name} allows {', '.join(sorted(allowed))}."
        for key, (value, allowed) in rules.items()
        if value is not None and allowed is not None and value not in allowed
    ]


def _size_problems(profile: Profile, partition: Partition) -> list[str]:
    if profile.nodes > partition.nodes:
        return [f"cluster.nodes={profile.nodes}, but {partition.name} has {partition.nodes}."]
    wanted: dict[str, tuple[float, Any]] = {
        "gpus_per_node": (profile.gpus, lambda kind: kind.gpu_count(profile.gpu_type)),
        "cpus_per_task": (profile.tasks * profile.cpus, lambda kind: kind.cpus),
        "mem_gb": (profile.mem_gb or 0, lambda kind: kind.mem_gb),
    }
    fitting: list[NodeKind] = list(partition.kinds)
    for key, (amount, has) in wanted.items():
        most = max(has(kind) for kind in fitting)
        fitting = [kind for kind in fitting if has(kind) >= amount]
        if sum(kind.nodes for kind in fitting) < profile.nodes:
            what = f"{amount:g} per node in all" if key == "cpus_per_task" else f"{amount:g}"
            return [f"cluster.{key}: {what}, but the nodes of {partition.name} that fit otherwise have up to {most:g}."]
    return []


def _gpu_request(profile: Profile) -> str | int | None:
    if not profile.gpus:
        return None
    return f"{profile.gpu_type}:{profile.gpus}" if profile.gpu_type else profile.gpus


def _setup_lines(profile: Profile) -> list[str]:
    load = [f"module load {' '.join(shlex.quote(name) for name in profile.modules)}"] if profile.modules else []
    return [*load, *profile.setup]
