"""What was launched goes on as it was launched: a kept copy of the code, its hash, and what is said of other code."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mal.run import code_copy
from mal.run import folder as run_folder
from mal.run.code_copy import CODE, ORIGIN, code_hash, code_variables, git_state, keep_code, other_code
from tests.chains import ROOT, chain_config, environment, write_chain

LAUNCH = ("dataset=digits", "methods=[random]", "seeds=1", "rounds=2", "initial=20", "budget=20", "task.epochs=0.1")
NARROW = ("backbone.width=4", "device=cpu", "cluster=local", "threads=1")


def checkout(folder: Path) -> Path:
    """A copy of the packages that a person could edit."""
    for package in ("mal", "slurm", "sweeps"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def launched(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`python sweeps/launch.py` of that copy, started from its folder."""
    command = [sys.executable, "sweeps/launch.py", *LAUNCH, *NARROW, *more]
    variables = environment(PYTHONPATH=str(folder))
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)


def test_a_copy_holds_all_of_the_packages_and_is_made_once(tmp_path: Path) -> None:
    kept = keep_code(tmp_path)
    assert kept == tmp_path / CODE / code_hash()
    for package in code_copy.PACKAGES:
        wanted = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.suffix in (".py", ".yaml")}
        assert wanted == {p.relative_to(kept) for p in (kept / package).rglob("*") if p.suffix in (".py", ".yaml")}
    listed = subprocess.run(["git", "ls-files", *code_copy.PACKAGES], cwd=ROOT, capture_output=True, text=True)
    assert [name for name in listed.stdout.splitlines() if not (kept / name).is_file()] == []
    before = (kept / ORIGIN).stat()
    assert keep_code(tmp_path) == kept
    assert (kept / ORIGIN).stat() == before
    assert [path.name for path in (tmp_path / CODE).iterdir()] == [kept.name]


def test_a_process_started_from_a_copy_runs_it_wherever_it_is_started(tmp_path: Path) -> None:
    kept = keep_code(tmp_path)
    other = checkout(tmp_path / "edited")
    words = "import mal.run.code_copy as p, slurm; print(p.__file__, slurm.__file__, p.code_hash(), p.git_state())"
    done = subprocess.run(
        [sys.executable, "-c", words],
        cwd=other,
        env=environment(**code_variables(kept)),
        capture_output=True,
        text=True,
    )
    assert str(kept / "mal") in done.stdout
    assert str(kept / "slurm") in done.stdout
    assert done.stdout.split()[2] == code_hash()
    assert str(git_state()) in done.stdout  # of the checkout, though the copy is in no git


def test_a_changed_line_is_other_code(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "mine")
    words = [sys.executable, "-c", "from mal.run.code_copy import code_hash; print(code_hash())"]

    def digest() -> str:
        done = subprocess.run(
            words, cwd=folder, env=environment(PYTHONPATH=str(folder)), capture_output=True, text=True
        )
        return done.stdout.strip()

    assert digest() == code_hash()
    for name in ("cluster/mine", "experiment/mine", "dataset/mine", "cluster/slurm", "config"):
        with (folder / "mal" / "conf" / f"{name}.yaml").open("a") as file:
            file.write("# frozen at launch\n")
    assert digest() == code_hash()
    settings = folder / "mal" / "conf" / "method" / "random.yaml"
    settings.write_text(settings.read_text() + "# a word\n")
    changed = digest()
    assert len(changed) == 12
    assert changed != code_hash()


def test_a_copy_that_an_edit_overtook_is_named_by_what_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(source: Path, target: Path, **options: object) -> None:
        target.mkdir()
        (target / "late.py").write_text("")

    monkeypatch.setattr(shutil, "copytree", edited)
    kept = keep_code(tmp_path)
    assert kept.name != code_hash()
    assert [path.name for path in (tmp_path / CODE).iterdir()] == [kept.name]


def test_rounds_tell_which_code_ran_them_and_a_launch_warns(tmp_path: Path) -> None:
    """A launch from an edited checkout without git: the first copy stays, and its rounds are told from the second's."""
    folder = checkout(tmp_path / "mine")
    assert launched(folder).returncode == 0
    chain = run_folder.chain_folder(folder / "runs", "digits", "random", 0)
    first = run_folder.read_round(run_folder.round_folder(chain, 0)).provenance
    assert (first["code"], first["git_commit"]) == (code_hash(), None)
    shutil.rmtree(run_folder.round_folder(chain, 1))
    with (folder / "mal" / "scan.py").open("a") as module:
        module.write("\n# edited\n")
    again = launched(folder, "dry_run=true")
    assert f"warning: round 0 was run by code {code_hash()} (commit None), the code now is" in again.stdout
    assert [path.name for path in (folder / "runs" / "digits" / CODE).iterdir()] == [first["code"]]


def test_no_warning_without_another_code(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, chain_config())
    assert other_code(chain) is None
    for code, warning in (
        (code_hash(), None),
        ("0" * 12, "round 0 was run by code 000000000000 (commit None), the code"),
    ):
        run_folder.commit(run_folder.round_folder(chain, 0), {run_folder.PROVENANCE: {"code": code}})
        said = other_code(chain)
        assert said is None if warning is None else warning in str(said)
        shutil.rmtree(run_folder.round_folder(chain, 0))
