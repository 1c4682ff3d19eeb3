"""Where the YAML files of a launch are: the package's own in mal/conf, and a user's in a folder outside of it.

`conf=DIR`, by default ./conf where it is there, holds the same folders: DIR/dataset/MINE.yaml is dataset=MINE. Jobs
need nothing of it, as a chain's config.yaml has every value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mal.config.registry import nearest

CONF = Path(__file__).parents[1] / "conf"
DEFAULT = Path("conf")
GROUPS = ("dataset", "backbone", "method", "cluster", "experiment")
TEMPLATE = "template"  # a file to copy, not a choice


def own_folder(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The user's folder that a command line gives, None where there is none, and the other arguments.

    Raises ValueError where the folder has no group of files, or a file of the same name as one of mal/conf.
    """
    given = [a.partition("=")[2] for a in arguments if a.partition("=")[0] == "conf"]
    others = [a for a in arguments if a.partition("=")[0] != "conf"]
    if not given:
        return (checked(DEFAULT) if any((DEFAULT / group).is_dir() for group in GROUPS) else None), others
    folder = Path(given[-1])
    if not given[-1] or not folder.is_dir():
        raise ValueError(f"conf={given[-1]} is not a folder: give one that has some of {', '.join(GROUPS)}.")
    return checked(folder), others


def checked(folder: Path) -> Path:
    """The folder, absolute; ValueError where a name in it would not be found or would mean two things."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not set(names) & set(GROUPS):
        near = next((f" (there is {name}{nearest(name, GROUPS)})" for name in names if nearest(name, GROUPS)), "")
        raise ValueError(f"conf={folder} has none of the folders {', '.join(GROUPS)}{near}: put your files into one.")
    for group in GROUPS:
        for name in choices(group):
            if (mine := folder / group / f"{name}.yaml").is_file():
                raise ValueError(
                    f"{group}={name} would mean two files, {mine} and {CONF / group / mine.name}: "
                    "give yours another name."
                )
    return folder.resolve()


def choices(group: str, own: Path | None = None) -> list[str]:
    """The names that a group offers, e.g. the datasets, in mal/conf and in the user's folder."""
    return sorted({*names(CONF / group), *(names(own / group) if own else ())})


def names(folder: Path) -> list[str]:
    """The choices that a folder of YAML files offers."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != TEMPLATE)


def yaml_path(group: str, name: str, own: Path | None = None) -> Path:
    """The file of a choice: the user's where that is there, else that of mal/conf, which need not exist."""
    mine = own / group / f"{name}.yaml" if own else None
    return mine if mine and mine.is_file() else CONF / group / f"{name}.yaml"
