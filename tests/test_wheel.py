"""The wheel in an environment of its own, used from a folder that has packages of the same names."""

import os
import shutil
import subprocess
import sysconfig
import zipfile
from pathlib import Path

import pytest

from mal.run import folder as run_folder
from mal.run.code_copy import code_hash
from slurm.local import LocalSlurm
from tests.chains import ROOT, SHORT, environment
from tests.slurm_cluster import cluster, shared_cluster, wait_until

__all__ = ["cluster", "shared_cluster"]

UV = shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")  # make setup brings it
SWEEP = (*SHORT, "methods=[random]", "seeds=1", "cluster=local")


def ran(*command: str | Path, cwd: Path, code: int = 0, **variables: str) -> str:
    """What a command prints, its exit status checked."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, from the files that git knows or would add."""
    folder = tmp_path_factory.mktemp("build")
    listed = ran("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("docs/", "tests/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    backend = "import sys; from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    ran(Path(sysconfig.get_path("scripts"), "python"), "-c", backend, cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment that has the wheel; what it needs comes from this one."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    python = Path(sysconfig.get_path("scripts"), "python")
    ran(UV, "venv", "--quiet", "--python", python.resolve(), venv, cwd=venv.parent)
    ran(UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", venv / "bin" / "python", wheel, cwd=ROOT)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "what_it_needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of somebody's own with packages that are named as ours."""
    for name in ("analysis", "slurm", "sweeps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('this is not it')\n")
    return tmp_path


def test_a_wheel_has_two_names_at_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"mal", "mal_commands"}
    listed = ran("git", "ls-files", "mal", "analysis", "slurm", "sweeps", cwd=ROOT).split()
    wanted = {name if name.startswith("mal/") else f"mal_commands/{name}" for name in listed if (ROOT / name).is_file()}
    assert wanted - set(names) == set()


@pytest.mark.slow
@pytest.mark.parametrize("on_path", [False, True])
def test_the_commands_work_beside_packages_of_the_same_names(scripts: Path, project: Path, on_path: bool) -> None:
    variables = {"PYTHONPATH": str(project)} if on_path else {}
    said = ran(scripts / "mal-launch", *SWEEP, cwd=project, **variables)
    assert "Curves: mal-curves name=digits" in said
    (chain,) = run_folder.chain_folders(project / "runs", "digits")
    provenance = run_folder.read_round(run_folder.round_folder(chain, 1)).provenance
    assert (provenance["code"], provenance["git_commit"]) == (code_hash(), None)
    assert "2/2" in ran(scripts / "mal-status", cwd=project, **variables)
    ran(scripts / "mal-curves", "name=digits", "figures=false", cwd=project, **variables)
    assert (project / "figures" / "digits" / "curves.csv").is_file()
    assert "0 jobs cancelled" in ran(scripts / "mal-cancel", "name=digits", cwd=project, **variables)
    assert "chains are finished" in ran(scripts / "mal-prune", "name=digits", cwd=project, **variables)
    assert "dataset=NAME" in ran(scripts / "mal-prepare", "--help", cwd=project, **variables)


def test_a_job_of_a_wheel_finds_its_code_in_the_kept_copy(scripts: Path, project: Path) -> None:
    said = ran(scripts / "mal-launch", *SWEEP[:-1], "cluster=slurm", "dry_run=true", "runs=there", cwd=project)
    assert "slurm.job" in said
    words = "from pathlib import Path; from mal.run.code_copy import keep_code; print(keep_code(Path('there')))"
    kept = Path(ran(scripts / "python", "-c", words, cwd=project).strip())
    assert kept.name == code_hash()
    assert f"PYTHONPATH={kept.parents[2]}" in said.replace("'", "")
    variables = {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{kept}{os.pathsep}{project}"}
    assert "CHAIN" in ran(scripts / "python", "-m", "slurm.job", "--help", cwd=project, **variables)


@pytest.mark.slow
@pytest.mark.slurm
def test_jobs_of_a_wheel_run_on_slurm(scripts: Path, project: Path, cluster: LocalSlurm) -> None:
    slurm = {"SLURM_CONF": os.environ["SLURM_CONF"]}
    said = ran(scripts / "mal-launch", *SWEEP[:-1], "cluster=slurm", "cluster.cpus_per_task=1", cwd=project, **slurm)
    assert "mal-status name=digits" in said
    (chain,) = run_folder.chain_folders(project / "runs", "digits")
    wait_until(lambda: run_folder.committed_rounds(chain) == 2, "two rounds", timeout_s=200)
    assert "2/2" in ran(scripts / "mal-status", cwd=project, **slurm)
