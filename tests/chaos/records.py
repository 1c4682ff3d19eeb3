"""What faults over hours have done, kept as CSV so that several runs add up, and its summary."""

from __future__ import annotations

import csv
import dataclasses
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar


@dataclass(frozen=True)
class FaultRow:
    """One fault: when (UTC), by which code and Slurm, in which kind of sweep, what struck whom, and what came of it.

    outcome: went on; done (nothing was left to do); released (Slurm holds a job after a failing prolog, until a person
    releases it); person (somebody had to launch again); lost. seconds: until work went on on every chain that was hit.
    """

    time: str
    code: str
    slurm: str
    sweep: str
    kind: str
    target: str
    outcome: str
    seconds: float


@dataclass(frozen=True)
class ChainRow:
    """One chain: its rounds wanted and committed, whether its files are those of an undisturbed one, and its time.

    persons: how often somebody had to launch again; released: how often a job that Slurm held was. useful_s: seconds of
    its jobs whose work was kept; all_s: from the launch to the last commit.
    """

    time: str
    code: str
    slurm: str
    sweep: str
    chain: str
    rounds: int
    committed: int
    identical: bool
    persons: int
    released: int
    useful_s: float
    all_s: float


Row = TypeVar("Row", FaultRow, ChainRow)


class Records:
    """faults.csv and chains.csv in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, row: FaultRow | ChainRow) -> None:
        """Append a row, whole, also beside another run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [field.name for field in dataclasses.fields(row)]
        values = [f"{x:.1f}" if isinstance(x, float) else str(x) for x in dataclasses.astuple(row)]
        with self._path(type(row)).open("a", newline="") as file:
            text = "" if file.tell() else f"{','.join(names)}\n"
            os.write(file.fileno(), f"{text}{','.join(value.replace(',', ' ') for value in values)}\n".encode())

    def faults(self) -> list[FaultRow]:
        """Oldest first."""
        return [FaultRow(**row | {"seconds": float(row["seconds"])}) for row in self._read(FaultRow)]  # type: ignore[arg-type]

    def chains(self) -> list[ChainRow]:
        """Oldest first."""
        numbers = {"rounds": int, "committed": int, "persons": int, "released": int, "useful_s": float, "all_s": float}
        return [
            ChainRow(
                **row | {k: kind(row[k]) for k, kind in numbers.items()} | {"identical": row["identical"] == "True"}
            )
            for row in self._read(ChainRow)
        ]

    def table(self) -> str:
        """A line on all of it, and a Markdown table with a row for each kind of fault, the most frequent first."""
        faults, chains = self.faults(), self.chains()
        if not faults:
            return f"{self.folder} holds no faults yet."
        lines = [
            summary(faults, chains),
            "",
            "| fault | times | median s until work went on | longest | released | a person |",
        ]
        lines.append("|---|---|---|---|---|---|")
        kinds = sorted({f.kind for f in faults}, key=lambda kind: (-sum(f.kind == kind for f in faults), kind))
        for kind in kinds:
            those = [fault for fault in faults if fault.kind == kind]
            seconds = [fault.seconds for fault in those]
            helped = [str(sum(fault.outcome == how for fault in those)) for how in ("released", "person")]
            times = [str(len(those)), f"{statistics.median(seconds):.1f}", f"{max(seconds):.0f}"]
            lines.append(f"| {' | '.join([kind, *times, *helped])} |")
        return "\n".join(lines)

    def _path(self, kind: type) -> Path:
        return self.folder / ("faults.csv" if kind is FaultRow else "chains.csv")

    def _read(self, kind: type) -> Iterable[dict[str, str]]:
        if not self._path(kind).is_file():
            return []
        with self._path(kind).open(newline="") as file:
            return list(csv.DictReader(file))


def summary(faults: Sequence[FaultRow], chains: Sequence[ChainRow]) -> str:
    """Counts, and the share of time that was useful."""
    lost = sum(chain.rounds - chain.committed for chain in chains)
    differ = sum(not chain.identical for chain in chains)
    persons = sum(chain.persons > 0 for chain in chains)
    released = sum(fault.outcome == "released" for fault in faults)
    if not chains:
        return f"{len(faults)} faults; no sweep has ended yet."
    useful = sum(chain.useful_s for chain in chains) / sum(chain.all_s for chain in chains)
    rounds = sum(chain.rounds for chain in chains)
    return (
        f"{len(faults):,} faults, {len(chains)} chains of {rounds:,} rounds. Rounds lost: {lost}; chains that differ: "
        f"{differ}; chains that needed a person: {persons}; jobs that Slurm held and that were released: {released}; "
        f"ETTR {useful:.2f}."
    )
