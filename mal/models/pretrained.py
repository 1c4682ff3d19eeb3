"""A pretrained start: a backbone's weights from a checkpoint, its frozen layers, and what is said of both.

A checkpoint's names are torchvision's (timm's for backbone=timm, ours for a model.safetensors of this toolkit), below
whatever they are wrapped in: state_dict, model, teacher, module., encoder_q. and the like. The prefix below which most
of the backbone's tensors are found is taken; backbone.weights_prefix chooses where several fit as well.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mal.files import sha256_file
from mal.process.faults import Misplaced

IMAGENET = "imagenet"
# Of torchvision's weights; of grey images, which are repeated to three channels, the mean over the channels.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHOWN = 5  # names that a message lists
COUNTER = "num_batches_tracked"  # of batch norm; no weight, and absent from older checkpoints


@dataclass(frozen=True)
class Start:
    """What a checkpoint gives a backbone.

    tensors: by the backbone's names; prefix: below which they are in the checkpoint; left_out: the backbone's names
    that keep their initialisation; unexpected: the checkpoint's names that have no place.
    """

    tensors: Mapping[str, Tensor]
    prefix: str
    left_out: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        said = f"{len(self.tensors)} tensors loaded" + (f" from below {self.prefix!r}" if self.prefix else "")
        said += f"; {len(self.left_out)} keep their initialisation{_some(self.left_out)}"
        return f"{said}; {len(self.unexpected)} of the checkpoint not used{_some(self.unexpected)}"


def start(backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Load the weights that the section `backbone` names, and freeze the layers that it says."""
    if config.get("weights") and not any(tensor.is_meta for tensor in backbone.parameters()):
        found = fit(backbone, config)
        own = backbone.state_dict()
        for name, tensor in found.tensors.items():
            own[name].copy_(tensor)
    if config.get("freeze"):
        freeze(backbone, config["freeze"])


# ------------------------------------------------------------------------- weights


def fit(backbone: nn.Module, config: Mapping[str, Any]) -> Start:
    """Which tensors of the checkpoint go where.

    Raises ValueError where none does or several prefixes fit alike, and `Misplaced` where the file is not here or not
    the one that was launched with.
    """
    checkpoint = _checkpoint(str(config["weights"]), config.get("weights_sha256"))
    own = {name: tensor for name, tensor in backbone.state_dict().items() if not name.endswith(COUNTER)}
    fitting: dict[str, dict[str, tuple[str, Tensor]]] = {}  # prefix -> our name -> the checkpoint's, and its tensor
    for names in _namings(backbone, own):
        for prefix, pairs in _below(checkpoint, names, config.get("weights_prefix")).items():
            shaped = {
                ours: (theirs, _shaped(backbone, ours, own, checkpoint[theirs])) for ours, theirs in pairs.items()
            }
            fits = {ours: (theirs, tensor) for ours, (theirs, tensor) in shaped.items() if tensor is not None}
            if fits:
                fitting[prefix] = fits
        if fitting:
            break
    prefix = _best(config, fitting) if fitting else _refuse(config, own, checkpoint)
    used = {theirs for theirs, _ in fitting[prefix].values()}
    unexpected = [name for name in checkpoint if name not in used and not name.endswith(COUNTER)]
    tensors = {ours: tensor for ours, (_, tensor) in fitting[prefix].items()}
    return Start(tensors, prefix, [name for name in own if name not in tensors], unexpected)


def _best(config: Mapping[str, Any], fitting: Mapping[str, Mapping[str, Any]]) -> str:
    most = max(map(len, fitting.values()))
    best = [prefix for prefix, fits in fitting.items() if len(fits) == most]
    if len(best) > 1:
        raise ValueError(
            f"backbone.weights={config['weights']} fits as well below {' and '.join(map(repr, best))}: choose one by "
            "backbone.weights_prefix=."
        )
    return best[0]


def _namings(backbone: nn.Module, own: Mapping[str, Tensor]) -> Iterator[dict[str, str]]:
    """Names that a checkpoint may have, to the backbone's: the published ones, then ours."""
    if published := getattr(backbone, "published", None):
        ours, theirs = published
        yield {theirs + name.removeprefix(ours): name for name in own if name.startswith(ours)}
    yield {name: name for name in own}


