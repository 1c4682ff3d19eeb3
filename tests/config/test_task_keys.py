"""What goes with which task: said at launch, from what the YAML files declare."""

import pytest

from mal.config.checks import CONF, choices
from mal.config.compose import compose_sweep
from mal.config.task_keys import tasks_of
from tests.method_settings import OURS

SCENES = ("dataset=digit_scenes", "seeds=1")
REFUSED = {
    ("backbone=small_cnn",): (
        "backbone=small_cnn gives one feature vector per image",
        "segmentation",
        "drn_d_22, small_drn",
    ),
    ("dataset=digits", "backbone=drn_d_22"): ("gives maps of features", "dataset.task=classification", "resnet18"),
    ("dataset.task=classification",): ("small_drn gives maps of features", "dataset.task=classification"),
    ("dataset=digits", "dataset.task=segmentation"): ("small_cnn_32 gives one feature vector", "small_drn"),
    ("methods=[random,badge]",): ("methods: badge is not defined", "only for classification", "entropy"),
    ("methods=[batchbald]",): ("methods: batchbald is not defined", "bald"),
    ("dataset.size=46",): ("dataset.size=46 must be a multiple of 4", "small_drn"),
    ("dataset.crop=30",): ("dataset.crop=30 must be a multiple of 4",),
    ("backbone.stride=2",): ("backbone.stride=2 cannot be changed", "make it 4"),
    ("dataset.class_names=[a,b]",): ("dataset.class_names has 2 names for dataset.classes=11",),
    ("keep_queries=-1",): ("keep_queries=-1",),
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (what it says is checked below)
        compose_sweep(
            [*SCENES, "methods=[random]", *overrides] if "methods" not in overrides[0] else [*SCENES, *overrides]
        )
    message = str(refused.value)
    assert "\n" not in message
    for part in REFUSED[overrides]:
        assert part in message


def test_every_method_says_what_it_is_for() -> None:
    found = {method: tasks_of(method, CONF) for method in choices("method")}
    only = {method for method, tasks in found.items() if tasks == ["classification"]}
    assert only & OURS == {"badge", "batchbald", "ensemble", "mal_plus"}
    for method, tasks in found.items():
        if "segmentation" in tasks:
            (chain,) = compose_sweep([*SCENES, f"methods=[{method}]"]).chains
            assert chain.dataset.task == "segmentation"


def test_a_method_inherits_what_it_starts_from(tmp_path: object) -> None:
    assert tasks_of("power_bald", CONF) == ["classification", "segmentation"]
    assert tasks_of("vaal_small", CONF) == ["classification", "segmentation"]


def test_the_paper_compares_four_methods_on_maps() -> None:
    sweep = compose_sweep([*SCENES, "methods=null"])
    assert sweep.methods == ["mal", "vaal", "entropy", "random"]
