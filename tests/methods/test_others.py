"""Every method on the same pool, the ablations, the ensemble, the keys of methods, presets, the page on adding one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mal.config.checks import CONF, choices, method_ranges
from mal.config.compose import compose_sweep
from mal.methods import METHODS
from mal.methods.mal import RULES
from tests import pages
from tests.method_settings import OURS, build, chain, images, setting, task_model

ROOT = Path(__file__).parents[2]
SMALL = {
    "vaal": ["method.width=2"],
    "vaal_small": ["method.width=2"],
    "ensemble": ["method.members=3"],
    "batchbald": ["method.passes=10", "method.candidates=100"],
}
ABLATIONS = ("mal_no_minimax", "mal_entropy_query", "mal_no_discriminator", "mal_diversity_query")  # as in figure5


@pytest.fixture(scope="module")
def every():
    """A chain of every method, all from MAL's F, by name."""
    sweep = compose_sweep(["dataset=digits", f"methods=[{','.join(choices('method'))}]", "seeds=1", "task.init=from_f"])
    return {chain.method["name"]: chain for chain in sweep.chains}


@pytest.mark.parametrize("name", choices("method"))
def test_a_query_is_distinct_positions_and_the_same_again(tmp_path, name):
    queries = []
    for folder in ("a", "b"):
        at = setting(tmp_path / folder, name, *SMALL.get(name, []))
        method, model = build(at), task_model(at)
        method.fit()
        scores = method.score(model)
        query = method.select(scores, 30).positions
        assert query.dtype == np.int64
        assert len(np.unique(query)) == len(query) == 30
        assert query.min() >= 0
        assert query.max() < len(at.unlabelled)
        assert len(method.select(scores, 1).positions) == 1
        queries.append(query)
    assert np.array_equal(*queries)
    rest = len(at.unlabelled)
    assert np.array_equal(np.sort(method.select(scores, rest).positions), np.arange(rest))


def test_every_acquisition_has_a_file_and_a_yaml_of_its_name(every):
    files = {path.stem for path in (ROOT / "mal" / "methods").glob("*.py")}
    assert set(METHODS.names()) <= files
    assert set(METHODS.names()) <= set(choices("method"))
    assert {chain.method["acquisition"] for chain in every.values()} == set(METHODS.names())


@pytest.mark.parametrize("name", ["margin", "least_confidence", "entropy"])
def test_uncertainty_is_its_definition(tmp_path, name):
    at = setting(tmp_path, name)
    method, model = build(at), task_model(at)
    with torch.no_grad():
        p = np.sort(model(images(at, at.unlabelled)).double().softmax(dim=1).numpy(), axis=1)
    expected = {
        "margin": p[:, -2] - p[:, -1],
        "least_confidence": 1 - p[:, -1],
        "entropy": -(p * np.log(p)).sum(axis=1),
    }[name]
    (scores,) = method.score(model).values()
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert method.select({**method.score(model)}, 1).positions[0] == expected.argmax()


def test_badge_scores_are_the_factors_of_the_gradients(tmp_path):
    at = setting(tmp_path, "badge")
    scores, model = build(at).score(task_model(at)), task_model(at)
    assert scores["features"].dtype == scores["probabilities"].dtype == np.float32
    image = images(at, at.unlabelled[:1])
    logits = model(image)
    torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1)).backward()
    error = scores["probabilities"][0].copy()
    error[error.argmax()] -= 1
    np.testing.assert_allclose(np.outer(error, scores["features"][0]), model.head.weight.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["typiclust", "probcover"])
def test_clusters_and_coverage_see_unit_features(tmp_path, name):
    at = setting(tmp_path, name)
    scores = build(at).score(task_model(at))
    for part, count in (("features", len(at.unlabelled)), ("centres", len(at.labelled))):
        np.testing.assert_allclose(np.linalg.norm(scores[part], axis=1), np.ones(count), atol=1e-5)


