"""What the Tab key offers for launch.py and the commands beside it: keys, then what a key takes; one word per line.

    source <(python sweeps/launch.py completion=bash)      # in a shell, or a line of ~/.bashrc

bash runs `python sweeps/completion.py SCRIPT WORD [GIVEN ...]`. It must answer before a person notices, so it reads the
YAML files and imports neither Hydra nor the configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

try:
    from mal.packages import require

    require()
except ImportError as error:
    sys.exit(
        f"completion: {error} in {sys.executable}: start .venv/bin/python (make setup), or activate your environment."
    )

import yaml

from mal.config.choices import CHOICES
from mal.config.conf_folders import choices, own_folder, yaml_path
from mal.files import run_command

GROUPS = ("dataset", "backbone", "cluster", "experiment")
BOOLEAN = ("true", "false")
OTHERS: dict[str, dict[str, Iterable[str]]] = {
    "status.py": {"runs": (), "name": (), "watch": BOOLEAN},
    "cancel.py": {"runs": (), "name": (), "method": (), "seed": ()},
    "prune.py": {"runs": (), "name": (), "what": ("checkpoints", "logs", "code"), "apply": BOOLEAN},
    "label.py": {"runs": (), "name": (), "import": (), "serve": BOOLEAN, "port": ()},
}
BASH = """\
_mal() {
    local line=${COMP_LINE:0:COMP_POINT} words script python=python3
    read -ra words <<< "$line"
    [[ $line == *" " ]] && words+=("")
    for script in "${words[@]:0:2}"; do
        case $script in
            */launch.py|launch.py|*/status.py|status.py|*/cancel.py|cancel.py|*/prune.py|prune.py|*/label.py|label.py)
                [[ ${words[0]} == *python* ]] && python=${words[0]}
                local word=${words[-1]} IFS=$'\\n'
                COMPREPLY=($("$python" COMPLETION "${script##*/}" "$word" "${words[@]}" 2>/dev/null))
                # bash takes a word apart at its equals sign
                [[ $word == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
                [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} != *= ]] || compopt -o nospace
                [[ ${#COMPREPLY[@]} -gt 0 ]] && return 0 ;;
        esac
    done
    compopt -o default
}
complete -F _mal python python3 launch.py status.py cancel.py prune.py label.py
"""


def main(arguments: Sequence[str]) -> int:
    """SCRIPT WORD [GIVEN ...]: print what may stand in the place of WORD."""
    script, word, *given = arguments
    print("\n".join(offered(script, word, given)))
    return 0


def script() -> str:
    """The lines for bash."""
    return BASH.replace("COMPLETION", f"'{Path(__file__).resolve()}'")


def offered(script: str, word: str, given: Sequence[str]) -> list[str]:
    """The whole words that begin with `word`: KEY=, or KEY=VALUE where the key is there already."""
    key, equals, value = word.partition("=")
    keys = OTHERS.get(script) or _keys(given)
    if not equals:
        return sorted(f"{name}=" for name in keys if name.startswith(word))
    if key in ("runs", "data", "conf", "dataset.root", "import"):
        return []  # bash completes folders
    if key == "methods":
        head, comma, last = value.lstrip("[").rpartition(",")
        return [f"{key}=[{head}{comma}{name}" for name in choices("method", _own(given)) if name.startswith(last)]
    values = _sweeps(given) if key == "name" else keys.get(key, ())
    return [f"{key}={each}" for each in values if each.startswith(value)]


def _keys(given: Sequence[str]) -> dict[str, Iterable[str]]:
    """Every key with the names that it takes: those of conf/config.yaml, and of the groups chosen so far."""
    own = _own(given)
    config = _read(yaml_path("", "config"))
    chosen = {group: name for default in config["defaults"] if default != "_self_" for group, name in default.items()}
    given_groups = {key: value for key, _, value in (each.partition("=") for each in given) if key in GROUPS}
    chosen |= {"cluster": "slurm"} | given_groups  # a profile of Slurm's has the most keys
    for default in _read(yaml_path("dataset", chosen["dataset"], own)).get("defaults", []):
        if isinstance(default, dict) and "override /backbone" in default and "backbone" not in given_groups:
            chosen["backbone"] = default["override /backbone"]
    values = _flat({key: value for key, value in config.items() if key != "defaults"})
    for group in ("dataset", "backbone", "cluster"):
        section = _read(yaml_path(group, chosen[group], own))
        values |= _flat({group: section.get(group, section)})
    for method in choices("method", own):
        values |= _flat({"method": _read(yaml_path("method", method, own)).get("method", {})})
    keys: dict[str, Iterable[str]] = {key: BOOLEAN if isinstance(v, bool) else () for key, v in values.items()}
    keys |= {name: [str(each) for each in names if each is not None] for name, names in CHOICES.items() if name in keys}
    keys |= {group: choices(group, own) for group in GROUPS} | {"oracle": keys["dataset.oracle"]}
    keys |= {"methods": (), "show_config": choices("method", own)}
    hidden = ("defaults", ".name", ".acquisition", ".kind")
    return {name: each for name, each in keys.items() if not name.endswith(hidden)}


def _read(path: Path) -> dict[str, Any]:
    """A file of the configuration, {} where it is not there."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is there
    return (yaml.load(path.read_bytes(), loader) or {}) if path.is_file() else {}


def _own(given: Sequence[str]) -> Path | None:
    """The user's folder of files; none where it would be refused, which the launch says."""
    try:
        return own_folder(given)[0]
    except ValueError:
        return None


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return values


def _sweeps(given: Sequence[str]) -> list[str]:
    runs = next((each.partition("=")[2] for each in given if each.startswith("runs=")), "runs")
    return sorted({path.parts[-4] for path in Path(runs).glob("*/*/seed-*/config.yaml")})


if __name__ == "__main__":
    run_command(main)
