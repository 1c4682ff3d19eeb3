"""Which names the code registers, read from its source: the login node checks them without importing torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# Where each registry's entries are: their folder below mal/, and the registry's name in the code.
METHODS, SOURCES, BACKBONES = ("methods", "METHODS"), ("data/sources", "SOURCES"), ("models", "BACKBONES")


def check_registered(key: str, name: str, registry: tuple[str, str]) -> None:
    """Refuse a name that no imported file registers, with a ValueError that says which line is missing.

    key: of the configuration, for the message; registry: METHODS, SOURCES or BACKBONES.
    """
    folder, variable = registry
    known = registered(*registry)
    if name not in known:
        raise ValueError(
            f'{key}={name}: no file in mal/{folder} registers it. Put @{variable}.register("{name}") above its code, '
            f"or choose one of: {', '.join(sorted(known))}."
        )
    module = known[name]
    if module not in _imported(folder):
        raise ValueError(
            f"{key}={name}: mal/{folder}/{module}.py registers it, but mal/{folder}/__init__.py does not import it, so "
            f"no job would find it. Add: from mal.{folder.replace('/', '.')} import {module} as {module}"
        )


@cache
def registered(folder: str, variable: str) -> dict[str, str]:
    """The names that the files of a folder below mal/ register in `variable`, each with its module."""
    found = {}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{variable}.register" and node.args:
                found[str(ast.literal_eval(node.args[0]))] = path.stem
    return found


@cache
def _imported(folder: str) -> set[str]:
    """The modules of a folder that its __init__.py imports."""
    nodes = list(ast.walk(ast.parse((PACKAGE / folder / "__init__.py").read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.rpartition(".")[2] for name in found}
