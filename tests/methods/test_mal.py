"""MAL's query rules, entropy and random sampling; and that no method can reach the labels of unlabelled images."""

import gc
import math
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mal.data.dataset import Dataset, load
from mal.methods import METHODS, Method, Setting
from mal.methods.mal import RULES, ranks
from mal.process.device import prepare_device
from mal.process.interrupt import Interrupt
from mal.round import Rounds
from mal.run.ledger import Oracle
from tests.method_settings import build, chain, images, setting, task_model

SCORE = st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.9, 1.0])  # few values, so that there are ties
PAIRS = st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=25)


# ------------------------------------------------------------------------- rules against brute force


def place(values: list[float], descending: bool) -> list[int]:
    """Rank of each value, equals in order of their position."""
    order = sorted(range(len(values)), key=lambda i: (-values[i] if descending else values[i], i))
    return [order.index(i) for i in range(len(values))]


def brute_intersection(entropy: list[float], d: list[float], budget: int) -> list[int]:
    e, u = place(entropy, descending=True), place(d, descending=False)
    return sorted(range(len(d)), key=lambda i: (max(e[i], u[i]), min(e[i], u[i]), i))[:budget]


def brute_rank_sum(entropy: list[float], d: list[float], budget: int) -> list[int]:
    e, u = place(entropy, descending=True), place(d, descending=False)
    return sorted(range(len(d)), key=lambda i: (e[i] + u[i], i))[:budget]


def brute_entropy_of_unlabelled(entropy: list[float], d: list[float], budget: int) -> list[int]:
    below = sorted((i for i in range(len(d)) if d[i] < 0.5), key=lambda i: (-entropy[i], i))
    above = sorted((i for i in range(len(d)) if d[i] >= 0.5), key=lambda i: (d[i], i))
    return (below + above)[:budget]


def brute_entropy(entropy: list[float], d: list[float], budget: int) -> list[int]:
    return sorted(range(len(d)), key=lambda i: (-entropy[i], i))[:budget]


def brute_discriminator(entropy: list[float], d: list[float], budget: int) -> list[int]:
    return sorted(range(len(d)), key=lambda i: (d[i], i))[:budget]


BRUTE: dict[str, Callable[[list[float], list[float], int], list[int]]] = {
    "intersection": brute_intersection,
    "rank_sum": brute_rank_sum,
    "entropy_of_unlabelled": brute_entropy_of_unlabelled,
    "entropy": brute_entropy,
    "discriminator": brute_discriminator,
}


