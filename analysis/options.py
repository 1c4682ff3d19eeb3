"""The command line of `analysis/curves.py`: KEY=VALUE, as in `sweeps/launch.py`, and no heavy import."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HELP = """\
Turn the committed rounds under a runs folder into curves.csv, figures, tables and a report; partial sweeps too.

    python analysis/curves.py [runs=DIR] [name=NAME] [out=DIR] [figures=false]

    runs=DIR        where the sweeps are (default runs), e.g. runs=/shared/me/runs
    name=NAME       one sweep, e.g. name=digits; several in one report, e.g. name=[cifar100,imagenet];
                    without it every sweep under runs gets a report of its own
    out=DIR         where to write (default figures): DIR/NAME/curves.csv, curves.png, curves.pdf, report.md,
                    report.html, tables/, ..., e.g. out=paper/figures
    figures=false   tables and report only (the same as --no-figures)
    methods=[...]   only these, e.g. methods=[mal,random]; default: all that have rounds
    targets=[...]   accuracies whose number of labels is reported, e.g. targets=[80,90]; default: three values
    baseline=NAME   the method that others are compared with (default random), e.g. baseline=entropy
    difference=P    the difference in points for which the seeds needed are stated (default 2), e.g. difference=1
    --help          this text
"""


@dataclass(frozen=True)
class Options:
    """What was asked for. names: the sweeps of one report; empty for a report of each sweep under `runs`.

    methods: those of the report; empty for all.
    """

    runs: Path = Path("runs")
    names: tuple[str, ...] = ()
    out: Path = Path("figures")
    methods: tuple[str, ...] = ()
    figures: bool = True
    targets: tuple[float, ...] = ()
    baseline: str = "random"
    difference: float = 2.0


KEYS = ("runs", "name", "out", "methods", "figures", "targets", "baseline", "difference")
FLAGS = ("--no-figures", "--help", "-h")


def hint(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?` for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "."


def sweeps_of(runs: Path, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The named sweeps below a runs folder, all of them where none is named.

    Raises ValueError where the folder, or one of the sweeps, is not there.
    """
    from mal.run import folder as run_folder

    if not runs.is_dir():
        raise ValueError(f"runs={runs}: no such folder. Start a sweep with sweeps/launch.py, or set runs=DIR.")
    known = run_folder.sweep_names(runs)
    if not known:
        raise ValueError(f"runs={runs}: no sweep there. Start one with sweeps/launch.py, or set runs=DIR.")
    for name in names:
        if name not in known:
            raise ValueError(f"name={name}: no such sweep{hint(name, known)} Under {runs}: {', '.join(known)}.")
    return tuple(names) or tuple(known)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether --help or -h was given."""
    return any(argument in ("--help", "-h") for argument in arguments)


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line.

    Raises ValueError for an unknown or repeated key, a word without `=`, or a value that a key does not allow.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, value = _split(argument)
        if key in given:
            raise ValueError(f"{key} is given twice: {key}={given[key]} and {argument}.")
        given[key] = value
    return Options(
        runs=Path(given.get("runs", "runs")),
        names=_names(given.get("name", "")),
        out=Path(given.get("out", "figures")),
        methods=tuple(_list(given.get("methods", ""))),
        figures=_truth("figures", given.get("figures", "true")),
        targets=_numbers("targets", given.get("targets", "")),
        baseline=given.get("baseline", "random"),
        difference=_points("difference", given.get("difference", "2")),
    )


def _split(argument: str) -> tuple[str, str]:
    if argument == "--no-figures":
        return "figures", "false"
    if argument.startswith("-"):
        raise ValueError(f"unknown option {argument}{hint(argument, FLAGS)} Known: {', '.join(FLAGS)}.")
    key, equals, value = argument.partition("=")
    if key not in KEYS:
        raise ValueError(f"unknown key {key!r}{hint(key, KEYS)} Known: {', '.join(KEYS)} (see --help).")
    if not equals or not value:
        raise ValueError(f"{key} needs a value, e.g. {key}={getattr(Options, key, 'digits')}.")
    return key, value


def _list(value: str) -> list[str]:
    return [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]


def _names(value: str) -> tuple[str, ...]:
    names = _list(value)
    for name in names:
        if "/" in name or name in (".", ".."):
            raise ValueError(f"name={value}: a sweep's name is a folder under runs, not a path (set runs= for that).")
    return tuple(dict.fromkeys(names))


def _truth(key: str, value: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in words:
        raise ValueError(f"{key}={value}: give {key}=true or {key}=false.")
    return words[value.lower()]


def _numbers(key: str, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _list(value))
    except ValueError:
        raise ValueError(f"{key}={value}: give numbers, e.g. {key}=[80,90].") from None


def _points(key: str, value: str) -> float:
    numbers = _numbers(key, value)
    if len(numbers) != 1 or not 0 < numbers[0] <= 100:
        raise ValueError(f"{key}={value}: give points of the metric above 0 and up to 100, e.g. {key}=2.")
    return numbers[0]
