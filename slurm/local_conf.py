"""The configuration files of a Slurm cluster that lives on one machine.

One host plays every node: each has a slurmd of its own, told apart by its name and port. Everything listens
on the loopback address only. Waiting times are short, so that preemption, requeueing and a lost node show in
seconds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = "127.0.0.1"
STAND_INS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx")


@dataclass(frozen=True)
class ClusterShape:
    """What the local cluster offers, and how fast it acts.

    Seconds: `grace_s` between the warning and the kill of a preempted job, `slurmd_timeout_s` until a silent
    node counts as lost, `kill_wait_s` between SIGTERM and SIGKILL at the time limit, `requeue_s` until a
    requeued job may start again (Slurm's default: 121). `user_signal`: a preempted job is also sent the
    signal of its `--signal`. `submit_limit`: with this many jobs in the queue a submission is refused, as a
    QOS limit does (0: none). `extra` is added to slurm.conf, over what stands there.
    """

    nodes: int = 2
    cpus_per_node: int = 4
    gpus_per_node: int = 2
    mem_gb_per_node: int = 16
    grace_s: int = 5
    slurmd_timeout_s: int = 5  # with 3, Slurm 24.11 takes nodes for lost that are not
    kill_wait_s: int = 5
    requeue_s: int = 5  # the least that Slurm takes
    user_signal: bool = False
    submit_limit: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bounds = {"nodes": (1, 64), "cpus_per_node": (1, 256), "mem_gb_per_node": (1, 4096)}
        bounds |= {"gpus_per_node": (0, len(STAND_INS)), "submit_limit": (0, 10**6)}
        bounds |= {"grace_s": (0, 3600), "requeue_s": (5, 3600)}
        for key, (low, high) in bounds.items():
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}={getattr(self, key)}: {low} to {high} is allowed; change {key}")

    @property
    def node_names(self) -> list[str]:
        """n1, n2, ... as Slurm will call them."""
        return [f"n{i + 1}" for i in range(self.nodes)]


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind((LOOPBACK, 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


def slurm_conf(folder: Path, shape: ClusterShape) -> str:
    """Text of slurm.conf for a cluster whose state, logs, key and sockets are all under `folder`."""
    controller_port, *node_ports = free_ports(shape.nodes + 1)
    # cred_expire is also how long a requeued job waits
    auth = {"AuthInfo": f"socket={folder / 'munge.socket'},cred_expire={shape.requeue_s}"}
    settings = {**_paths_and_names(folder, controller_port), **auth, **_behaviour(shape), **shape.extra}
    lines = [f"{key}={value}" for key, value in settings.items()]
    gres = f" Gres=gpu:{shape.gpus_per_node}" if shape.gpus_per_node else ""
    for name, port in zip(shape.node_names, node_ports, strict=True):
        lines.append(
            f"NodeName={name} NodeHostname={_short_hostname()} NodeAddr={LOOPBACK} Port={port} "
            f"CPUs={shape.cpus_per_node} RealMemory={shape.mem_gb_per_node * 1024}{gres} State=UNKNOWN"
        )
    common = "Nodes=ALL State=UP DefaultTime=60 MaxTime=1-00:00:00"
    preempted = f"PreemptMode=REQUEUE GraceTime={shape.grace_s}"
    lines += [
        f"PartitionName=low {common} Default=YES PriorityTier=1 {preempted}",
        f"PartitionName=high {common} PriorityTier=10 PreemptMode=OFF",
    ]
    return "\n".join(lines) + "\n"


def gres_conf(shape: ClusterShape) -> str:
    """Text of gres.conf: this machine's GPUs where they suffice (nodes share them), else harmless stand-ins.

    Slurm wants a device file for each GPU before it sets CUDA_VISIBLE_DEVICES; it does not open them.
    """
    if not shape.gpus_per_node:
        return "AutoDetect=off\n"
    real = [f"/dev/nvidia{i}" for i in range(shape.gpus_per_node)]
    devices = real if all(Path(d).exists() for d in real) else list(STAND_INS[: shape.gpus_per_node])
    return f"AutoDetect=off\nNodeName={','.join(shape.node_names)} Name=gpu File={','.join(devices)}\n"


def submit_filter(limit: int) -> str:
    """Lua text of a job_submit plugin that answers as a QOS with MaxSubmitJobsPerUser=`limit` does.

    A real one needs the accounting database. Slurm refreshes slurm.jobs once a second at most, so what was accepted
    since is counted here. 2050 is Slurm's ESLURM_ACCOUNTING_POLICY; unfinished states are those below 3.
    """
    return f"""local newest, unseen = 0, 0

function slurm_job_submit(job, partitions, uid)
  local unfinished, last = 0, 0
  for id, other in pairs(slurm.jobs) do
    last = math.max(last, tonumber(id))
    if tonumber(other.job_state) % 256 < 3 then unfinished = unfinished + 1 end
  end
  if last > newest then
    newest, unseen = last, 0
  end
  if unfinished + unseen >= {limit} then
    slurm.log_user("QOSMaxSubmitJobPerUserLimit")
    return 2050
  end
  unseen = unseen + 1
  return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
  return slurm.SUCCESS
end
"""


def _short_hostname() -> str:
    return socket.gethostname().split(".")[0]


def _paths_and_names(folder: Path, controller_port: int) -> dict[str, str]:
    user = str(os.getuid())
    return {
        "ClusterName": "local",
        "SlurmctldHost": f"{_short_hostname()}({LOOPBACK})",
        "SlurmctldPort": str(controller_port),
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "SlurmUser": user,
        "SlurmdUser": user,
        "StateSaveLocation": str(folder / "state"),
        "SlurmdSpoolDir": str(folder / "spool" / "%n"),
        "SlurmctldPidFile": str(folder / "slurmctld.pid"),
        "SlurmdPidFile": str(folder / "%n.pid"),
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "MailProg": "/bin/true",
    }


def _behaviour(shape: ClusterShape) -> dict[str, str]:
    preempt = {"SlurmctldParameters": "preempt_send_user_signal"} if shape.user_signal else {}
    limit = {"JobSubmitPlugins": "lua"} if shape.submit_limit else {}
    return {
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "DefMemPerCPU": str(shape.mem_gb_per_node * 1024 // shape.cpus_per_node),
        "SlurmdParameters": "config_overrides",  # more CPUs than the machine has are accepted
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "JobCompType": "jobcomp/none",
        "SchedulerParameters": "sched_min_interval=0,sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "GresTypes": "gpu",
        "ReturnToService": "2",
        "SlurmdTimeout": str(shape.slurmd_timeout_s),
        "SlurmctldTimeout": "5",
        "MessageTimeout": "5",  # seconds; how long a dead node is asked
        "KillWait": str(shape.kill_wait_s),
        **preempt,
        **limit,
    }