@pytest.mark.parametrize("rule", BRUTE)
@given(pairs=PAIRS, data=st.data())
def test_a_rule_is_its_definition(rule: str, pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    entropy, d = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    budget = data.draw(st.integers(1, len(pairs)))
    chosen = RULES[rule](np.array(entropy, np.float32), np.array(d, np.float32), budget)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == BRUTE[rule](entropy, d, budget)


def test_every_rule_has_a_definition_here() -> None:
    assert set(RULES.names()) == set(BRUTE)


@pytest.mark.parametrize("rule", BRUTE)
def test_ties_go_to_the_lowest_position_and_a_budget_of_n_takes_all(rule: str) -> None:
    same = np.full(6, 0.3, np.float32)
    assert RULES[rule](same, same, 3).tolist() == [0, 1, 2]
    assert sorted(RULES[rule](same, same, 6).tolist()) == list(range(6))


def test_rules_differ_where_the_paper_is_ambiguous() -> None:
    entropy = np.array([2.0, 1.9, 1.0, 0.1, 0.0])
    d = np.array([0.9, 0.45, 0.4, 0.05, 0.04])
    first = {rule: RULES[rule](entropy, d, 1)[0] for rule in BRUTE}
    assert first == {"intersection": 2, "rank_sum": 0, "entropy_of_unlabelled": 1, "entropy": 0, "discriminator": 4}


@pytest.mark.parametrize("rule", BRUTE)
@pytest.mark.parametrize("diverged", ["entropy", "labelledness"])
def test_scores_of_networks_that_diverged_are_refused(tmp_path: Path, rule: str, diverged: str) -> None:
    at = setting(tmp_path, "mal", f"method.query={rule}")
    scores = {name: np.linspace(0, 1, len(at.unlabelled)) for name in ("entropy", "labelledness")}
    scores[diverged][3] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*minimax\.lr_f"):
        build(at).select(scores, 2)


@given(st.lists(SCORE, max_size=30))
def test_ranks_are_a_permutation_in_ascending_order(values: list[float]) -> None:
    found = ranks(np.array(values))
    assert found.tolist() == place(values, descending=False)


# ------------------------------------------------------------------------- scores


def test_entropy_sampling_is_the_entropy_of_m_highest_first(tmp_path: Path) -> None:
    at = setting(tmp_path, "entropy")
    method, model = build(at), task_model(at)
    scores = method.score(model)
    with torch.no_grad():
        p = model(images(at, at.unlabelled)).double().softmax(1).numpy()
    expected = np.array([-sum(x * math.log(x) for x in row if x > 0) for row in p])
    assert scores["entropy"] == pytest.approx(expected, abs=1e-4)
    chosen = method.select(scores, 40).positions
    assert chosen.tolist() == brute_entropy(scores["entropy"].tolist(), [0.0] * len(expected), 40)


def test_mal_scores_cs_entropy_and_ds_probability_of_each_unlabelled_image(tmp_path: Path) -> None:
    at = setting(tmp_path, "mal")
    method = build(at)
    method.fit()
    networks = at.minimax
    before = {name: buffer.clone() for name, buffer in networks.encoder.named_buffers()}
    scores = method.score(task_model(at))
    assert all(len(values) == len(at.unlabelled) for values in scores.values())
    for position in (0, 7, 600, len(at.unlabelled) - 1):  # one image alone gives what it gave among 512
        with torch.no_grad():
            features = networks.encoder(images(at, at.unlabelled[[position]]))
            p = networks.classifier(features).double().softmax(1)
            labelledness = networks.discriminator(features).double().sigmoid()
        assert scores["entropy"][position] == pytest.approx(-(p * (p + 1e-30).log()).sum().item(), abs=1e-4)
        assert scores["labelledness"][position] == pytest.approx(labelledness.item(), abs=1e-5)
    assert all(torch.equal(before[name], buffer) for name, buffer in networks.encoder.named_buffers())


@pytest.mark.parametrize("rule", BRUTE)
def test_mal_selects_by_the_rule_that_is_configured(tmp_path: Path, rule: str) -> None:
    at = setting(tmp_path, "mal", f"method.query={rule}")
    random = np.random.default_rng(0)
    scores = {name: random.random(len(at.unlabelled)).astype(np.float32) for name in ("entropy", "labelledness")}
    expected = BRUTE[rule](scores["entropy"].tolist(), scores["labelledness"].tolist(), 10)
    assert build(at).select(scores, 10).positions.tolist() == expected


def test_random_and_mal_init_random_make_the_same_draw(tmp_path: Path) -> None:
    draws = []
    for name in ("random", "mal_init_random"):
        method = build(setting(tmp_path / name, name))
        draws.append(method.select({}, 50).positions.tolist())
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 50
    other_seed = build(setting(tmp_path / "other", "random", "seeds=[1]")).select({}, 50).positions.tolist()
    assert other_seed != draws[0]


def test_random_is_uniform_over_the_unlabelled(tmp_path: Path) -> None:
    at = setting(tmp_path, "random")
    counts = np.zeros(len(at.unlabelled))
    for number in range(200):
        at.number = number
        counts[build(at).select({}, 200).positions] += 1
    expected = 200 * 200 / len(counts)
    assert np.abs(counts - expected).max() < 6 * math.sqrt(expected)


# ------------------------------------------------------------------------- hidden labels


def children(thing: Any) -> Iterator[Any]:
    """What an object leads to; a function's globals and the modules, through which Python leads anywhere, left out."""
    if isinstance(thing, types.ModuleType | type | types.CodeType | types.FrameType):
        return
    if isinstance(thing, types.FunctionType):
        yield from (thing.__closure__ or (), thing.__defaults__, thing.__kwdefaults__, thing.__dict__)
        return
    yield from gc.get_referents(thing)
    if isinstance(thing, partial | types.MethodType):
        yield getattr(thing, "__self__", None)
    if isinstance(thing, np.ndarray):
        yield thing.base


def reachable(*roots: Any) -> list[Any]:
    """Every object that can be got to from `roots`."""
    found: dict[int, Any] = {}
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) not in found:
            found[id(thing)] = thing
            waiting.extend(children(thing))
    return list(found.values())


