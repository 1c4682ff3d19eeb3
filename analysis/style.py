"""Names, order, colours and markers: the same for a method in every figure and table, safe for colour-blind readers.

Colours are those of Okabe and Ito (2008) for the methods that the paper compares, and of Paul Tol's "muted" set for the
ablations; no two of them share a marker, so that figures survive a grey print.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Marker = Any  # matplotlib's code, or (points, 1 for a star, degrees)
LineStyle = str | tuple[int, tuple[float, ...]]  # matplotlib's


@dataclass(frozen=True)
class Look:
    """How a method is written and drawn."""

    label: str
    colour: str
    marker: Marker
    line: LineStyle = "-"


LOOKS = {
    "mal": Look("MAL", "#D55E00", "o"),
    "mal_init_random": Look("MAL's F + random query", "#882255", "P"),
    "mal_no_minimax": Look("MAL w/o minimax", "#332288", "*"),
    "mal_no_discriminator": Look("MAL w/o D", "#117733", "H"),
    "mal_entropy_query": Look("MAL (entropy query)", "#88CCEE", "<"),
    "mal_diversity_query": Look("MAL (D query)", "#AA4499", ">"),
    "mal_plus": Look("MAL's F + our query", "#DDAA33", (5, 1, 0)),
    "vaal": Look("VAAL", "#E69F00", "s"),
    "vaal_small": Look("VAAL (small)", "#8F6B00", (4, 1, 45)),
    "coreset": Look("Coreset", "#009E73", "D"),
    "badge": Look("BADGE", "#56B4E9", "X"),
    "typiclust": Look("TypiClust", "#661100", (3, 1, 0)),
    "probcover": Look("ProbCover", "#4477AA", (6, 1, 0)),
    "batchbald": Look("BatchBALD", "#C2A83E", "d"),
    "power_bald": Look("PowerBALD", "#CC6677", (4, 1, 0)),
    "bald": Look("BALD", "#CC79A7", "p"),
    "ensemble": Look("Ensemble", "#222222", (5, 0, 180)),
    "entropy": Look("Entropy", "#0072B2", "^"),
    "margin": Look("Margin", "#999933", "h"),
    "least_confidence": Look("Least confidence", "#44AA99", "8"),
    "random": Look("Random", "#666666", "v"),
}
ON_F = "_f"  # ends the name of a baseline whose task model starts from MAL's F, as the study's do
DOTTED = (0, (1.0, 1.2))
SPARE_COLOURS = ("#AA7744", "#6699CC", "#AA4466", "#77AADD", "#994455", "#557755", "#BB8866", "#7777BB")
SPARE_MARKERS: tuple[Marker, ...] = ("d", "<", ">", "8", "H", "h", (3, 1, 180), (5, 1, 180))

DATASETS = {
    "digits": "Digits",
    "digits_imbalanced": "Digits-Imbalanced",
    "digit_scenes": "Digit scenes",
    "fashion_scenes": "Fashion scenes",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist_imbalanced": "Fashion-MNIST-Imbalanced",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "cifar100_imbalanced": "CIFAR100-Imbalanced",
    "imagenet": "ImageNet",
    "inaturalist2018": "iNaturalist2018",
    "bdd100k": "BDD100K",
}
BACKBONES = {
    "resnet18": "ResNet18",
    "vgg16": "VGG16",
    "vgg16_bn": "VGG16",
    "small_cnn": "small CNN",
    "small_cnn_32": "small CNN, 32 channels",
    "small_cnn_28": "small CNN, 32 channels",
    "drn_d_22": "DRN-D-22",
    "small_drn": "small DRN",
}
METRICS = {"accuracy": "Accuracy (%)", "miou": "Mean IoU (%)"}
NOUNS = {"accuracy": "accuracy", "miou": "IoU"}


def look(method: str) -> Look:
    """The look of a method; one that is not listed gets a colour and marker that follow from its name alone."""
    if method in LOOKS:
        return LOOKS[method]
    if base := LOOKS.get(method.removesuffix(ON_F)):
        return Look(f"{base.label} on MAL's F", base.colour, base.marker, DOTTED)
    code = zlib.crc32(method.encode())
    label = method.replace("_", " ")
    label = "MAL " + label.removeprefix("mal ") if label.startswith("mal ") else label[:1].upper() + label[1:]
    return Look(label, SPARE_COLOURS[code % len(SPARE_COLOURS)], SPARE_MARKERS[code // 8 % len(SPARE_MARKERS)])


def method_label(method: str) -> str:
    """A method's name in figures and tables."""
    return look(method).label


def ordered(methods: Iterable[str]) -> list[str]:
    """Methods in the order of every legend and table: MAL, its ablations, the baselines, random sampling last."""
    known = list(LOOKS)

    def place(method: str) -> tuple[int, int, str]:
        if method in LOOKS:
            return known.index(method), 1, method
        if (base := method.removesuffix(ON_F)) in LOOKS:
            return known.index(base), 2, method
        return known.index("vaal" if method.startswith("mal") else "random"), 0, method

    return sorted(methods, key=place)


def dataset_label(dataset: str) -> str:
    """A dataset's name as papers write it."""
    return DATASETS.get(dataset, dataset)


def backbone_label(backbone: str) -> str:
    """A backbone's name as the paper writes it (its VGG16 has batch norm)."""
    return BACKBONES.get(backbone, backbone)


def panel_title(key: str, dataset: str) -> str:
    """A panel's title: the dataset, then what tells the panel from others of the same dataset."""
    rest = re.sub(r"^-", "", key.removeprefix(dataset))
    parts = [backbone_label(part) for part in rest.split("-") if part]
    return ", ".join([dataset_label(dataset), *parts])


def metric_label(metric: str) -> str:
    """The label of the vertical axis."""
    return METRICS.get(metric, f"{metric} (%)")


def metric_noun(metric: str) -> str:
    """The metric within a sentence, of one class or of a mean over them."""
    return NOUNS.get(metric, metric)
