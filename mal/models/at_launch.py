"""Pretrained weights at a launch: found or fetched, hashed, compared with their backbone, and frozen with the chain.

Imports torch where a sweep names weights, and only there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mal.config.schema import Chain
from mal.files import sha256_file


def settle_weights(chains: Sequence[Chain], dry_run: bool) -> list[Chain]:
    """The chains with their weights' file, its hash and the normalisation filled in; says what is loaded.

    Raises ValueError where weights are not there, cannot be read or fit nothing. dry_run: nothing is fetched.
    """
    known: dict[str, dict[str, Any]] = {}
    settled = []
    for chain in chains:
        asked = f"{chain.backbone} {chain.dataset.channels}"
        if asked not in known:
            known[asked] = _settled(chain, dry_run) if chain.backbone.get("weights") else _checked(chain)
        settled.append(replace(chain, backbone=dict(known[asked])))
    return settled


def to_fetch(backbone: Mapping[str, Any]) -> tuple[Path, str] | None:
    """Where ImageNet's weights of a network belong, and their address; None where nothing is to be fetched."""
    from mal.models.pretrained import IMAGENET, imagenet_file

    if backbone.get("weights") != IMAGENET:
        return None
    path, address = imagenet_file(str(backbone["name"]))
    return None if path.is_file() else (path, address)


def _checked(chain: Chain) -> dict[str, Any]:
    """The section of a network without weights; ValueError where a library has none of that name."""
    if chain.backbone.get("library"):
        import torch

        from mal.models.backbones import build_backbone

        with torch.device("meta"):
            build_backbone(chain.backbone, chain.dataset.channels)
    return chain.backbone


def _settled(chain: Chain, dry_run: bool) -> dict[str, Any]:
    from mal.models.backbones import describe_start
    from mal.models.pretrained import IMAGENET, fetch, imagenet_file
    from mal.process.faults import Misplaced

    if chain.backbone.get("library") and chain.backbone["weights"] == IMAGENET:
        raise ValueError(
            f"backbone.weights=imagenet is torchvision's: fetch the file of {chain.backbone['name']} from its hub and "
            "give backbone.weights=model.safetensors."
        )
    backbone, words = dict(chain.backbone), str(chain.backbone["weights"])
    if words == IMAGENET:
        path, _ = imagenet_file(str(backbone["name"]))
        if missing := to_fetch(backbone):
            path, address = missing
            if dry_run:
                print(f"weights: a launch fetches {address} to {path}")
                return chain.backbone
            print(f"weights: fetching {address} to {path}", flush=True)
            fetch(path, address)
        backbone.setdefault("normalise", IMAGENET)
    else:
        path = Path(words).expanduser()
        if not path.is_file():
            raise ValueError(f"backbone.weights={words} is not a file: give one, or backbone.weights=imagenet.")
    backbone["weights"] = str(path.absolute())
    backbone["weights_sha256"] = sha256_file(path)
    try:
        found = describe_start(backbone, chain.dataset.channels)
    except Misplaced as error:
        raise ValueError(str(error)) from None
    by = "ImageNet's" if backbone.get("normalise") == IMAGENET else "the pool's"
    print(f"weights of {path.name}: {found}; images normalised by {by} mean and deviation", flush=True)
    return backbone
