"""key=value options of the small commands, with the nearest known key for an unknown one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mal.config.registry import nearest


def parse_options(arguments: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The options over their defaults; ValueError for what is not one of them."""
    options = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals and key not in defaults:
            raise ValueError(f"{argument!r} is not of the form KEY=VALUE. Known: {'=, '.join(defaults)}=.")
        if key not in defaults:
            raise ValueError(f"{argument!r} is unknown{nearest(key, defaults) or '.'} Known: {', '.join(defaults)}.")
        if not equals or not value:
            raise ValueError(f"{argument!r} is not of the form key=value, e.g. name=digits.")
        options[key] = value
    return options


def parse_boolean(key: str, value: str) -> bool:
    """true or false; ValueError for anything else."""
    if value not in ("true", "false"):
        raise ValueError(f"{key}={value} is neither true nor false.")
    return value == "true"