def contents(things: list[Any]) -> Iterator[np.ndarray]:
    """The numbers in arrays, tensors (their whole storage), bytes, lists and tuples."""
    for thing in things:
        if isinstance(thing, np.ndarray) and thing.dtype != object:
            yield thing.ravel()
        elif isinstance(thing, torch.Tensor) and thing.device.type == "cpu" and thing.layout == torch.strided:
            whole = torch.tensor([], dtype=thing.dtype).set_(thing.untyped_storage())  # type: ignore[call-overload]
            yield whole.detach().float().numpy() if thing.dtype == torch.bfloat16 else whole.detach().numpy()
        elif isinstance(thing, bytes | bytearray | memoryview):
            yield np.frombuffer(thing, np.uint8)
        elif isinstance(thing, list | tuple) and thing and all(type(item) in (int, float) for item in thing):
            yield np.array([item if abs(item) < 2**31 else -2 for item in thing])
        elif isinstance(thing, dict) and thing and all(type(item) in (int, float) for item in thing.values()):
            yield np.array([item if abs(item) < 2**31 else -2 for item in thing.values()])


def reveals(values: np.ndarray, secret: np.ndarray) -> bool:
    """Whether `values` holds, somewhere in a row, 20 consecutive labels of `secret`, in whatever number type."""
    clipped = np.where((values >= 0) & (values <= 9) & (values == np.round(values)), values, 255).astype(np.uint8)
    haystack = clipped.tobytes()
    return any(secret[i : i + 20].astype(np.uint8).tobytes() in haystack for i in range(0, len(secret) - 20, 20))


def leaks(secrets: list[np.ndarray], *roots: Any) -> list[str]:
    """Where the labels can be read off what is reachable from `roots`."""
    things = reachable(*roots)
    found = [type(thing).__name__ for thing in things if isinstance(thing, Oracle | Dataset | Rounds)]
    return found + [f"{v.dtype} {v.shape}" for v in contents(things) if any(reveals(v, secret) for secret in secrets)]


@pytest.fixture(scope="module")
def secrets() -> list[np.ndarray]:
    """The labels in the orders in which they could be kept: of all images, and of the unlabelled of round 0."""
    config = chain("mal")
    dataset = load(config.dataset, Path(config.data), config.seed)
    rounds = Rounds(Path("nowhere"), config, dataset, prepare_device(config), Interrupt())
    rest = np.setdiff1d(dataset.pool, rounds.ledger.initial)
    return [dataset.oracle.label(np.arange(len(dataset.train))), dataset.oracle.label(rest)]


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_cannot_reach_the_labels_of_unlabelled_images(
    tmp_path: Path, secrets: list[np.ndarray], name: str
) -> None:
    at = setting(tmp_path, name, *(["method.width=2"] if name == "vaal" else []))
    method, model = build(at), task_model(at)
    method.fit()
    scores = method.score(model)
    method.select(scores, 5)
    assert leaks(secrets, method, at, model, scores) == []
    hidden = at._loader.load(at.unlabelled).labels
    assert (hidden == -1).all()
    given_labels = at._loader.load(at.labelled).labels.numpy()
    assert np.array_equal(given_labels, secrets[0][at.labelled])


def test_the_search_finds_labels_where_they_can_be_reached(tmp_path: Path, secrets: list[np.ndarray]) -> None:
    at = setting(tmp_path, "random")
    method = build(at)
    config = chain("random")
    dataset = load(config.dataset, Path(config.data), 0)
    assert "Oracle" in leaks(secrets, Rounds(tmp_path, config, dataset, prepare_device(config), Interrupt()))
    everything, rest = secrets
    hiding_places: list[Callable[[], Any]] = [
        lambda: everything.astype(np.float32)[3:],
        lambda: torch.from_numpy(everything)[:1],  # a view: its storage tells
        lambda: {"a": [rest.tolist()]},
        lambda: dict(enumerate(everything.tolist())),
        lambda: lambda: rest,
        lambda: everything.astype(np.uint8).tobytes(),
    ]
    for hide in hiding_places:
        method.kept = hide()  # type: ignore[attr-defined]
        assert leaks(secrets, method) != []
    del method.kept  # type: ignore[attr-defined]
    assert leaks(secrets, method) == []


def test_a_method_sees_what_the_design_says_and_no_more(tmp_path: Path) -> None:
    assert {name for name in vars(Setting) if not name.startswith("_")} == {
        "has_query", "starts_from_f", "image_size", "images", "random", "scan", "scan_labelled", "scan_at", "minimax",
        "minimax_is_trained", "seed_networks", "train", "train_task_model", "query", "random_query", "count_picks",
    }  # fmt: skip
    assert {name for name in vars(setting(tmp_path, "random")) if not name.startswith("_")} == {
        "config", "number", "labelled", "unlabelled", "device",
    }  # fmt: skip
    assert issubclass(METHODS["mal"], Method)
