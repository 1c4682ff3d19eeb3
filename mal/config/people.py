"""oracle=files: what a chain may be whose labels people give, checked on the login node, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from mal.config.schema import Chain

FILES = "files"
CANNOT_TELL = "cannot tell"  # the answer that takes an image out of the pool


def one_seed(seeds: list[int], overrides: Sequence[str]) -> list[int]:
    """The one seed of each method: the given one, or the first; ValueError where several were asked for."""
    asked = [each for each in overrides if each.partition("=")[0] == "seeds"]
    if asked and len(seeds) > 1:
        raise ValueError(
            f"{asked[-1]}: with oracle=files each seed would ask people for labels of its own. Leave it out, or give "
            "one, e.g. seeds=[0]."
        )
    return seeds[:1]


def check_people(chain: Chain) -> None:
    """Refuse what needs labels that nobody has given, with a ValueError that names the key."""
    dataset, enough = chain.dataset, chain.labels.enough
    if not 0 < enough <= 1:
        raise ValueError(f"labels.enough={enough} is out of range: it is the answered share, above 0 and at most 1.")
    if dataset.oracle != FILES:
        return
    if dataset.features is not None:
        raise ValueError(f"oracle={FILES}: people label images, and with features= there are none to show.")
    if not (dataset.train_images or dataset.class_list):
        raise ValueError(
            f"oracle={FILES}: {dataset.name} brings its labels. People label your own images: dataset=folder or "
            "dataset=mask_folder."
        )
    if chain.loader == "ffcv":
        raise ValueError(
            f"loader=ffcv reads a prepared copy, which holds labels: with oracle={FILES} use memory or torch."
        )
    if dataset.imbalance:
        raise ValueError(
            f"dataset.imbalance={dataset.imbalance} needs the labels of the pool: not with oracle={FILES}."
        )
    if chain.keep_queries:
        raise ValueError(
            f"keep_queries={chain.keep_queries} keeps true labels with queries: with oracle={FILES} see to_label.html."
        )
    names = dataset.class_names
    if names is None or len(names) != dataset.classes or len(set(names)) < len(names):
        raise ValueError(
            f"dataset.class_names={names} must be {dataset.classes} names, each once: people label by name."
        )
    if wrong := [name for name in names if name != name.strip() or not name or name.lower() == CANNOT_TELL]:
        raise ValueError(
            f"dataset.class_names: {wrong[0]!r} cannot be a class's name with oracle={FILES}: it is empty, has blanks "
            f"around it, or is the answer {CANNOT_TELL!r}."
        )
