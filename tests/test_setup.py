"""The files that say what to install agree with each other, pin everything, and name no host or machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.txt", "requirements-dev.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

URL_OR_HOST = re.compile(r"://|--(extra-)?index|--find-links|\b[\w-]+\.(com|org|net|io|dev)\b", re.I)
# Folders in which a machine keeps its users' files, and the hosts that Python's, Debian's, npm's, conda's and
# PyTorch's packages come from.
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(work|home|root|Users)/\w")
REGISTRY = re.compile(r"pypi\.\w|(pythonhosted|deb\.debian|npmjs|anaconda|download\.pytorch)\.(org|com)", re.I)


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """The requirements in `lines`, by canonical name."""
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def bounds(lines: list[str]) -> dict[str, SpecifierSet]:
    """The versions that `lines` allow, by canonical name."""
    return {name: requirement.specifier for name, requirement in requirements(lines).items()}


def pinned(lock: str) -> dict[str, Version]:
    """Name -> version of a lock; a line that is no exact pin fails."""
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line and not line.startswith("#")]
    versions = {}
    for name, requirement in requirements(lines).items():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{lock}: {requirement} is not pinned"
        versions[name] = Version(specifier.version)
    assert len(versions) == len(lines), f"{lock} names a package twice"
    return versions


def committed_files() -> list[Path]:
    """The text files that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()]


def test_conda_environment_says_what_pyproject_says() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    options = [line for line in pip if line.startswith("-")]
    listed = [line for line in pip if not line.startswith("-")]
    assert bounds(listed) == bounds(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["ffcv"])
    assert options == ["-c requirements-dev.txt"]
    (python,) = [line.removeprefix("python=") for line in plain if line.startswith("python=")]
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_locks_pin_every_dependency_inside_its_bounds() -> None:
    run, dev = map(pinned, LOCKS)
    for name, requirement in requirements(PROJECT["dependencies"]).items():
        assert run[name] in requirement.specifier, f"{name} {run[name]} is outside {requirement}"
    extras = [line for extra in ("dev", "ffcv", "label") for line in PROJECT["optional-dependencies"][extra]]
    for name, requirement in requirements(extras).items():
        assert dev[name] in requirement.specifier, f"{name} {dev[name]} is outside {requirement}"


def test_test_lock_contains_the_run_lock() -> None:
    run, dev = map(pinned, LOCKS)
    assert run.items() <= dev.items()


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_host(lock: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    assert [line for line in lines if URL_OR_HOST.search(line) or " @ " in line] == []


def test_no_committed_file_names_a_registry_or_a_machine() -> None:
    found = []
    for path in committed_files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line) or REGISTRY.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_packages_and_their_data_are_declared() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == {pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]}
    for package, patterns in setuptools["package-data"].items():
        data = {path for path in (ROOT / package).rglob("*") if path.suffix in {".yaml", ".csv", ".html"}}
        covered = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
        assert data <= covered, f"not in the wheel: {sorted(map(str, data - covered))}"


# ------------------------------------------------------------------------- another torch than the lock's


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """`make ...` in the checkout, which installs nothing where it only says or resolves."""
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("torch", "installs"),
    [
        (None, "-r requirements.txt"),
        ("2.7", "--constraint .tools/torch-2.7.txt --editable ."),
        ("cu126", "--torch-backend=cu126 --editable ."),
    ],
)
def test_setup_takes_the_lock_unless_a_torch_is_named(torch: str | None, installs: str) -> None:
    said = make("--dry-run", "--always-make", "setup", *([f"TORCH={torch}"] if torch else [])).stdout
    assert installs in said
    assert ("-r requirements.txt" in said) == (torch is None)


@pytest.mark.parametrize(("torch", "cuda"), [("2.6", "12.4"), ("2.7", "12.6")])
def test_the_ranges_allow_a_torch_for_older_drivers(torch: str, cuda: str) -> None:
    """Resolution only: what would be installed, from a package index that answers."""
    if not (ROOT / ".tools" / "bin" / "uv").is_file():
        pytest.skip("no .tools/bin/uv: `make setup` puts it there")
    done = make("resolve", f"TORCH={torch}")
    if "Failed to fetch" in done.stderr or "client error" in done.stderr:
        pytest.skip("no package index answers")
    assert done.returncode == 0, done.stderr
    found = requirements([line for line in done.stdout.splitlines() if "==" in line])
    assert str(found["torch"].specifier).startswith(f"=={torch}.")
    assert str(found["nvidia-cuda-runtime-cu12"].specifier).startswith(f"=={cuda}.")
