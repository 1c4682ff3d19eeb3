"""What the jobs of a sweep asked for against what they used, and the keys of the profile to change.

From the records of rounds and attempts; Slurm's accounting adds the memory of whole jobs, where it is there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mal.files import write_json
from mal.run import folder as run_folder
from slurm.attempts import read_attempts
from slurm.client import SlurmError, call
from slurm.profile import Profile
from slurm.submitted import FOLDER, read_submitted

ASKED = "asked.json"
ROOM = 1.5  # that a request leaves over what was used
START_SECONDS = 60.0  # of a job, before its round begins
JOBS_AT_ONCE = 500  # in one sacct
LOW_PERCENT = 60.0  # of a GPU's time: several chains could share it


@dataclass
class Used:
    """What the rounds and jobs of a sweep have used at most, and their GPUs in the mean; MiB and seconds."""

    rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # of the longest round, by data set
    host_mib: float = 0.0  # of a job
    gpu_mib: float = 0.0  # of a GPU
    gpu_total_mib: float = 0.0
    gpu_percents: list[float] = field(default_factory=list)


def note_asked(sweep: Path, profile: Profile, datasets: Sequence[str]) -> None:
    """Remember what the jobs of a launch ask for; sweep: RUNS/NAME."""
    asked = {"minutes": {name: profile.minutes(name) for name in datasets}, "mem_gb": profile.mem_gb}
    asked |= {"tasks": profile.tasks, "gpus": profile.gpus, "pack": profile.pack, "lead_s": profile.signal_lead_s}
    write_json(sweep / FOLDER / ASKED, asked)


def report(runs: Path, name: str) -> list[str]:
    """The lines on one sweep."""
    path = runs / name / FOLDER / ASKED
    if not path.is_file():
        return [f"{name}: no launch of it on Slurm has noted what its jobs ask for."]
    asked, used = run_folder.read_json(path), _used(runs, name)
    if not used.rounds:
        return [f"{name}: no round is committed yet."]
    by_slurm = _by_accounting(runs / name)
    lines = [f"{name}: asked for and used, by {used.rounds} rounds"]
    changes = [*_time(asked, used, lines), *_memory(asked, by_slurm or used.host_mib, bool(by_slurm), lines)]
    changes += _gpus(asked, used, lines)
    lines.append(f"  to change: {' '.join(changes)}" if changes else "  nothing to change")
    return lines


def _used(runs: Path, name: str) -> Used:
    used = Used()
    for chain in run_folder.chain_folders(runs, name):
        for number in range(run_folder.committed_rounds(chain)):
            folder = run_folder.round_folder(chain, number)
            metrics, about = (run_folder.read_json(folder / n) for n in (run_folder.METRICS, run_folder.PROVENANCE))
            used.rounds += 1
            dataset, seconds = str(metrics["dataset"]), float(metrics["seconds"])
            used.seconds[dataset] = max(seconds, used.seconds.get(dataset, 0.0))
            used.host_mib = max(used.host_mib, float(about.get("peak_host_mib") or 0.0))
            used.gpu_mib = max(used.gpu_mib, float(about.get("reserved_device_mib") or 0.0))
        for attempt in read_attempts(chain):
            if attempt.gpu_percent is not None:
                used.gpu_percents.append(attempt.gpu_percent)
                used.gpu_total_mib = attempt.gpu_mib or used.gpu_total_mib
    return used


def _time(asked: Mapping[str, Any], used: Used, lines: list[str]) -> list[str]:
    changes = []
    for dataset, seconds in sorted(used.seconds.items()):
        minutes = int(asked["minutes"].get(dataset, 0))
        lines.append(f"  time        {minutes} minutes of {dataset}; the longest round took {seconds / 60:.1f}")
        wanted = math.ceil(max((ROOM * seconds + START_SECONDS) / 60, 2 * asked["lead_s"] / 60))
        if minutes and (minutes > 2 * wanted or minutes < wanted):
            changes.append(f"cluster.time.{dataset}={wanted}")
    return changes


def _memory(asked: Mapping[str, Any], mib: float, of_job: bool, lines: list[str]) -> list[str]:
    """Of one process, by our own records, or of a whole job, by Slurm's."""
    processes = 1 if of_job else asked["tasks"] * asked["pack"]
    gb, what = mib * processes / 1024, "a job, by sacct" if of_job else f"{processes} processes"
    had = "the cluster's default" if asked["mem_gb"] is None else f"{asked['mem_gb']:g} GB"
    lines.append(f"  memory      {had}; at most {gb:.1f} GB ({what})")
    wanted = math.ceil(ROOM * gb)
    if asked["mem_gb"] is None:
        return [f"cluster.mem_gb={wanted}"]
    return [f"cluster.mem_gb={wanted}"] if asked["mem_gb"] > 2 * wanted or asked["mem_gb"] < gb else []


def _gpus(asked: Mapping[str, Any], used: Used, lines: list[str]) -> list[str]:
    if not asked["gpus"]:
        return []
    total = f" of {used.gpu_total_mib / 1024:.0f}" if used.gpu_total_mib else ""
    lines.append(f"  GPU memory  at most {used.gpu_mib / 1024:.1f}{total} GiB of a GPU, by a process")
    if not used.gpu_percents:
        lines.append("  GPU share   not known: nvidia-smi did not tell")
        return []
    percent = sum(used.gpu_percents) / len(used.gpu_percents)
    lines.append(f"  GPU share   {percent:.0f}% of the time, by nvidia-smi in {len(used.gpu_percents)} jobs")
    room = used.gpu_total_mib / max(ROOM * used.gpu_mib, 1.0)
    pack = min(int(100 / max(percent, 1.0)), int(room), 8)
    alone = asked["gpus"] == asked["tasks"] == asked["pack"] == 1
    return [f"cluster.pack={pack}"] if alone and percent < LOW_PERCENT and pack > 1 else []


def _by_accounting(sweep: Path) -> float:
    """The most memory of a job in MiB, by sacct; 0 where there is no accounting."""
    jobs, most = sorted(read_submitted(sweep)), 0.0
    for first in range(0, len(jobs), JOBS_AT_ONCE):
        some = ",".join(jobs[first : first + JOBS_AT_ONCE])
        try:
            said = call(
                "sacct", "--noheader", "--parsable2", f"--jobs={some}", "--format=MaxRSS", "--units=M", attempts=1
            )
        except SlurmError:
            return 0.0
        most = max([most, *(float(number) for number in re.findall(r"^([\d.]+)M$", said, re.MULTILINE))])
    return most
