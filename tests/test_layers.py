"""The direction of imports, what may import torch, and the size of files and functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mal", "sweeps", "slurm", "analysis")

# A module may import those above its own line, and those of its own line.
LAYERS = [
    {"mal", "mal.registry", "mal.rng", "mal.results", "mal.acquisition", "mal.distributed"},
    {"mal.memory", "mal.optimizers", "mal.folders", "mal.options"},
    {"mal.method_keys", "mal.task_keys", "mal.signals", "mal.provenance", "mal.models.batch_norm", "mal.worker"},
    {"mal.config"},
    {"mal.tuning"},
    {"mal.compose"},
    {"mal.interrupt", "mal.device", "mal.pool", "mal.checkpoint"},
    {"mal.progress"},
    {"mal.data", "mal.models"},
    {"mal.training", "mal.scan", "mal.footprint"},
    {"mal.losses"},
    {"mal.task", "mal.minimax"},
    {"mal.maps"},
    {"mal.methods"},
    {"mal.samples"},
    {"mal.round"},
    {"mal.chain"},
    {"slurm"},
    {"sweeps"},
]
LOGIN_NODE = {
    "mal.config",
    "mal.compose",
    "mal.results",
    "mal.registry",
    "mal.rng",
    "mal.pool",
    "mal.method_keys",
    "mal.task_keys",
    "mal.provenance",
    "mal.tuning",
    "mal.worker",
}
HEAVY = {"torch", "torchvision", "torchmetrics", "sklearn", "scipy", "pandas", "matplotlib", "seaborn", "numba", "ffcv"}


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


def layer(module: str) -> int:
    """The line of LAYERS that names the module or, else, its nearest package."""
    name = module
    while name:
        for number, names in enumerate(LAYERS):
            if name in names and (name != "mal" or module == "mal"):
                return number
        name = name.rpartition(".")[0]
    raise AssertionError(f"{module} has no place in LAYERS: give it one")


OURS = [name for name in MODULES if not name.startswith("analysis")]


@pytest.mark.parametrize("module", OURS)
def test_a_module_imports_only_what_is_above_it(module: str) -> None:
    wrong = [
        f"{module} imports {other}"
        for other in imports(MODULES[module])
        if other.partition(".")[0] in PACKAGES and (other.startswith("analysis") or layer(other) > layer(module))
    ]
    assert wrong == []


def test_analysis_imports_only_the_results_schema() -> None:
    wrong = {
        f"{module}: {other}"
        for module, path in MODULES.items()
        if module.partition(".")[0] == "analysis"
        for other in imports(path)
        if other.partition(".")[0] in ("mal", "sweeps", "slurm") and other not in ("mal.results", "mal")
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


@pytest.mark.parametrize("module", sorted(LOGIN_NODE | {"mal.chain", "sweeps.launch", "sweeps.plan", "sweeps.local"}))
def test_the_login_node_needs_no_heavy_package(module: str) -> None:
    assert {name: by for name, by in reached_at_import(module).items() if name in HEAVY} == {}


def test_results_need_numpy_and_the_standard_library_alone() -> None:
    import sys

    assert {name for name in reached_at_import("mal.results") if name not in sys.stdlib_module_names} == {"numpy"}


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
    import sys

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
        if module == "mal.data.sources" or module.startswith("analysis"):
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
    assert found == {"mal.training"}
