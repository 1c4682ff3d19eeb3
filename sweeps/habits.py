"""Common habits from Hydra and the shell, answered with how it is done here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mal.config.compose import GROUPS, OPEN_KEYS

_SHOW = "show_config=METHOD prints what METHOD would run with and where each value comes from, e.g. show_config=mal"
_SEVERAL = "one launch is a sweep already: methods=[mal,random] seeds=3; other keys side by side by variants="
_FILES = "presets are experiment=NAME, chosen among those that --help lists; single keys are KEY=VALUE"
_FOLDER = "results go to RUNS/NAME: set runs=DIR and name=NAME"
FLAGS = {
    **dict.fromkeys(("--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p"), _SHOW),
    **dict.fromkeys(("--multirun", "-m", "--experimental-rerun"), _SEVERAL),
    **dict.fromkeys(("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), _FILES),
    **dict.fromkeys(("--run", "-r"), "leave it out: a launch runs what is missing (dry_run=true: it only says what)"),
    **dict.fromkeys(("--shell-completion", "-sc"), "source <(python sweeps/launch.py completion=bash)"),
    "--hydra-help": "--help lists every key",
    "--version": "the version is in pyproject.toml, and in each round's provenance.json",
}
_LISTS = ("methods", "seeds")  # keys whose value is a list
_SWITCHES = ("dry_run", "retry")
_PAIRS = ("minimax.betas",)
_FUNCTION = re.compile(r"(choice|range|glob|interval|shuffle|sort|extend_list)\(.*\)")
_RANGE = re.compile(r"(?:range\()?(\d+)(?:,|-|\.\.|:)(\d+)\)?")
_WORD = r"""(?:[\w.+-]+|'[^']*'|"[^"]*")"""
_PLAIN = re.compile(rf"(?!\d+(?:-|\.\.)\d+$){_WORD}|\[\s*{_WORD}(?:\s*,\s*{_WORD})*\s*\]")


def answer(arguments: Sequence[str]) -> None:
    """Refuse, with a ValueError that says what to write instead, what means something in Hydra and nothing here."""
    _spaces(arguments)
    for argument in arguments:
        if argument.startswith("-"):
            raise ValueError(_flag(argument))
        key, _, value = argument.partition("=")
        _sign(argument, key.strip())
        _list(argument, key.strip(), value.strip())
    _twice(arguments)


def _spaces(arguments: Sequence[str]) -> None:
    """Refuse `KEY = VALUE`, which the shell hands over in parts unless it stands within quotes."""
    for at in range(len(arguments)):
        text = " ".join(arguments[at : at + 3])
        if match := re.match(r"([\w.+~]+)(?: = ?|= )([^\s=]+)(?= |$)", text):
            raise ValueError(f"{match[0]!r}: no space around the equals sign. Write {match[1]}={match[2]}.")


def _flag(argument: str) -> str:
    name, _, value = argument.partition("=")
    if name in FLAGS:
        return f"{argument} is Hydra's. Here: {FLAGS[name]}."
    plain = name.lstrip("-").replace("-", "_")
    value = value or ("true" if plain in _SWITCHES else "VALUE")
    return f"{argument!r}: keys are written without dashes, e.g. {plain}={value}; --help lists them."


def _sign(argument: str, key: str) -> None:
    """Hydra's +KEY adds, ++KEY adds or changes, ~KEY removes."""
    plain = argument.lstrip("+~")
    if key.startswith("+") and not key.lstrip("+").startswith(OPEN_KEYS):
        raise ValueError(f"{argument!r}: no key is added with +, all are there (--help lists them). Write {plain}.")
    if key.startswith("~"):
        name = plain.partition("=")[0]
        raise ValueError(f"{argument!r}: no key can be removed. Leave {name} out, for its default, or set it.")
    if key.startswith("hydra.") or key == "hydra":
        raise ValueError(f"{argument!r}: Hydra's own keys do nothing here: {_FOLDER}.")


def _list(argument: str, key: str, value: str) -> None:
    """Lists without brackets, with other separators, and Hydra's values for several runs."""
    if value.count("[") != value.count("]"):
        raise ValueError(f"{argument!r}: the list is not closed. No space in it, or quotes around: {key}=[A,B].")
    if key in _LISTS:
        if value not in ("", "[]") and not _PLAIN.fullmatch(value):
            raise ValueError(f"{argument!r} is not a list. Write {key}=[{','.join(_parts(value))}].")
    elif _FUNCTION.fullmatch(value) or any(True for _ in _commas(value)):
        raise ValueError(_choices(argument, key, value))


def _parts(value: str) -> list[str]:
    """The words that a list of any form has; of a range, its numbers."""
    words = re.findall(r"[^\s,;()\[\]{}'\"]+", re.sub(r"^[a-z_]+\(", "(", value))
    if (match := _RANGE.fullmatch(value)) and int(match[2]) - int(match[1]) < 1000:
        return [str(n) for n in range(int(match[1]), int(match[2]) + (not value.startswith("range")))]
    return words


def _choices(argument: str, key: str, value: str) -> str:
    parts = [part.strip() for part in re.sub(r"^\w+\(|\)$", "", value).split(",")]
    if key in _PAIRS:
        return f"{argument!r} is not a list. Write {key}=[{value}]."
    if key in GROUPS:
        return f"{argument!r}: one launch has one {key}. Launch with {key}={parts[0]}, then with {key}={parts[-1]}."
    if not key.startswith(("minimax.", "task.", "method.")):
        return f"{argument!r}: a key has one value in a launch. If the comma is part of it: \"{key}='{value}'\"."
    variants = ",".join(f"mal_{n}:{{method:mal,{key}:{part}}}" for n, part in enumerate((parts[0], parts[-1]), 1))
    several = f"'variants={{{variants}}}' methods=[mal_1,mal_2]"
    return f"{argument!r}: a key has one value in a launch. Several, side by side: {several}."


def _commas(value: str) -> Iterator[int]:
    """Where commas stand outside all brackets and quotes."""
    depth, quote = 0, ""
    for at, letter in enumerate(value):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            yield at


def _twice(arguments: Sequence[str]) -> None:
    """Refuse `methods=mal methods=random`, which a shell makes of methods={mal,random}; else the last counts."""
    names = [value for key, _, value in (a.partition("=") for a in arguments) if key == "methods"]
    if len(names) > 1 and not any(name.startswith("[") for name in names):
        raise ValueError(f"methods is given {len(names)} times. Write methods=[{','.join(names)}].")
