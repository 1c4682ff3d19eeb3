"""Rounds that chains of a sweep train alike: taken bit for bit, only where all is the same, and never needed."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mal.chain import run_chain
from mal.config.alike import leaders
from mal.config.compose import compose_sweep
from mal.config.schema import Chain
from mal.process.interrupt import Interrupt, Interrupted
from mal.run import folder as run_folder
from mal.training.loop import History
from sweeps.bill import images_of, unshared
from sweeps.local import Worker, _next
from sweeps.plan import leaders_of, reconcile
from sweeps.table import Row
from tests.chains import SHORT, StopsAt, chain_config, environment, outcome, write_chain

TWINS = ("mal_entropy_query", "mal_no_discriminator")  # they buy the same; D is trained by the first alone
METHODS = ("mal", *TWINS, "mal_no_minimax", "random", "entropy", "bald")


def both_phases(method: str) -> dict[str, str]:
    return dict.fromkeys(("minimax", "task"), f"{method}/seed-0")


TAKEN = {  # by round; bald's task model has dropout
    "mal_entropy_query": [both_phases("mal"), {}],
    "mal_no_discriminator": [both_phases("mal"), both_phases("mal_entropy_query")],
    "entropy": [{"task": "random/seed-0"}, {}],
}


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
        assert [taken(together[method], number) for number in (0, 1)] == TAKEN.get(method, [{}, {}]), method
        assert not taken(alone[method])
    assert not (together["mal"].parents[1] / run_folder.SHARED).exists()  # nobody needs it any more
    assert not (alone["mal"].parents[1] / run_folder.SHARED).exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "unreadable", "gone"])
def test_what_is_kept_is_never_needed(damage: str, alone: dict[str, Path], tmp_path: Path) -> None:
    folders = {method: write_chain(tmp_path, chain_config(method=method)) for method in ("random", "entropy")}
    run_chain(folders["random"], None, Interrupt())
    (kept,) = (folders["random"].parents[1] / run_folder.SHARED / "seed-0").glob("*/*")
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
    (folders["random"].parents[1] / run_folder.SHARED).write_text("not a folder")
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


def killed_once(folder: Path, seen: Callable[[], bool]) -> None:
    """Run the chain in a process of its own, and SIGKILL it as soon as something is seen."""
    process = subprocess.Popen([sys.executable, "-m", "mal.chain", str(folder)], env=environment())
    while process.poll() is None and not seen():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_twins_share_every_round_whatever_is_killed(tmp_path: Path) -> None:
    def chains(place: str, *overrides: str) -> list[Path]:
        settings = ("rounds=3", *overrides)
        return [write_chain(tmp_path / place, chain_config(*settings, method=method)) for method in TWINS]

    alone, (leader, follower) = chains("alone", "share=false"), chains("together")
    for folder in alone:
        run_chain(folder, None, Interrupt())
    shared = leader.parents[1] / run_folder.SHARED / "seed-0"
    killed_once(leader, lambda: any((shared / "round-1").glob("minimax-*")))  # kept, not committed
    run_chain(leader, None, Interrupt())
    killed_once(follower, lambda: run_folder.committed_rounds(follower) == 1)
    run_chain(follower, None, Interrupt())
    for folder, same in zip((leader, follower), alone, strict=True):
        assert outcome(folder) == outcome(same)
    assert [taken(leader, number) for number in range(3)] == [{}, {}, {}]
    assert [taken(follower, number) for number in range(3)] == 3 * [both_phases(TWINS[0])]
    assert not shared.parent.exists()


def test_where_d_is_trained_f_is_not_taken_from_a_chain_without_it(alone: dict[str, Path], tmp_path: Path) -> None:
    together = run(tmp_path, methods=TWINS[::-1])
    for method, folder in together.items():
        assert outcome(folder) == outcome(alone[method])
    for number in (0, 1):  # M starts from F and C alone
        assert taken(together[TWINS[0]], number) == {"task": f"{TWINS[1]}/seed-0"}
        assert not taken(together[TWINS[1]], number)


@pytest.mark.parametrize("other", [
    "minimax.d_to_f=0.1",
    "minimax.entropy_weight=0",
    "minimax.first=discriminator",
])  # fmt: skip
def test_f_that_d_has_changed_is_not_taken(other: str, tmp_path: Path) -> None:
    folders = run(tmp_path, other, "rounds=1", methods=TWINS)
    assert "minimax" not in taken(folders[TWINS[1]])


def test_a_history_without_some_losses_is_as_if_these_had_not_been_computed() -> None:
    def told(**curves: list[float]) -> History:
        history = History(1)
        for t, values in enumerate(zip(*curves.values(), strict=True)):
            history.add(t, {name: torch.tensor(value) for name, value in zip(curves, values, strict=True)})
        return history

    for f in ([1.0, 2.0, 3.0], [1.0, 11.0, 5.0]):
        both = told(cross_entropy=f, discriminator=[1.0, 30.0, 1.0])
        assert "discriminator" in both.diverged or f[1] > 10
        both.only({"cross_entropy", "entropy"})
        assert both == told(cross_entropy=f)


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
            (configs[i].method["name"], configs[i].seed): rounds for i, rounds in places.items()
        }
        for place, places in leaders(configs, [0] * len(configs), 1347).items()
    }
    assert named == {
        (name, seed): {(leader, seed): 1}
        for name, leader in (("mal_entropy_query", "mal"), ("entropy", "random"))
        for seed in (0, 1)
    } | {("mal_no_discriminator", seed): {("mal", seed): 1, ("mal_entropy_query", seed): 2} for seed in (0, 1)}


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
    twins = fewer("minimax.epochs=5", "minimax.batch=32", "rounds=3", f"methods=[mal,{','.join(TWINS)}]")
    # Round 0 is mal's for both, and the two after it the first twin's; each has the same steps.
    assert twins == {"Algorithm 1": 4 * 100 * 64, "M": 4 * 100 * 64, "scans": 0}


def test_a_local_launch_lets_a_chain_wait_for_the_one_that_it_takes_from(tmp_path: Path) -> None:
    sweep = compose_sweep([*SHORT, "methods=[random,entropy,mal]", "seeds=1", f"runs={tmp_path}"])
    random, entropy, _ = (plan.folder for plan in reconcile(sweep))
    assert leaders_of(reconcile(sweep)) == {entropy: {random: 1}}
    write_chain(tmp_path, sweep.chains[0])
    run_chain(random, 1, Interrupt())
    assert leaders_of(reconcile(sweep)) == {}
    assert leaders_of(reconcile(compose_sweep([*SHORT, "share=false", f"runs={tmp_path / 'b'}"]))) == {}


def test_a_local_launch_starts_a_twin_when_the_other_has_committed_all_rounds(tmp_path: Path) -> None:
    plans = reconcile(compose_sweep([*SHORT, f"methods=[{','.join(TWINS)},random]", "seeds=1", f"runs={tmp_path}"]))
    before = leaders_of(plans)
    first, second, random = (Row(plan, "waiting", 0) for plan in plans)
    assert before == {second.plan.folder: {first.plan.folder: 2}}
    running = [Worker(first, None, 0)]  # type: ignore[arg-type]
    write_chain(tmp_path, first.plan.config)
    for rounds in (0, 1, 2):
        run_chain(first.plan.folder, rounds, Interrupt())
        assert _next([second, random], running, before) is (second if rounds == 2 else random)