def test_mal_plus_is_spread_out_among_the_uncertain_that_d_leaves(tmp_path):
    at = setting(tmp_path, "mal_plus", "method.candidates=2", "method.outliers=0.1")
    method = build(at)
    method.fit()
    found = method.score(task_model(at))
    margins = build(setting(tmp_path / "margin", "margin")).score(task_model(at))["margin"]
    np.testing.assert_allclose(found["margin"], margins, atol=1e-6)
    left_out = np.argsort(found["labelledness"], kind="stable")[: len(margins) // 10]
    order = np.argsort(-found["margin"], kind="stable")
    likely = order[~np.isin(order, left_out)][:20]
    picks = [likely[0]]
    while len(picks) < 10:
        nearest = np.linalg.norm(found["unit"][likely, None] - found["unit"][picks], axis=2).min(axis=1)
        picks.append(likely[nearest.argmax()])
    assert method.select(found, 10).positions.tolist() == picks
    at.config.method |= {"candidates": 1.0, "outliers": 0.0}
    assert sorted(method.select(found, 10).positions) == sorted(order[:10]), "the margin alone"


def test_ensemble_members_differ_and_are_phases_of_their_own(tmp_path):
    at = setting(tmp_path, "ensemble", "method.members=3", "task.epochs=2")
    method = build(at)
    method.fit()
    assert list(at._trainer.history) == ["ensemble-1", "ensemble-2"]
    assert not torch.equal(method.members[0].head.weight, method.members[1].head.weight)
    model = task_model(at)
    scores = method.score(model)
    with torch.no_grad():
        p = np.stack([m(images(at, at.unlabelled)).double().softmax(dim=1).numpy() for m in (model, *method.members)])
    votes = p.argmax(axis=2)
    assert np.array_equal(scores["votes"], votes.T)
    mean = p.mean(axis=0)
    np.testing.assert_allclose(scores["entropy"], -(mean * np.log(mean)).sum(axis=1), atol=1e-5)
    ratio = np.array([1 - np.bincount(v).max() / 3 for v in votes.T])
    query = method.select(scores, 40).positions
    assert np.all(np.diff(ratio[query]) <= 1e-12)
    assert ratio[query].min() >= np.sort(ratio)[-40] - 1e-12
    at.config.method["measure"] = "mutual_information"
    assert method.select(scores, 1).positions[0] == scores["mutual_information"].argmax()


def test_the_ensemble_starts_from_f_where_the_task_model_does(tmp_path):
    at = setting(tmp_path, "ensemble", "method.members=2", "task.init=from_f", "task.lr=1e-30")
    method = build(at)
    method.fit()
    weights = dict(method.members[0].backbone.named_parameters())
    for name, value in at.minimax.encoder.named_parameters():
        torch.testing.assert_close(weights[name], value)


def test_the_last_round_trains_no_members(tmp_path):
    at = setting(tmp_path, "ensemble", "rounds=1")
    build(at).fit()
    assert at._trainer.history == {}


def test_ablations_are_those_of_figure_5():
    whole = chain("mal")
    parts = {name: chain(name) for name in ABLATIONS}
    weights = {name: part.minimax.entropy_weight for name, part in parts.items()}
    assert weights == dict.fromkeys(ABLATIONS, whole.minimax.entropy_weight) | {"mal_no_minimax": 0}
    trained = {name: part.minimax.discriminator for name, part in parts.items()}
    assert trained == dict.fromkeys(ABLATIONS, True) | {"mal_no_discriminator": False}
    queries = ["intersection", "entropy", "entropy", "discriminator"]
    assert [parts[name].method["query"] for name in ABLATIONS] == queries
    assert {part.task.init for part in parts.values()} == {whole.task.init} == {"from_f"}
    assert {part.method["name"] for part in parts.values()} == set(ABLATIONS)


def test_without_the_discriminator_f_and_its_entropy_are_the_same(tmp_path):
    """D's loss never reaches F (Algorithm 1), so whether D is trained changes no query by entropy."""
    queries = []
    for name in ("mal_no_discriminator", "mal_entropy_query"):
        at = setting(tmp_path / name, name, "minimax.epochs=0.3")
        method = build(at)
        method.fit()
        queries.append(method.select(method.score(task_model(at)), 30).positions)
    assert np.array_equal(*queries)


def test_every_method_can_start_from_f(every):
    assert set(every) == set(choices("method"))
    assert {chain.task.init for chain in every.values()} == {"from_f"}


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        ("bald", "method.passes=0", "method.passes=0 is out of range: it must be a whole number from 1"),
        ("bald", "method.passes=2.5", "method.passes=2.5"),
        ("bald", "method.dropout=1", "above 0 to below 1"),
        ("bald", "method.dropout=0", "method.dropout=0"),
        ("bald", "method.dropout=high", "method.dropout=high"),
        ("mal", "method.query=entrpy", "did you mean entropy"),
        ("ensemble", "method.measure=votes", "Allowed: variation_ratio, entropy, mutual_information"),
        ("ensemble", "method.members=1", "method.members=1"),
        ("badge", "method.mode=fast", "rejection, exact"),
        ("power_bald", "method.kind=gumbel", "power, softmax, softrank"),
        ("power_bald", "method.beta=-1", "method.beta=-1"),
        ("vaal", "method.latent=0", "null or a whole number from 1"),
        ("vaal", "method.epochs=0", "method.epochs=0"),
        ("vaal", "method.epoch_of=round", "method.epoch_of=round"),
        ("probcover", "method.purity=1.5", "method.purity=1.5"),
        ("probcover", "method.delta=.inf", "method.delta=.inf"),
        ("entropy", "method.passes=25", "none of methods=.entropy. has this key"),
        ("bald", "method.pases=25", "did you mean method.passes"),
        ("bald", "method.acquisition=bold", "method.acquisition=bold is unknown; did you mean bald"),
        ("bald", "method.acquisition=ensemble", "method.members is missing: ensemble needs it"),
        ("mal_no_discriminator", "method.query=discriminator", "minimax.discriminator=true"),
    ],
)
def test_keys_of_a_method_are_checked_by_name(method, override, message):
    with pytest.raises(ValueError, match=message):
        chain(method, override)


