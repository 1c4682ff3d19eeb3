"""What a chain's configuration may be: checked as a whole on the login node, without torch."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from mal.config.choices import CHOICES
from mal.config.conf_folders import CONF, choices, yaml_path
from mal.config.method_keys import Range, check_method, read_ranges
from mal.config.people import check_people
from mal.config.registered import BACKBONES, METHODS, SOURCES, check_registered
from mal.config.registry import nearest
from mal.config.schema import START, Chain, Dataset, flat
from mal.config.task_keys import check_task

NORMALISATIONS = ("pool", "imagenet")
TRACKERS = ("tensorboard", "wandb", "mlflow")
QUERIES_OF_D = ("intersection", "entropy_of_unlabelled", "rank_sum", "discriminator")


@cache
def method_section(method: str, own: Path | None = None) -> dict[str, Any]:
    """The section `method` of a method's YAML over those it starts from; jobs read it too, so without Hydra.

    own: the user's folder, where a method of the command line may be; the one that it is registered by is in mal/conf.
    """
    section = _inherited(method, "method", own)
    if "acquisition" not in section:
        raise ValueError(
            f"{yaml_path('method', method, own)} has no method.acquisition: the name that mal/methods registers the "
            "method by."
        )
    return section


@cache
def method_ranges(method: str) -> dict[str, Range]:
    """What the keys of a method may be, from the section `ranges` of its YAML over those it starts from."""
    return read_ranges(_inherited(method, "ranges", None), str(yaml_path("method", method)))


def _inherited(method: str, section: str, own: Path | None) -> dict[str, Any]:
    path = yaml_path("method", method, own)
    file = read_yaml(path)
    found: dict[str, Any] = {}
    for parent in file.get("defaults", []):
        if parent != "_self_" and parent not in choices("method", own):
            hint = nearest(str(parent), choices("method", own)) or "."
            raise ValueError(f"{path}: defaults has {parent!r}, which is not a method{hint}")
        found |= _inherited(parent, section, own) if parent != "_self_" else {}
    return found | (file.get(section) or {})


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of sections as nested dicts; ValueError, naming it, where it is not one."""
    try:
        file = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(file, dict):
        raise ValueError(f"{path} has no sections: it must hold keys with their values.")
    return file  # type: ignore[return-value]


def validate(chain: Chain) -> None:
    """Refuse what cannot run, with a ValueError that names the key; the datasets' files are checked later."""
    _check_choices(chain)
    check_numbers(chain)
    _check_trackers(chain.tracker or [])
    file_name("name", chain.name)
    for key in ("runs", "data"):
        if not getattr(chain, key):
            raise ValueError(f"{key}= is empty: give a folder, e.g. {key}={key}.")
    check_registered("dataset.source", chain.dataset.source, SOURCES)
    library = chain.backbone.get("library")
    if library and importlib.util.find_spec(library) is None:
        raise ValueError(f"backbone={library} needs {library}, which is not installed: pip install .[{library}].")
    check_registered("backbone.name", str(library or chain.backbone["name"]), BACKBONES)
    _check_image(chain)
    _check_start(chain.backbone)
    _check_semi(chain)
    _check_method(chain.method)
    check_task(chain.dataset, chain.backbone, chain.method, CONF)
    check_people(chain)
    pool, needed = pool_size(chain.dataset), chain.initial + (chain.rounds - 1) * chain.budget
    if needed > pool:
        raise ValueError(
            f"rounds={chain.rounds} with initial={chain.initial} and budget={chain.budget} needs {needed} labels, but "
            f"the pool of {chain.dataset.name} has {pool} images: lower rounds, initial or budget."
        )
    if needed == pool and (chain.task.init.startswith("from_f") or chain.method["acquisition"] in ("mal", "mal_plus")):
        raise ValueError(
            f"rounds={chain.rounds} with initial={chain.initial} and budget={chain.budget} labels the whole pool of "
            f"{pool}, but Algorithm 1 needs unlabelled images in every round: lower rounds, initial or budget."
        )
    if chain.method.get("query") in QUERIES_OF_D and not chain.minimax.discriminator:
        raise ValueError(
            f"method.query={chain.method['query']} needs D: set minimax.discriminator=true, or method.query to entropy "
            "or random."
        )
    if chain.method.get("outliers") and not chain.minimax.discriminator:
        raise ValueError("method.outliers needs D: set minimax.discriminator=true, or method.outliers=0.")
    _check_held_out(chain)
    _check_graphs(chain)


