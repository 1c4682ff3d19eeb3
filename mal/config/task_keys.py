"""What goes with which task: backbones, methods and image sizes, checked on the login node, without torch.

A backbone's YAML has a `stride` (image pixels to a feature) where it gives maps of features, for segmentation. A method
has `tasks: [classification, segmentation]` in its YAML, beside its section, where it is defined for maps too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CLASSIFICATION = "classification"
TASKS = (CLASSIFICATION, "segmentation")


def check_task(dataset: Any, backbone: Mapping[str, Any], method: Mapping[str, Any], conf: Path) -> None:
    """ValueError, naming the key, where the parts of a chain are not for the same task.

    dataset: the section of a chain; conf: the folder mal/conf.
    """
    task, stride = dataset.task, backbone.get("stride")
    strides = {path.stem: _read(path).get("stride") for path in sorted((conf / "backbone").glob("*.yaml"))}
    if (stride is not None) != (task == "segmentation"):
        fitting = [name for name, each in strides.items() if (each is not None) == (task == "segmentation")]
        gives = "one feature vector per image" if stride is None else "maps of features"
        raise ValueError(
            f"backbone={backbone['name']} gives {gives}, but dataset.task={task} of {dataset.name}: choose backbone= "
            f"{', '.join(fitting)}."
        )
    allowed = tasks_of(str(method["acquisition"]), conf)
    if task not in allowed:
        fitting = sorted(path.stem for path in (conf / "method").glob("*.yaml") if task in tasks_of(path.stem, conf))
        raise ValueError(
            f"methods: {method['name']} is not defined for dataset.task={task} (only for {', '.join(allowed)}). For "
            f"{task}: {', '.join(fitting)}."
        )
    if stride is not None:
        _check_maps(dataset, backbone, strides)


def tasks_of(method: str, conf: Path) -> Sequence[str]:
    """The tasks that a method's YAML, or one that it starts from, says it is for; classification where none does."""
    file = _read(conf / "method" / f"{method}.yaml")
    if "tasks" in file:
        return list(file["tasks"])
    parents = [parent for parent in file.get("defaults", []) if parent != "_self_"]
    if not parents:
        return [CLASSIFICATION]
    return [task for task in TASKS if all(task in tasks_of(parent, conf) for parent in parents)]


@cache
def _read(path: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]


def _check_maps(dataset: Any, backbone: Mapping[str, Any], strides: Mapping[str, Any]) -> None:
    name, stride, side = backbone["name"], backbone["stride"], dataset.crop or dataset.size
    if stride != strides.get(name, stride):
        raise ValueError(f"backbone.stride={stride} cannot be changed: the layers of {name} make it {strides[name]}.")
    if side % stride:
        key = "dataset.crop" if dataset.crop else "dataset.size"
        raise ValueError(f"{key}={side} must be a multiple of {stride}, the stride of backbone={name}.")
    names = dataset.class_names
    if names is not None and len(names) != dataset.classes:
        raise ValueError(f"dataset.class_names has {len(names)} names for dataset.classes={dataset.classes}.")