def _below(checkpoint: Mapping[str, Tensor], names: Mapping[str, str], given: str | None) -> dict[str, dict[str, str]]:
    """Prefix -> our names, each with the checkpoint's, of all that are known once the prefix is taken away."""
    found: dict[str, dict[str, str]] = {}
    for key in checkpoint:
        parts = key.split(".")
        for cut in range(len(parts)):
            prefix, name = "".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])
            if name in names and (given is None or f".{given.strip('.')}." in f".{prefix}"):
                found.setdefault(prefix, {})[names[name]] = key
    return found


def _shaped(backbone: nn.Module, name: str, own: Mapping[str, Tensor], tensor: Tensor) -> Tensor | None:
    """A tensor in the shape that the backbone has; a backbone may `resize` what depends on the image's size."""
    if tensor.shape == own[name].shape:
        return tensor
    resize = getattr(backbone, "resize", None)
    return resize(name, tensor) if resize else None


def _refuse(config: Mapping[str, Any], own: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor]) -> NoReturn:
    given = f" below {config['weights_prefix']!r}" if config.get("weights_prefix") else ""
    has, wants = (
        ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(of.items())[:SHOWN])
        for of in (checkpoint, own)
    )
    raise ValueError(
        f"backbone.weights={config['weights']}: none of its {len(checkpoint)} tensors{given} has the name and shape of "
        f"one of {config['name']}. It has {has or 'none'} ...; {config['name']} has {wants} ..."
    )


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})" if names else ""


@lru_cache(maxsize=1)
def _checkpoint(file: str, expected: str | None) -> dict[str, Tensor]:
    """The tensors of a file by dotted names, on the host. expected: SHA-256 of the file at the launch."""
    path = Path(file)
    if not path.is_file():
        raise Misplaced(f"backbone.weights={file} is not here: it must be on storage that all nodes share.")
    if expected is not None and sha256_file(path) != expected:
        raise Misplaced(f"backbone.weights={file} is not the file that the chain was launched with: put it back.")
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of torch's with weights_only; ValueError where it is neither."""
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # DINO's and MAE's files keep their options
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"backbone.weights={path} cannot be read as weights ({reason}): it is damaged, or holds more than tensors; "
            "save the state_dict alone, by safetensors or torch.save."
        ) from None
    return dict(_flat(loaded))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix.removesuffix("."), value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{prefix}{key}.")


def imagenet_file(name: str) -> tuple[Path, str]:
    """Where torch's cache has torchvision's ImageNet weights of a network, and the address that they come from."""
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(name).IMAGENET1K_V1
    except (ValueError, AttributeError):
        raise ValueError(
            f"backbone.weights=imagenet: torchvision has no ImageNet weights of {name}: give a file, "
            "backbone.weights=FILE, or choose backbone=resnet18."
        ) from None
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name), weights.url


def imagenet_statistics(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (C,) that torchvision's weights were trained with, of pixels in [0, 1]."""
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    return (mean, std) if channels == len(mean) else (mean.mean(keepdims=True), std.mean(keepdims=True))


def fetch(path: Path, url: str) -> None:
    """Download weights into torch's cache, checked by the hash in their name; ValueError where there is no network."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"backbone.weights=imagenet: {url} cannot be fetched ({error}), and {path} is not there. Fetch it where "
            f"there is a network and put it there, or give backbone.weights=FILE."
        ) from None


# ------------------------------------------------------------------------- frozen layers


def freeze(backbone: nn.Module, until: bool | str) -> None:
    """Keep layers as they are: all, or those up to and with the named one, in the order in which they are built.

    Their weights get no gradients, and their batch norm, dropout and stochastic depth act as in evaluation, always.
    Raises ValueError, naming the layers there are, for one that is unknown.
    """
    modules = dict(backbone.named_modules())
    last = "" if until is True else _named(backbone, str(until))
    reached = False
    for name, module in modules.items():
        inside = not last or name == last or name.startswith(f"{last}.")
        if reached and not inside:
            return
        reached = reached or inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if next(module.children(), None) is None:
            module.eval()
            module.train = lambda mode=True, module=module: module


def _named(backbone: nn.Module, until: str) -> str:
    ours, theirs = getattr(backbone, "published", ("", ""))
    names = [name for name, _ in backbone.named_modules() if name]
    inner = [theirs + name.removeprefix(ours) for name in names if name.startswith(ours)]
    for name in names:
        if until in (name, theirs + name.removeprefix(ours) if name.startswith(ours) else name):
            return name
    shown = [name for name in inner if name.removeprefix(theirs).count(".") == 0]
    raise ValueError(f"backbone.freeze={until} is no layer of it: true, or one of {', '.join(shown)}, or one inside.")


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