def _check_image(chain: Chain) -> None:
    """Refuse a crop larger than the image with its padding, and networks that halve the image until nothing is left."""
    dataset, smallest = chain.dataset, chain.backbone.get("smallest_image", 1)
    _check_features(chain)
    side = dataset.size + 2 * dataset.pad_crop
    if dataset.crop is not None and not 1 <= dataset.crop <= side:
        raise ValueError(f"dataset.crop={dataset.crop} is out of range: images of {dataset.name} are {side} wide.")
    if (seen := dataset.crop or dataset.size) < smallest:
        raise ValueError(
            f"backbone={chain.backbone['name']} needs images of at least {smallest} pixels, those of {dataset.name} "
            f"have {seen}: choose another backbone= or a larger dataset.crop."
        )
    multiple, built_for = chain.backbone.get("multiple", 1), chain.backbone.get("image_size", seen)
    if seen % multiple or built_for != seen:
        wanted = f"a multiple of {multiple}" if seen % multiple else f"backbone.image_size={built_for}"
        raise ValueError(
            f"backbone={chain.backbone['name']} takes images whose side is {wanted}, those of {dataset.name} have "
            f"{seen} pixels: set dataset.crop or dataset.pad_crop and crop, or choose another backbone=."
        )


def _check_features(chain: Chain) -> None:
    """Refuse images for a network that takes vectors, the other way round, and what features cannot be."""
    name, features = chain.backbone["name"], chain.dataset.features
    if bool(chain.backbone.get("vectors")) != (features is not None):
        what = (
            "takes a frozen encoder's features: give features=DIR" if features is None else "takes images, not features"
        )
        raise ValueError(f"backbone={name} {what}, or choose another backbone=.")
    if features is None:
        return
    for key, value in {"loader": ("auto", "memory"), "keep_queries": (0,)}.items():
        if getattr(chain, key) not in value:
            raise ValueError(f"{key}={getattr(chain, key)} is for images: with features= it must be {value[-1]}.")


def _check_semi(chain: Chain) -> None:
    task = chain.task
    if not 0 < task.semi_threshold < 1 or not 0 <= task.semi_average < 1:
        wrong = "semi_threshold" if not 0 < task.semi_threshold < 1 else "semi_average"
        raise ValueError(f"task.{wrong}={getattr(task, wrong)} is out of range: it must be from 0 to below 1.")
    if task.semi and (chain.dataset.task == "segmentation" or chain.dataset.features is not None):
        what = "features" if chain.dataset.features else "classes of pixels"
        raise ValueError(f"task.semi={task.semi} changes images strongly, which {what} do not allow: set it to null.")


def _check_trackers(names: list[str]) -> None:
    """Refuse a tracker that is unknown or not installed here."""
    for name in names:
        if name not in TRACKERS:
            hint = nearest(name, TRACKERS) or "."
            raise ValueError(f"tracker={name} is unknown{hint} Known: {', '.join(TRACKERS)}.")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"tracker={name} is not installed: pip install .[{name}].")


def _check_start(backbone: dict[str, Any]) -> None:
    """Refuse a start that says nothing: frozen layers, a prefix or a normalisation without weights."""
    for key, kinds in {"weights": str, "weights_prefix": str, "freeze": (bool, str)}.items():
        value = backbone.get(key, START[key])
        if value is not None and not isinstance(value, kinds):  # type: ignore[arg-type]
            raise ValueError(f"backbone.{key}={value} must be {_KINDS[key]}.")
    if (normalise := backbone.get("normalise")) not in (None, *NORMALISATIONS):
        hint = nearest(str(normalise), NORMALISATIONS) or "."
        raise ValueError(f"backbone.normalise={normalise} is unknown{hint} Allowed: {', '.join(NORMALISATIONS)}, null.")
    given = [key for key in ("weights_prefix", "freeze") if backbone.get(key, START[key]) != START[key]]
    if given and not backbone.get("weights"):
        raise ValueError(f"backbone.{given[0]}={backbone[given[0]]} is for pretrained weights: give backbone.weights=.")


_KINDS = {
    "weights": "a file of weights or imagenet, e.g. backbone.weights=moco.pth",
    "weights_prefix": "what the names of the weights begin with, e.g. backbone.weights_prefix=encoder_q.",
    "freeze": "true, false or the name of a layer, e.g. backbone.freeze=layer3",
}


def _check_method(method: dict[str, Any]) -> None:
    file_name("method.name", str(method.get("name")))
    acquisition, known = method.get("acquisition"), choices("method")
    if acquisition not in known or method_section(str(acquisition))["acquisition"] != acquisition:
        own = [name for name in known if method_section(name)["acquisition"] == name]
        hint = nearest(str(acquisition), own) or "."
        raise ValueError(f"method.acquisition={acquisition} is unknown{hint} Known: {', '.join(own)}.")
    check_method(method, method_section(acquisition), method_ranges(acquisition))
    check_registered("method.acquisition", str(acquisition), METHODS)


