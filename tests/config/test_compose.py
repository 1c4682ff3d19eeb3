"""The configuration: what is refused and how it is said, what reaches a chain, what its fingerprint covers."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from mal.config.checks import CONF, choices, pool_size, validate
from mal.config.compose import compose_sweep
from mal.config.frozen import amended, differences, load_chain, save_chain
from mal.config.schema import Chain, added
from tests.chains import ROOT, chain_config, environment
from tests.made_up_data import write_folders
from tests.made_up_pools import write_mask_folder, write_shards


def composed(*overrides: str) -> list[Chain]:
    return compose_sweep(["dataset=digits", "seeds=1", "methods=[random]", *overrides]).chains


# ------------------------------------------------------------------------- bad input, at the command line


REFUSED = {
    # what is typed: what must be in the one line that answers
    "dataste=fashion_mnist": ("dataste", "did you mean dataset"),
    "task.learning_rate=3": ("task.learning_rate", "unknown"),
    "rounds": ("'rounds'", "key=value"),
    "--rounds=3": ("--rounds", "did you mean rounds"),
    "dataset=digts": ("dataset=digts", "did you mean digits", "fashion_mnist"),
    "dataset=cifar1000": ("dataset=cifar1000", "did you mean cifar100"),
    "backbone=resnet": ("backbone=resnet", "resnet18"),
    "cluster=nowhere": ("cluster=nowhere", "local"),
    "methods=[mal,entropyy]": ("methods", "'entropyy'", "did you mean entropy"),
    "methods=[]": ("methods=[]", "e.g."),
    "methods=[mal,mal]": ("methods", "twice"),
    "method=mal": ("method=mal", "methods=[mal]"),
    "method.qurey=entropy": ("method.qurey", "method.query"),
    "seeds=0": ("seeds=0", "at least 1"),
    "seeds=-2": ("seeds=-2",),
    "seeds=[0,0]": ("seeds=[0, 0]", "twice"),
    "seeds=[-1]": ("seeds=[-1]",),
    "seeds=1.5": ("seeds=1.5",),
    "rounds=0": ("rounds=0", "at least 1"),
    "rounds=-1": ("rounds=-1",),
    "rounds=2.5": ("rounds", "2.5"),
    "rounds=many": ("rounds", "many"),
    "rounds=60": ("rounds=60", "1347 images", "1800 labels"),
    "initial=0": ("initial=0",),
    "initial=-5": ("initial=-5",),
    "initial=1348": ("initial=1348", "1347"),
    "initial=2.5": ("initial=2.5",),
    "budget=0": ("budget=0",),
    "budget=-0.1": ("budget=-0.1",),
    "budget=2000": ("budget=2000", "1347"),
    "budget=nan": ("budget=nan",),
    "budget=0.3": ("rounds=5", "budget=404", "1347"),
    "name=../elsewhere": ("name='../elsewhere'",),
    "name=a b": ("name='a b'",),
    "dry_run=perhaps": ("dry_run=perhaps", "true"),
    "rounds=1,2": ("rounds=1,2",),
    "methods=[mal": ("methods=[mal",),
    "dataset.pool=5000": ("dataset.pool=5000", "1347"),
    "dataset.pool=5": ("dataset.pool=5", "10 classes"),
    "dataset.pool=some": ("dataset.pool", "some"),
    "dataset.imbalance=0.5": ("dataset.imbalance", "list"),
    "dataset.imbalance=[0.5,2]": ("dataset.imbalance=[0.5, 2.0]", "at most 1"),
    "methods=3": ("methods=3", "list of names"),
    "backbone=vgg16_bn": ("backbone=vgg16_bn", "32 pixels", "digits have 8"),
}


@pytest.mark.parametrize("text", ["007", "1e3", "true", "0x10", "1_000", "2026-11-26", "off", "null2", "ünï"])
def test_a_name_is_taken_as_it_is_written(text: str) -> None:
    assert compose_sweep([f"name={text}"]).name == text
    assert compose_sweep([f"name='{text}'"]).name == text


@pytest.mark.parametrize(
    "text", ["007", "a=b", "a b", "it's", "back\\slash", "end\\", "50%", "$HOME", "(1)", "#1", "a:b", "ü"]
)
def test_a_path_is_taken_as_it_is_written(text: str) -> None:
    (chain,) = compose_sweep([f"runs={text}", f"dataset.root=/{text}", "seeds=1", "methods=[random]"]).chains
    assert (chain.runs, chain.dataset.root) == (text, f"/{text}")


@pytest.mark.parametrize("override", REFUSED)
def test_bad_input_is_answered_in_one_line_that_names_it(override: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (what it says is checked below)
        compose_sweep(["dataset=digits", override])
    message = str(refused.value)
    assert "\n" not in message
    for part in REFUSED[override]:
        assert part in message


# ------------------------------------------------------------------------- bad values, in a chain


BAD_VALUES: list[tuple[str, Any]] = [
    ("seed", -1),
    ("rounds", 0),
    ("initial", 0),
    ("budget", 0),
    ("threads", -1),
    ("loader", "magic"),
    ("device", "tpu"),
    ("precision", "fp16"),
    ("checkpoint_minutes", 0.0),
    ("checkpoint_minutes", float("nan")),
    ("name", "a/b"),
    ("minimax.epochs", 0.0),
    ("minimax.epoch_of", "labeled"),
    ("minimax.batch", 1),
    ("minimax.temperature", 0.0),
    ("minimax.temperature", -0.05),
    ("minimax.entropy_weight", -0.1),
    ("minimax.lr_f", 0.0),
    ("minimax.lr_c", float("inf")),
    ("minimax.lr_d", -1.0),
    ("minimax.betas", [0.9]),
    ("minimax.betas", [0.9, 1.0]),
    ("minimax.weight_decay", -1.0),
    ("task.init", "from_g"),
    ("task.epochs", -1.0),
    ("task.batch", 0),
    ("task.optimizer", "sgdd"),
    ("task.lr", float("nan")),
    ("task.momentum", -0.1),
    ("task.weight_decay", -0.1),
    ("task.schedule", "steps"),
    ("dataset.classes", 1),
    ("dataset.pad_crop", -1),
    ("dataset.crop", 0),
    ("dataset.crop", 9),
    ("runs", ""),
    ("data", ""),
    ("dataset.minimum", 0),
    ("dataset.pool", 5),
    ("dataset.pool", 5000),
    ("dataset.task", "regression"),
]


def changed(chain: Chain, key: str, value: Any) -> Chain:
    section, _, name = key.rpartition(".")
    return replace(
        chain, **({section: replace(getattr(chain, section), **{name: value})} if section else {name: value})
    )


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_a_value_out_of_range_is_refused_by_its_key(key: str, value: Any) -> None:
    chain = chain_config()
    validate(chain)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        validate(changed(chain, key, value))


def test_more_rounds_than_the_pool_can_feed_are_refused_and_what_it_can_feed_is_not() -> None:
    chain = replace(chain_config(method="random"), initial=47, budget=100)
    validate(replace(chain, rounds=14))  # 47 + 13 * 100 = 1347, all of them
    with pytest.raises(ValueError, match=r"rounds=15 .* needs 1447 labels.* 1347 images: lower rounds"):
        validate(replace(chain, rounds=15))


def test_a_query_by_d_needs_d() -> None:
    chain = replace(chain_config(), minimax=replace(chain_config().minimax, discriminator=False))
    with pytest.raises(ValueError, match=r"method\.query=discriminator needs D"):
        validate(replace(chain, method=chain.method | {"query": "discriminator"}))
    validate(replace(chain, method=chain.method | {"query": "entropy"}))


# ------------------------------------------------------------------------- what is asked for


def test_a_sweep_has_a_chain_for_each_method_and_seed() -> None:
    sweep = compose_sweep(["dataset=digits", "methods=[mal,random]", "seeds=[4,7]", "name=try"])
    assert [(c.method["name"], c.seed, c.name) for c in sweep.chains] == [
        ("mal", 4, "try"), ("mal", 7, "try"), ("random", 4, "try"), ("random", 7, "try"),
    ]  # fmt: skip
    assert [c.task.init for c in sweep.chains] == ["from_f", "from_f", "scratch", "scratch"]


def test_seeds_are_a_number_of_them_or_a_list() -> None:
    assert [c.seed for c in composed("seeds=3")] == [0, 1, 2]
    assert [c.seed for c in composed("seeds=[5,0]")] == [5, 0]


def test_the_default_methods_are_the_papers_that_are_there() -> None:
    from mal.config.compose import PAPER_METHODS

    names = compose_sweep(["dataset=cifar100", "seeds=1"]).methods
    assert names == [name for name in PAPER_METHODS["classification"] if name in choices("method")]
    assert {"mal", "random", "entropy"} <= set(names)
    assert set(compose_sweep(["dataset=digits", "seeds=1"]).methods) <= set(choices("method"))


@pytest.mark.parametrize(("given", "count"), [("0.5", 673), ("0.05", 67), ("0.0001", 1), ("1", 1), ("100", 100)])
def test_numbers_below_one_are_fractions_of_the_pool(given: str, count: int) -> None:
    (chain,) = composed(f"initial={given}", "budget=1", "rounds=2")
    assert chain.initial == count


def test_fractions_are_not_shortened_by_floating_point() -> None:
    assert 0.29 * 100 < 29
    (chain,) = composed("dataset.pool=100", "initial=0.29", "budget=0.07", "rounds=2")
    assert (chain.initial, chain.budget) == (29, 7)


@pytest.mark.parametrize(("dataset", "initial", "budget"), [("cifar100", 1000, 1000)])
def test_the_papers_protocol_is_the_default(dataset: str, initial: int, budget: int) -> None:
    (chain,) = composed(f"dataset={dataset}", "initial=0.02", "budget=0.02")
    (default,) = composed(f"dataset={dataset}")
    assert (chain.initial, chain.budget) == (default.initial, default.budget) == (initial, budget)
    assert [100 * (initial + r * budget) // 50_000 for r in range(default.rounds)] == [2, 4, 6, 8, 10]
    assert default.backbone == {"name": "resnet18", "bottleneck": 256, "discriminator": 512}
    assert (default.minimax.temperature, default.minimax.entropy_weight) == (0.05, 0.1)
    assert (default.minimax.epochs, default.minimax.epoch_of, default.task.epochs) == (100, "pool", 100)
    assert default.dataset.flip


def test_method_keys_reach_the_methods_that_have_them() -> None:
    sweep = compose_sweep(["dataset=digits", "seeds=1", "methods=[mal,random]", "method.query=rank_sum"])
    assert [c.method.get("query") for c in sweep.chains] == ["rank_sum", None]


def test_every_dataset_and_backbone_on_offer_composes(tmp_path: Path) -> None:
    write_folders(tmp_path, train=20)
    for name in choices("dataset"):
        overrides = [f"dataset={name}", "seeds=1", "methods=[random]"]
        if name == "folder":
            overrides += [f"dataset.{part}_images={tmp_path / part}" for part in ("train", "test")]
        if name == "mask_folder":
            write_mask_folder(tmp_path / "masks", train=20)
            overrides += [f"dataset.root={tmp_path / 'masks'}"]
        if name == "own_features":
            for part in ("train", "test"):
                np.save(tmp_path / f"{part}.npy", np.zeros((60, 3), np.float16))
                np.save(tmp_path / f"{part}_labels.npy", np.arange(60) % 2)
            overrides += [f"features={tmp_path}"]
        if name == "webdataset":
            for part in ("train", "test"):
                write_shards(tmp_path / "shards", part, 60)
                overrides.append(f"dataset.{part}_shards={tmp_path}/shards/{part}-*.tar")
        (chain,) = compose_sweep(overrides).chains
        assert chain.dataset.name == chain.name == name
    for name in choices("backbone"):
        section = OmegaConf.load(CONF / "backbone" / f"{name}.yaml")
        if {"vectors", "library"} & section.keys():  # tests/test_features.py, tests/models/test_more_backbones.py
            continue
        task = "classification" if "stride" not in section else "segmentation"
        dataset = {"classification": "cifar100", "segmentation": "digit_scenes"}[task]
        assert composed(f"dataset={dataset}", f"backbone={name}")[0].backbone["name"] == name


def test_an_imbalanced_pools_size_is_bounded_from_above() -> None:
    from mal.data.dataset import load

    (chain,) = composed("dataset=digits_imbalanced", "initial=5", "budget=5")
    for seed in range(5):
        assert len(load(chain.dataset, Path("nowhere"), seed).pool) <= pool_size(chain.dataset)


# ------------------------------------------------------------------------- written and read


def test_a_chain_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for chain in compose_sweep(["dataset=digits_imbalanced", "seeds=1", "initial=5", "budget=5", "rounds=3"]).chains:
        path = tmp_path / "config.yaml"
        path.write_text(save_chain(chain))
        assert load_chain(path) == chain
        assert load_chain(path).fingerprint() == chain.fingerprint()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace("budget: 20", "budget: twenty"), "budget"),
        (lambda text: text.replace("budget: 20\n", ""), "budget"),
        (lambda text: text + "bugdet: 3\n", "bugdet"),
        (lambda text: text.replace("rounds: 2", "rounds: 0"), "rounds=0"),
        (lambda text: text[: len(text) // 2] + "\n[", "not YAML"),
        (lambda text: text.replace("optimizer: adam\n  lr: ", "optimizer: adm\n  lr: "), r"task\.optimizer=adm"),
    ],
)
def test_an_edited_configuration_that_makes_no_sense_is_refused(tmp_path: Path, edit: Any, said: str) -> None:
    text = save_chain(chain_config())
    assert edit(text) != text
    (tmp_path / "config.yaml").write_text(edit(text))
    with pytest.raises(ValueError, match=said):
        load_chain(tmp_path / "config.yaml")


def test_a_chain_that_was_never_launched_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml does not exist: launch the chain"):
        load_chain(tmp_path / "config.yaml")


# ------------------------------------------------------------------------- fingerprints


SCIENCE = [("seed", 1), ("initial", 21), ("budget", 21), ("task.lr", 0.5), ("minimax.temperature", 0.1)]
SCIENCE += [("task.init", "scratch"), ("dataset.flip", True), ("precision", "bf16")]
PLACE = [("runs", "elsewhere"), ("data", "elsewhere"), ("rounds", 9), ("threads", 7), ("checkpoint_minutes", 3.0)]


@pytest.mark.parametrize(("key", "value"), SCIENCE)
def test_what_decides_results_is_in_the_fingerprint_and_named_as_a_difference(key: str, value: Any) -> None:
    chain = chain_config()
    other = changed(chain, key, value)
    assert other.fingerprint() != chain.fingerprint()
    (difference,) = differences(chain, other)
    assert difference.startswith(f"{key}: ")
    assert difference.endswith(f" -> {value}")


@pytest.mark.parametrize(("key", "value"), [*PLACE, ("keep_model", True)])
def test_where_a_chain_runs_is_not(key: str, value: Any) -> None:
    chain = chain_config()
    other = changed(chain, key, value)
    assert other != chain
    assert other.fingerprint() == chain.fingerprint()
    assert differences(chain, other) == []


@dataclass(kw_only=True)
class LaterChain(Chain):
    stronger: float = added(0.0)


@pytest.mark.parametrize(("value", "same"), [(0.0, True), (0.5, False)])
def test_a_key_added_later_leaves_older_chains_as_they_were_at_its_neutral_value(value: float, same: bool) -> None:
    chain = chain_config()
    assert (LaterChain(**vars(chain), stronger=value).fingerprint() == chain.fingerprint()) == same


# Of a chain that was launched when the value was spelled so.
OLDER, FINGERPRINT = "entropy_of_unlabeled", "402d917770b1d0343aedd81900889ad6f271b30ebe0205623f2b9e8a425bdd5c"


# The settings of digits when the fingerprint was taken.
DIGITS_BEFORE = (
    "dataset=digits",
    "dataset.pad_crop=0",
    "backbone=small_cnn",
    "minimax.epochs=10",
    "minimax.lr_c=0.001",
)
DIGITS_BEFORE += ("minimax.weight_decay=0.0", "task.epochs=10", "task.lr=0.001")


@pytest.mark.parametrize("variant", [False, True])
def test_an_older_spelling_is_read_and_means_the_same_chain(tmp_path: Path, variant: bool) -> None:
    def launched(value: str) -> Chain:
        asked = f"variants={{mal:{{method:mal,method.query:{value}}}}}" if variant else f"method.query={value}"
        return compose_sweep([*DIGITS_BEFORE, "methods=[mal]", "seeds=1", asked]).chains[0]

    older, newer = launched(OLDER), launched("entropy_of_unlabelled")
    assert older == newer
    assert newer.method["query"] == "entropy_of_unlabelled"
    assert newer.fingerprint() == FINGERPRINT
    path = tmp_path / "config.yaml"
    path.write_text(save_chain(newer).replace("entropy_of_unlabelled", OLDER))
    assert OLDER in path.read_text()
    assert load_chain(path) == newer
    assert differences(load_chain(path), newer) == []
    assert load_chain(path).fingerprint() == FINGERPRINT


def test_a_chain_goes_on_with_the_words_that_it_was_launched_with(tmp_path: Path) -> None:
    """Jobs in the queue may run older code: it knows neither a key added since nor another spelling."""
    chain = compose_sweep(["dataset=digits", "methods=[mal]", "seeds=1", f"method.query={OLDER}"]).chains[0]
    lines = save_chain(chain).replace("entropy_of_unlabelled", OLDER).splitlines(keepends=True)
    path = tmp_path / "config.yaml"
    path.write_text("".join(line for line in lines if not line.startswith("workers:")))
    launched = path.read_text()
    assert amended(path, chain) == launched
    assert amended(path, replace(chain, rounds=chain.rounds + 1)) == launched.replace(
        f"rounds: {chain.rounds}\n", f"rounds: {chain.rounds + 1}\n"
    )


# ------------------------------------------------------------------------- without torch


@pytest.mark.parametrize(
    "module", ["mal.config.schema", "mal.run.folder", "mal.config.registry", "mal.rng", "mal.run.ledger", "mal.chain"]
)
def test_what_the_login_node_imports_leaves_torch_alone(module: str) -> None:
    script = (
        f"import sys, {module}; print([m for m in ('torch', 'torchvision', 'pandas', 'sklearn') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=environment()
    )
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["methods=[mal]", "initial=347", "budget=500", "rounds=3"], "whole pool"),
        (["methods=[random]", "task.init=from_f", "initial=347", "budget=500", "rounds=3"], "whole pool"),
        (["methods=[mal]", "minimax.discriminator=false"], "method.query=intersection"),
        (["methods=[random]", "backbone.width=0"], "backbone.width=0"),
        (["methods=[random]", "backbone.bottleneck=abc"], "backbone.bottleneck=abc"),
    ],
)
def test_what_would_fail_in_a_later_round_is_refused_now(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compose_sweep(["dataset=digits", "seeds=1", *overrides])


def test_a_baseline_may_label_the_whole_pool() -> None:
    (chain,) = compose_sweep(["methods=[random]", "seeds=1", "initial=347", "budget=500", "rounds=3"]).chains
    assert chain.initial + 2 * chain.budget == chain.dataset.train


def test_a_variant_joins_those_of_a_preset() -> None:
    more = "variants={more:{method:random,task.lr:0.5}}"
    sweep = compose_sweep(["experiment=study_digits", more, "methods=[more,vaal]", "seeds=1"])
    added, vaal = sweep.chains
    assert (added.method["name"], added.task.lr) == ("more", 0.5)
    assert vaal.method["width"] == 8  # the preset's own