def test_one_name_for_several_methods_is_refused():
    with pytest.raises(ValueError, match="would name 2 methods alike"):
        compose_sweep(["methods=[mal,random]", "method.name=mine"])
    assert (
        chain("ensemble", "method.name=ensemble_entropy", "method.measure=entropy").method["name"] == "ensemble_entropy"
    )


def test_ranges_name_keys_that_exist(every):
    for method, composed in every.items():
        assert method_ranges(composed.method["acquisition"]).keys() <= composed.method.keys(), method
    assert set(method_ranges("mal")["query"]) == {*RULES.names(), "random"}


def test_methods_are_checked_without_torch():
    compose = "from mal.config.compose import compose_sweep; compose_sweep(['methods=[vaal]'])"
    code = f"import sys; {compose}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_method_key_reaches_those_that_have_it():
    sweep = compose_sweep(["methods=[bald,random,batchbald]", "method.passes=7", "seeds=1"])
    assert [chain.method.get("passes") for chain in sweep.chains] == [7, None, 7]


@pytest.mark.parametrize(
    ("name", "dataset", "backbone", "seeds", "methods"),
    [
        ("figure3_imagenet", "imagenet", "resnet18", 3, "mal vaal coreset entropy bald random"),
        ("figure3_inaturalist2018", "inaturalist2018", "resnet18", 5, "mal vaal coreset entropy bald random"),
        ("figure4", "bdd100k", "drn_d_22", 5, "mal vaal entropy random"),
        ("figure3_cifar100", "cifar100", "resnet18", 5, "mal vaal coreset entropy bald random"),
        ("figure3_cifar100_imbalanced", "cifar100_imbalanced", "resnet18", 10, "mal vaal coreset entropy bald random"),
        ("figure5", "cifar100", "resnet18", 5, f"mal {' '.join(ABLATIONS)} random"),
        ("table2_resnet18", "cifar100", "resnet18", 5, "mal vaal"),
        ("table2_vgg16_bn", "cifar100", "vgg16_bn", 5, "mal vaal"),
    ],
)
def test_presets_are_the_papers_experiments(name, dataset, backbone, seeds, methods):
    sweep = compose_sweep([f"experiment={name}"])
    assert (sweep.name, sweep.methods, len(sweep.seeds)) == (name, methods.split(), seeds)
    assert {(chain.dataset.name, chain.backbone["name"]) for chain in sweep.chains} == {(dataset, backbone)}
    labels = {"imagenet": 64_058, "inaturalist2018": 43_751, "bdd100k": 350}.get(dataset, 1000)
    assert {(chain.initial, chain.budget) for chain in sweep.chains} == {(labels, labels)}


