"""What the cluster's partitions offer, from sinfo and scontrol, as far as they answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from slurm.client import FIELD, call

_COLUMNS = "%P", "%a", "%l", "%D", "%c", "%m", "%G", "%f"


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one partition that are alike: how many, and what each has; gpus by type ("" where Slurm names none)."""

    nodes: int
    cpus: int
    mem_gb: float
    gpus: dict[str, int]
    features: frozenset[str]

    def gpu_count(self, kind: str | None) -> int:
        """GPUs of a type, or of any, in one node."""
        return sum(self.gpus.values()) if kind is None else self.gpus.get(kind, 0)


@dataclass(frozen=True)
class Partition:
    """One partition. minutes: the longest time limit, None without one; allowed_*: None where all are allowed.

    cancels: whether Slurm cancels what it preempts there, so that nothing of it comes back.
    """

    name: str
    default: bool
    up: bool
    minutes: int | None
    kinds: tuple[NodeKind, ...]
    allowed_accounts: frozenset[str] | None = None
    allowed_qos: frozenset[str] | None = None
    cancels: bool = False

    @property
    def nodes(self) -> int:
        """All its nodes."""
        return sum(kind.nodes for kind in self.kinds)


def read_partitions() -> dict[str, Partition]:
    """Every partition by name. Errors: SlurmError, SlurmSilentError."""
    rows = call("sinfo", "--noheader", "--exact", f"--format={FIELD.join(_COLUMNS)}").splitlines()
    limits = _limits(call("scontrol", "--oneliner", "show", "partition"))
    found: dict[str, Partition] = {}
    for row in rows:
        name, up, minutes, *node = row.split(FIELD)
        plain = name.rstrip("*")
        known = found[plain].kinds if plain in found else ()
        values = limits.get(plain, {})
        found[plain] = Partition(
            name=plain,
            default=name.endswith("*"),
            up=up == "up",
            minutes=parse_minutes(minutes),
            kinds=(*known, _node_kind(node)),
            allowed_accounts=_allowed(values, "AllowAccounts"),
            allowed_qos=_allowed(values, "AllowQos"),
            cancels="CANCEL" in values.get("PreemptMode", ""),
        )
    return found


def parse_minutes(text: str) -> int | None:
    """Minutes of Slurm's [days-]hours:minutes:seconds (or minutes:seconds); None for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        if text in ("infinite", "UNLIMITED", "n/a", "INVALID"):
            return None
        raise ValueError(f"{text!r} is not a time of Slurm's, such as 1-00:00:00")
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def parse_limit(value: float | str) -> float:
    """Minutes of a time limit: a number, or text as sbatch takes it.

    That is: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
    ValueError for anything else.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?", value.strip())
    if match is None:
        return float(value)
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is not None:
        return int(days) * 1440 + first * 60 + second + third / 60
    return first * 60 + second + third / 60 if parts[2] is not None else first + second / 60


def parse_gpus(text: str) -> dict[str, int]:
    """GPUs of a node by type from sinfo's GRES, e.g. gpu:a100:4(S:0-1),gpu:2 -> {"a100": 4, "": 2}."""
    gpus: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu:(?:([^:,()]+):)?(\d+)", text):
        gpus[kind] = gpus.get(kind, 0) + int(count)
    return gpus


def _node_kind(columns: Sequence[str]) -> NodeKind:
    nodes, cpus, mem_mb, gres, features = columns
    names = frozenset(name for name in features.split(",") if name and name != "(null)")
    # a + stands behind the smallest of several values; --exact should leave none
    number, memory = int(cpus.rstrip("+")), int(mem_mb.rstrip("+"))
    return NodeKind(int(nodes), number, memory / 1024, parse_gpus(gres), names)


def _limits(text: str) -> dict[str, dict[str, str]]:
    """Partition -> its settings, from scontrol's key=value lines."""
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
    return {values["PartitionName"]: values for values in rows if "PartitionName" in values}


def _allowed(values: dict[str, str], key: str) -> frozenset[str] | None:
    text = values.get(key, "ALL")
    return None if text in ("ALL", "N/A", "(null)") else frozenset(text.split(","))
