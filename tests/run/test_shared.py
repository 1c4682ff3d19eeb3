"""Round 0 that chains of a sweep train alike: taken bit for bit, only where all is the same, and never needed."""

import contextlib
import shutil
from pathlib import Path

import pytest

from mal.chain import run_chain
from mal.config.alike import leaders
from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.run.shared import FOLDER
from sweeps.bill import images_of, unshared
from sweeps.plan import leaders_of, reconcile
from tests.chains import SHORT, StopsAt, chain_config, outcome, write_chain

METHODS = ("mal", "mal_entropy_query", "mal_no_minimax", "random", "entropy", "bald")
MAL_TAKES = {"minimax": "mal/seed-0", "task": "mal/seed-0"}
TAKEN = {"mal_entropy_query": MAL_TAKES, "entropy": {"task": "random/seed-0"}}  # bald's task model has dropout


def run(runs: Path, *overrides: str, methods: tuple[str, ...] = METHODS) -> dict[str, Path]:
    """A sweep whose chains are all launched, then run one after the other: their folders."""
    folders = {method: write_chain(runs, chain_config(*overrides, method=method)) for method in methods}
    for folder in folders.values():
        run_chain(folder, None, Interrupt())
    return folders


def taken(folder: Path, number: int = 0) -> dict[str, str]:
    return run_folder.read_round(run_folder.round_folder(folder, number)).provenance.get("taken", {})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The chains with share=false."""
    return run(tmp_path_factory.mktemp("alone"), "share=false")


def test_chains_that_take_equal_chains_that_train(alone: dict[str, Path], tmp_path: Path) -> None:
    together = run(tmp_path)
    for method in METHODS:
        assert outcome(together[method]) == outcome(alone[method]), method
        assert taken(together[method]) == TAKEN.get(method, {}), method
        assert not taken(together[method], 1)
        assert not taken(alone[method])
    assert not (together["mal"].parents[1] / FOLDER).exists()  # nobody needs it any more
    assert not (alone["mal"].parents[1] / FOLDER).exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "unreadable", "gone"])
def test_what_is_kept_is_never_needed(damage: str, alone: dict[str, Path], tmp_path: Path) -> None:
    folders = {method: write_chain(tmp_path, chain_config(method=method)) for method in ("random", "entropy")}
    run_chain(folders["random"], None, Interrupt())
    (kept,) = (folders["random"].parents[1] / FOLDER / "seed-0").iterdir()
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-1])
    elif damage == "empty":
        kept.write_bytes(b"")
    elif damage == "unreadable":
        kept.unlink()
        kept.symlink_to(kept.name)  # ELOOP
    else:
        shutil.rmtree(kept.parent)
    run_chain(folders["entropy"], None, Interrupt())
    assert not taken(folders["entropy"])
    assert outcome(folders["entropy"]) == outcome(alone["entropy"])


def test_a_folder_that_cannot_be_written_to_is_told(
    alone: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = {method: write_chain(tmp_path, chain_config(method=method)) for method in ("random", "entropy")}
    (folders["random"].parents[1] / FOLDER).write_text("not a folder")
    for method, folder in folders.items():
        run_chain(folder, None, Interrupt())
        assert outcome(folder) == outcome(alone[method])
    assert "cannot be kept for other chains" in caplog.text


@pytest.mark.parametrize("looks", [1, 9, 17, 25])
def test_a_chain_stopped_anywhere_takes_the_same(looks: int, alone: dict[str, Path], tmp_path: Path) -> None:
    folders = {method: write_chain(tmp_path, chain_config(method=method)) for method in ("mal", "mal_entropy_query")}
    with pytest.raises(Interrupted):
        run_chain(folders["mal"], 1, StopsAt(looks))
    with contextlib.suppress(Interrupted):  # by a chain that has less to do
        run_chain(folders["mal_entropy_query"], 1, StopsAt(looks))
    for method, folder in folders.items():
        run_chain(folder, None, Interrupt())
        assert outcome(folder) == outcome(alone[method])


@pytest.mark.parametrize("other", ["task.lr=0.002", "backbone.width=6", "seeds=[1]", "initial=24", "precision=bf16"])
def test_another_recipe_is_not_taken(other: str, tmp_path: Path) -> None:
    second = chain_config(other, method="entropy")
    folders = [write_chain(tmp_path, config) for config in (chain_config(method="random"), second)]
    for folder in folders:
        run_chain(folder, 1, Interrupt())
        assert not taken(folder)


# ------------------------------------------------------------------------- what a launch knows of it


def chains(*overrides: str) -> list[Chain]:
    return compose_sweep([*SHORT, "seeds=2", *overrides]).chains


def test_leaders_are_the_first_of_their_seed() -> None:
    configs = chains(f"methods=[{','.join(METHODS)}]")
    named = {
        (configs[place].method["name"], configs[place].seed): {
            (configs[i].method["name"], configs[i].seed) for i in places
        }
        for place, places in leaders(configs, 1347).items()
    }
    assert named == {
        (name, seed): {(leader, seed)}
        for name, leader in (("mal_entropy_query", "mal"), ("entropy", "random"))
        for seed in (0, 1)
    }


def test_images_that_are_not_trained_on_again(tmp_path: Path) -> None:
    """Two of three chains take 100 steps of 64; a chain from F takes Algorithm 1's 100 of 2 x 32 too."""

    def fewer(*overrides: str) -> dict[str, float]:
        same = ("seeds=1", "task.epochs=10", "task.batch=64", "dataset.pool=640", "initial=64", f"runs={tmp_path}")
        plans = reconcile(compose_sweep([*SHORT, *same, *overrides]))
        alone, together = images_of(unshared(plans), 640), images_of(plans, 640)
        return {phase: count - together[phase] for phase, count in alone.items()}

    assert fewer("methods=[random,entropy,coreset]") == {"M": 2 * 100 * 64, "scans": 0}
    mal = fewer("minimax.epochs=5", "minimax.batch=32", "methods=[mal,mal_init_random]")
    assert mal == {"Algorithm 1": 100 * 64, "M": 100 * 64, "scans": 0}
    assert set(fewer("methods=[random,bald]").values()) == {0}


def test_a_local_launch_lets_a_chain_wait_for_the_one_that_it_takes_from(tmp_path: Path) -> None:
    sweep = compose_sweep([*SHORT, "methods=[random,entropy,mal]", "seeds=1", f"runs={tmp_path}"])
    random, entropy, _ = (plan.folder for plan in reconcile(sweep))
    assert leaders_of(reconcile(sweep)) == {entropy: [random]}
    write_chain(tmp_path, sweep.chains[0])
    run_chain(random, 1, Interrupt())
    assert leaders_of(reconcile(sweep)) == {}
    assert leaders_of(reconcile(compose_sweep([*SHORT, "share=false", f"runs={tmp_path / 'b'}"]))) == {}