def test_the_large_batch_is_figure_3_with_rates_by_its_size():
    figure, large = (compose_sweep([f"experiment={name}"]) for name in ("figure3_imagenet", "imagenet_large_batch"))
    for before, after in zip(figure.chains, large.chains, strict=True):
        assert (before.method["name"], before.seed, before.rounds) == (after.method["name"], after.seed, after.rounds)
        assert after.task.batch == 4 * before.task.batch
        assert after.task.lr == pytest.approx(4 * before.task.lr)
        assert after.minimax.batch == 4 * before.minimax.batch
        assert after.minimax.lr_f == pytest.approx(2 * before.minimax.lr_f)


def test_the_preset_of_all_methods_leaves_none_out():
    methods = OmegaConf.load(CONF / "experiment" / "digits_all.yaml").methods
    assert set(methods) == OURS - {"vaal", "vaal_published"}
    assert set(choices("method")) >= OURS


# ------------------------------------------------------------------------------------------------ documentation


@pytest.mark.slow
def test_the_page_on_adding_a_method_does_what_it_says(tmp_path):
    (_, method), (_, settings), (_, line), (_, command) = pages.blocks("add-a-method")
    assert len([code for code in method.splitlines() if code.strip()]) <= 30
    pages.copy_checkout(tmp_path)
    (tmp_path / "mal/methods/information_density.py").write_text(method)
    (tmp_path / "mal/conf/method/information_density.yaml").write_text(settings)
    words = command.replace("random] seeds=3", "random] seeds=1").split()[1:]
    quick = ["rounds=2", "task.epochs=1", "backbone.width=4", "device=cpu", "cluster=local", "method.power=2"]
    with pytest.raises(AssertionError, match=r"does not import it.*from mal\.methods import information_density"):
        pages.run(tmp_path, *words, *quick)
    package = tmp_path / "mal/methods/__init__.py"
    after = "from mal.methods import least_confidence"
    package.write_text(package.read_text().replace(after, line + after))
    pages.run(tmp_path, *words, *quick)
    query = np.load(tmp_path / "runs/digits/information_density/seed-0/round-0/query.npy")
    assert len(np.unique(query)) == 30
    with pytest.raises(AssertionError, match=r"method\.power=-1 is out of range: it must be a number from 0"):
        pages.run(tmp_path, *words, "name=other", "method.power=-1")
    with pytest.raises(AssertionError, match=r"information_density is not defined for dataset\.task=segmentation"):
        pages.run(tmp_path, *words, "dataset=digit_scenes")
    pages.check(
        tmp_path,
        "tests/config/test_task_keys.py",
        "tests/test_layers.py",
        "tests/methods/test_others.py",
        "-k",
        "not page",
    )