def _check_choices(chain: Chain) -> None:
    values = flat(asdict(chain))
    for key, names in CHOICES.items():
        if values[key] not in names:
            hint = nearest(str(values[key]), filter(None, names)) or "."
            raise ValueError(
                f"{key}={values[key]} is unknown{hint} Allowed: {', '.join(str(n or 'null') for n in names)}."
            )


def check_numbers(chain: Chain) -> None:
    """Refuse numbers out of range, with a ValueError naming the key."""
    values = flat(asdict(chain))
    at_least = {"seed": 0, "rounds": 1, "initial": 1, "budget": 1, "threads": 0, "minimax.batch": 2, "task.batch": 2}
    at_least |= {"dataset.classes": 2, "dataset.minimum": 1, "dataset.pad_crop": 0, "keep_queries": 0, "workers": 0}
    at_least |= {"dataset.max_pixels": 1, "task.semi_ratio": 1}
    above: tuple[str, ...] = ("minimax.epochs", "minimax.temperature", "minimax.lr_f", "minimax.lr_c", "minimax.lr_d")
    above += ("task.epochs", "task.lr", "checkpoint_minutes", "collective_minutes")
    not_negative: tuple[str, ...] = ("minimax.entropy_weight", "minimax.weight_decay", "minimax.d_to_f")
    not_negative += ("task.weight_decay", "task.momentum", "task.semi_weight")
    for key, low in at_least.items():
        if values[key] < low:
            raise ValueError(f"{key}={values[key]} is too small: it must be at least {low}.")
    for key in ("width", "bottleneck", "discriminator"):
        value = chain.backbone.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"backbone.{key}={value} must be a whole number from 1.")
    above += ("task.lr_backbone",) if chain.task.lr_backbone is not None else ()
    for key in above:
        if not 0 < values[key] < math.inf:
            raise ValueError(f"{key}={values[key]} is out of range: it must be above 0.")
    for key in not_negative:
        if not 0 <= values[key] < math.inf:
            raise ValueError(f"{key}={values[key]} is out of range: it must be 0 or above.")
    if len(chain.minimax.betas) != 2 or not all(0 <= beta < 1 for beta in chain.minimax.betas):
        raise ValueError(f"minimax.betas={chain.minimax.betas} must be two numbers from 0 to below 1.")
    _check_shares(chain)
    _check_pool(chain.dataset)


def _check_shares(chain: Chain) -> None:
    for key, value in (("average", chain.minimax.average), ("held_out", chain.minimax.held_out)):
        if not 0 <= value < 1:
            raise ValueError(f"minimax.{key}={value} is out of range: it must be from 0 to below 1.")


def _check_held_out(chain: Chain) -> None:
    share = chain.minimax.held_out
    if share and chain.dataset.task == "segmentation":
        raise ValueError(f"minimax.held_out={share} is for images of one class each: set it to 0.")
    if share and not 0 < round(share * chain.initial) < chain.initial:
        raise ValueError(f"minimax.held_out={share} of initial={chain.initial} labels leaves one side without any.")


def _check_graphs(chain: Chain) -> None:
    if chain.cuda_graphs and chain.device == "cpu":
        raise ValueError("cuda_graphs=true is for GPUs: set it to false, or device=auto or cuda.")
    if chain.cuda_graphs and chain.minimax.average:
        raise ValueError(
            f"minimax.average={chain.minimax.average} counts its steps on the host, which cuda_graphs=true leaves out: "
            "set one of them to its default, 0 or false."
        )


def _check_pool(dataset: Dataset) -> None:
    if not all(0 < ratio <= 1 for ratio in dataset.imbalance or []):
        raise ValueError(f"dataset.imbalance={dataset.imbalance} must be fractions of a class above 0, at most 1.")
    if dataset.imbalance and dataset.task == "segmentation":
        raise ValueError(f"dataset.imbalance={dataset.imbalance} is for images of one class each: set it to null.")
    if dataset.pool is not None and not dataset.classes <= dataset.pool <= dataset.train:
        raise ValueError(
            f"dataset.pool={dataset.pool} is out of range: {dataset.name} has {dataset.train} training images of "
            f"{dataset.classes} classes."
        )


def pool_size(dataset: Dataset) -> int:
    """Images in the pool, from the specification alone; an upper bound where classes are of unequal size."""
    images = dataset.pool or dataset.train
    if not dataset.imbalance:
        return images
    per_class, share = images / dataset.classes, dataset.classes / len(dataset.imbalance)
    return math.ceil(share * sum(max(dataset.minimum, ratio * per_class) + 1 for ratio in dataset.imbalance))


def file_name(key: str, value: Any) -> str:
    """The value as text, or ValueError where it cannot be the name of a folder."""
    text = str(value)
    if not text or text[0] in ".-" or not all(c.isalnum() or c in "._-" for c in text):
        raise ValueError(f"{key}={text!r} cannot be the name of a folder: use letters, digits, '.', '_' and '-'.")
    return text
