"""The direction of imports, what may import torch, and the size of files and functions."""

import ast
import sys

import pytest

from tests.import_graph import MODULES, PACKAGES, PAGE, ROOT, imports, in_order, room, rooms, table

# A room may import those above its own line, and those of its own line.
LAYERS = [
    {"mal", "mal.files", "mal.listing", "mal.packages", "mal.rng"},
    {"mal.config"},
    {"mal.process"},
    {"mal.run", "mal.acquisition", "mal.models"},
    {"mal.data", "mal.tracking"},
    {"mal.labels"},
    {"mal.training"},
    {"mal.features"},
    {"mal.task", "mal.minimax"},
    {"mal.methods"},
    {"mal.record"},
    {"mal.round"},
    {"mal.chain", "mal.console"},
    {"slurm"},
    {"sweeps"},
]
LOGIN_NODE = {name for name in MODULES if name.startswith("mal.config.")} | {
    "mal.chain",
    "mal.files",
    "mal.packages",
    "mal.process.start",
    "mal.rng",
    "mal.run.code_copy",
    "mal.run.folder",
    "mal.run.ledger",
    "sweeps.launch",
    "sweeps.local",
    "sweeps.plan",
}
SCHEMA = {"mal", "mal.files", "mal.packages", "mal.run.folder"}
HEAVY = {"torch", "torchvision", "torchmetrics", "sklearn", "scipy", "pandas", "matplotlib", "seaborn", "numba", "ffcv"}


def layer(module: str) -> int:
    """The line of LAYERS that names the module's room."""
    for number, names in enumerate(LAYERS):
        if room(module) in names:
            return number
    raise AssertionError(f"{module} has no place in LAYERS: give its room one")


OURS = [name for name in MODULES if not name.startswith("analysis")]


@pytest.mark.parametrize("module", OURS)
def test_a_module_imports_only_what_is_above_it(module: str) -> None:
    wrong = [
        f"{module} imports {other}"
        for other in imports(MODULES[module])
        if other.partition(".")[0] in PACKAGES and (other.startswith("analysis") or layer(other) > layer(module))
    ]
    assert wrong == []


def test_there_is_no_circle() -> None:
    in_order(rooms())
    in_order({name: {other for other in imports(path) if other in MODULES} for name, path in MODULES.items()})


def test_the_page_has_the_graph_as_it_is() -> None:
    assert table() in PAGE.read_text(), "say: python -m tests.import_graph, and put its table into docs/architecture.md"


def test_analysis_imports_only_the_results_schema() -> None:
    wrong = {
        f"{module}: {other}"
        for module, path in MODULES.items()
        if module.partition(".")[0] == "analysis"
        for other in imports(path)
        if other.partition(".")[0] in ("mal", "sweeps", "slurm") and other not in SCHEMA
    }
    assert wrong == set()


def reached_at_import(module: str) -> dict[str, str]:
    """What importing a module imports, directly or not, each with the module of ours that asks for it."""
    found: dict[str, str] = {}
    waiting = [module]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parents = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
        waiting.extend(parents & MODULES.keys())
        for other in imports(MODULES[name], everywhere=False):
            if other in MODULES:
                waiting.append(other)
            else:
                found.setdefault(other.partition(".")[0], name)
    return found


@pytest.mark.parametrize("module", sorted(LOGIN_NODE))
def test_the_login_node_needs_no_heavy_package(module: str) -> None:
    assert {name: by for name, by in reached_at_import(module).items() if name in HEAVY} == {}


def test_results_need_numpy_and_the_standard_library_alone() -> None:
    assert {name for name in reached_at_import("mal.run.folder") if name not in sys.stdlib_module_names} == {"numpy"}


def test_pandas_and_plotting_stay_out_of_jobs() -> None:
    wrong = {
        f"{module}: {name}"
        for module in MODULES
        if module.startswith("mal")
        for name in imports(MODULES[module])
        if name.partition(".")[0] in ("pandas", "matplotlib", "seaborn", "jinja2")
    }
    assert wrong == set()


def test_no_module_shadows_the_standard_library() -> None:
    # `python sweeps/launch.py` puts sweeps/ first on the path.
    names = {path.stem for package in ("sweeps", "analysis") for path in (ROOT / package).glob("*.py")}
    assert names & set(sys.stdlib_module_names) <= {"__init__"}


# ------------------------------------------------------------------------- sizes


LINES = 400


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LINES


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module: str) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 80} == {}


# ------------------------------------------------------------------------- names in their place


def test_datasets_are_named_in_their_specification_alone() -> None:
    names = {path.stem for path in (ROOT / "mal" / "conf" / "dataset").glob("*.yaml")}
    wrong = []
    for module, path in MODULES.items():
        if module.startswith(("mal.data.sources.", "analysis")):
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare | ast.Match | ast.Dict):
                found = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in names]
                wrong.extend(f"{module}:{node.lineno} {name}" for name in found)
    assert wrong == []


def test_there_is_one_training_loop() -> None:
    # Where a gradient is computed, there is a training step; only the loop and its one helper may compute them.
    found = set()
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward":
                found.add(module)
    assert found == {"mal.training.objective"}
