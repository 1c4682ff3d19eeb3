"""The ledger: initial pools, what follows from what, and every way of tampering."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.run import folder as run_folder
from mal.run.folder import DamagedRun
from mal.run.ledger import Ledger, Oracle, check_query, initial_labelled, read_history, unlabelled

POOL = np.arange(0, 200, 2)  # absolute indices that are not positions
HASH = "ab" * 32
BUDGET = 6


FINGERPRINT = "cd" * 32


def ledger(chain: Path, pool: np.ndarray = POOL, digest: str = HASH, seed: int = 0) -> Ledger:
    return Ledger(chain, pool, digest, initial_labelled(pool, 10, "made-up", seed), BUDGET, FINGERPRINT)


def run_rounds(chain: Path, count: int, last: bool = False, seed: int = 0) -> Path:
    """Commit `count` rounds with random queries as a chain would; the last one without a query if `last`."""
    for number in range(count):
        state = ledger(chain, seed=seed).state(number)
        files: dict[str, Any] = {run_folder.LABELED: state.labelled}
        if not (last and number == count - 1):
            candidates = unlabelled(POOL, state.labelled)
            files[run_folder.QUERY] = np.random.default_rng([seed, number]).choice(candidates, BUDGET, replace=False)
        files[run_folder.METRICS] = {"round": number}
        files[run_folder.PROVENANCE] = {"parent": state.parent, "pool": HASH, "fingerprint": FINGERPRINT}
        run_folder.commit(run_folder.round_folder(chain, number), files)
    return chain


def recommit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Replace a round by one that is whole in itself, its hashes included."""
    found = run_folder.read_round(folder)
    files: dict[str, Any] = {
        run_folder.LABELED: found.labeled,
        run_folder.QUERY: found.query,
        run_folder.METRICS: found.metrics,
        run_folder.PROVENANCE: found.provenance,
    }
    change(files)
    shutil.rmtree(folder)
    run_folder.commit(folder, {name: content for name, content in files.items() if content is not None})


# ------------------------------------------------------------------------- initial pools


@given(st.integers(1, 300), st.data())
def test_an_initial_pool_is_sorted_unique_and_of_the_pool(size: int, data: st.DataObject) -> None:
    pool = np.sort(np.random.default_rng(size).choice(5000, size, replace=False))
    count = data.draw(st.integers(1, size))
    first = initial_labelled(pool, count, "x", 3)
    assert len(first) == count
    assert np.all(np.diff(first) > 0)
    assert np.isin(first, pool).all()
    assert np.array_equal(first, initial_labelled(pool, count, "x", 3))


def test_initial_pools_depend_on_dataset_and_seed_alone() -> None:
    draws = {(name, seed): initial_labelled(POOL, 10, name, seed) for name in ("a", "b") for seed in (0, 1)}
    np.random.default_rng(9).random(100)
    assert np.array_equal(draws["a", 1], initial_labelled(POOL, 10, "a", 1))
    assert len({tuple(draw) for draw in draws.values()}) == 4


def test_initial_pools_are_uniform() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        counts[initial_labelled(np.arange(20), 5, "x", seed)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_all_methods_of_a_sweep_start_from_the_same_pool_and_seeds_differ() -> None:
    from mal.config.compose import compose_sweep

    sweep = compose_sweep(["dataset=digits", "methods=[mal,random,entropy,mal_init_random]", "seeds=2"])
    starts: dict[int, set[tuple[int, ...]]] = {0: set(), 1: set()}
    for chain in sweep.chains:
        first = initial_labelled(np.arange(1347), chain.initial, chain.dataset.name, chain.seed)
        starts[chain.seed].add(tuple(first))
    assert len(starts[0]) == len(starts[1]) == 1
    assert starts[0] != starts[1]


def test_more_labels_than_the_pool_has_are_refused() -> None:
    with pytest.raises(ValueError, match="initial=101 is more than the 100 images"):
        initial_labelled(POOL, 101, "x", 0)


# ------------------------------------------------------------------------- following a chain


def test_each_round_starts_from_the_last_ones_labels_and_query(tmp_path: Path) -> None:
    chain = run_rounds(tmp_path, 4)
    for number in range(1, 5):
        before = run_folder.read_round(run_folder.round_folder(chain, number - 1))
        state = ledger(chain).state(number)
        assert before.query is not None
        assert set(state.labelled) == set(before.labeled) | set(before.query)
        assert len(state.labelled) == 10 + BUDGET * number
        assert np.all(np.diff(state.labelled) > 0)
        assert state.parent == before.digest
    assert ledger(tmp_path).state(0).parent is None


@given(st.sets(st.integers(0, 60), min_size=1), st.data())
def test_unlabelled_is_the_rest_of_the_pool(pool: set[int], data: st.DataObject) -> None:
    labelled = data.draw(st.sets(st.sampled_from(sorted(pool))))
    rest = unlabelled(np.array(sorted(pool)), np.array(sorted(labelled), dtype=np.int64))
    assert rest.tolist() == sorted(pool - labelled)


def test_nothing_follows_the_last_round(tmp_path: Path) -> None:
    chain = run_rounds(tmp_path, 3, last=True)
    with pytest.raises(DamagedRun, match="round-2 has no query"):
        ledger(chain).state(3)


def test_the_oracle_answers_in_the_order_asked() -> None:
    assert Oracle(np.arange(10) * 3).label(np.array([4, 0, 4])).tolist() == [12, 0, 12]


# ------------------------------------------------------------------------- tampering


def test_an_untouched_chain_is_accepted(tmp_path: Path) -> None:
    chain = run_rounds(tmp_path, 4)
    assert len(read_history(chain, 4)) == 4
    assert len(ledger(chain).state(4).labelled) == 10 + 4 * BUDGET


@pytest.mark.parametrize("name", [run_folder.LABELED, run_folder.QUERY, run_folder.METRICS, run_folder.PROVENANCE])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_edited_file_of_any_round_is_named(tmp_path: Path, number: int, name: str) -> None:
    path = run_folder.round_folder(run_rounds(tmp_path, 3), number) / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedRun, match=f"round-{number}/{name}"):
        ledger(tmp_path).state(3)


