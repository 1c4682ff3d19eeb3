"""The import graph of the product: which room (folder, or file of mal/) imports which.

    python -m tests.import_graph            the table of docs/architecture.md
    python -m tests.import_graph --check    exit status 1 where that page has another one

Read from the source; nothing of the product is imported.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("mal", "sweeps", "slurm", "analysis")


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {name: path for package in PACKAGES for name, path in modules(package).items()}


def imports(path: Path, everywhere: bool = True) -> Iterator[str]:
    """The modules that a file imports; `everywhere`: also inside functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def room(module: str) -> str:
    """The folder of mal/ that holds a module, a file directly in mal/, or another package."""
    package, _, rest = module.partition(".")
    return ".".join(["mal", rest.partition(".")[0]]) if package == "mal" and rest else package


def rooms() -> dict[str, set[str]]:
    """The other rooms that each room imports; `mal` itself is the version number, which any may import."""
    graph: dict[str, set[str]] = {room(name): set() for name in MODULES if name != "mal"}
    for name, path in MODULES.items():
        others = {room(other) for other in imports(path) if other in MODULES}
        graph.get(room(name), set()).update(others - {room(name), "mal"})
    return graph


def in_order(graph: dict[str, set[str]]) -> list[str]:
    """The names of a graph, each after those that it imports; graphlib.CycleError, which names it, for a circle."""
    ordered = {name: sorted(others) for name, others in sorted(graph.items())}
    return list(graphlib.TopologicalSorter(ordered).static_order())


def table() -> str:
    """The rooms as Markdown, each below those that it imports."""
    graph = rooms()
    rows = [
        f"| `{name}` | {', '.join(f'`{other}`' for other in sorted(graph[name])) or '—'} |" for name in in_order(graph)
    ]
    arrows = sum(len(others) for others in graph.values())
    return "\n".join([f"{len(graph)} rooms, {arrows} arrows, no circle.", "", "| room | imports |", "|---|---|", *rows])


def main() -> int:
    """Print the table, or compare it with the page."""
    if "--check" not in sys.argv[1:]:
        print(table())
        return 0
    return 0 if table() in PAGE.read_text() else 1


if __name__ == "__main__":
    sys.exit(main())