def edit(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], None]:
    def apply(files: dict[str, Any]) -> None:
        files[key] = change(files[key])

    return apply


FORGERIES = {
    "labelled dropped": (edit(run_folder.LABELED, lambda a: a[1:]), "round-1"),
    "labelled duplicated": (edit(run_folder.LABELED, lambda a: np.sort(np.append(a, a[0]))), "round-1"),
    "labelled unsorted": (edit(run_folder.LABELED, lambda a: a[::-1]), "round-1"),
    "labelled of no pool": (edit(run_folder.LABELED, lambda a: np.append(a, 10_001)), "round-1"),
    "query short": (edit(run_folder.QUERY, lambda a: a[:-1]), "round-1"),
    "query twice the same": (edit(run_folder.QUERY, lambda a: np.append(a[:-1], a[0])), "round-1"),
    "query of labelled": (edit(run_folder.QUERY, lambda a: np.append(a[:-1], -2)), "round-1"),
    "query of no pool": (edit(run_folder.QUERY, lambda a: np.append(a[:-1], 1)), "round-1"),
    "query removed": (lambda files: files.update({run_folder.QUERY: None}), "round-1"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("rounds", [2, 3])
def test_a_forged_round_is_found_even_if_its_hashes_fit(tmp_path: Path, forgery: str, rounds: int) -> None:
    # With rounds=2 the forged round is the last one, and no later parent's hash gives it away.
    chain = run_rounds(tmp_path, rounds)
    change, named = FORGERIES[forgery]
    recommit(run_folder.round_folder(chain, 1), change)
    with pytest.raises(DamagedRun, match=named if rounds == 2 else "round-[12]"):
        ledger(chain).state(rounds)


def test_swapped_rounds_are_found(tmp_path: Path) -> None:
    chain = run_rounds(tmp_path, 3)
    one, two = (run_folder.round_folder(chain, n) for n in (1, 2))
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    with pytest.raises(DamagedRun, match="round-1 does not follow"):
        ledger(chain).state(3)


def test_a_duplicated_round_is_found(tmp_path: Path) -> None:
    chain = run_rounds(tmp_path, 2)
    shutil.copytree(run_folder.round_folder(chain, 1), run_folder.round_folder(chain, 2))
    with pytest.raises(DamagedRun, match="round-2 does not follow"):
        ledger(chain).state(3)


@pytest.mark.parametrize("number", [0, 1])
def test_a_round_of_another_seeds_chain_is_found(tmp_path: Path, number: int) -> None:
    chain, other = run_rounds(tmp_path / "a", 2), run_rounds(tmp_path / "b", 2, seed=1)
    target = run_folder.round_folder(chain, number)
    shutil.rmtree(target)
    shutil.copytree(run_folder.round_folder(other, number), target)
    with pytest.raises(DamagedRun, match=r"round-[01]"):
        ledger(chain).state(2)


def test_a_whole_chain_of_another_seed_is_found(tmp_path: Path) -> None:
    run_rounds(tmp_path, 2, seed=1)
    with pytest.raises(DamagedRun, match=r"round-0/labeled.npy is not the initial pool"):
        ledger(tmp_path).state(2)


def test_another_pool_is_found_before_anything_else(tmp_path: Path) -> None:
    run_rounds(tmp_path, 2)
    with pytest.raises(DamagedRun, match="another pool"):
        ledger(tmp_path, digest="cd" * 32).state(2)


def test_a_removed_round_is_found(tmp_path: Path) -> None:
    run_rounds(tmp_path, 3)
    shutil.rmtree(tmp_path / "round-1")
    with pytest.raises(DamagedRun, match="round-1/COMMITTED is missing"):
        ledger(tmp_path).state(3)
    with pytest.raises(DamagedRun, match="round-1/COMMITTED is missing"):
        run_folder.committed_rounds(tmp_path)


def test_finding_damage_changes_nothing(tmp_path: Path) -> None:
    chain = run_rounds(tmp_path, 3)
    (run_folder.round_folder(chain, 1) / run_folder.QUERY).write_bytes(b"x")
    before = {path: path.read_bytes() for path in chain.rglob("*") if path.is_file()}
    with pytest.raises(DamagedRun):
        ledger(chain).state(3)
    assert {path: path.read_bytes() for path in chain.rglob("*") if path.is_file()} == before


# ------------------------------------------------------------------------- queries


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ([2, 4], "2 indices where the budget is 3"),
        ([2, 4, 6, 8], "4 indices where the budget is 3"),
        ([2, 4, 2], "queried twice"),
        ([2, 4, 5], "1 queried indices, e.g. 5, are not unlabelled"),
        ([2, 4, -2], "e.g. -2"),
    ],
)
def test_a_bad_query_is_refused(query: list[int], said: str) -> None:
    with pytest.raises(DamagedRun, match=said):
        check_query(np.array(query), 3, POOL, "The query of method x")
    check_query(np.array([8, 2, 4]), 3, POOL, "ours")


def test_rounds_of_another_configuration_are_refused(tmp_path: Path) -> None:
    chain = run_rounds(tmp_path / "chain", 1)
    initial = initial_labelled(POOL, 10, "made-up", 0)
    with pytest.raises(DamagedRun, match="another configuration"):
        Ledger(chain, POOL, HASH, initial, BUDGET, "ef" * 32).state(1)
