"""Words and times of a cluster profile as its file has them: YAML 1.1 reads 8:00:00 as 28,800 and 00123 as 83."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mal.config.conf_folders import yaml_path

# Slurm's own words: names of people's making, its notations of time, options by their long names.
WORDS = ("partition", "account", "qos", "constraint", "exclude", "gpu_type", "time", "sbatch")


def as_written(section: dict[str, Any], name: str, own: Path | None) -> dict[str, Any]:
    """A composed section `cluster` in which what is in the file of profile `name`, or of a parent, is as written there.

    name: of the profile; own: the user's folder of files. What the command line says stays: it is not read as YAML 1.1.
    """
    path = yaml_path("cluster", name, own)
    if not path.is_file():
        return section
    read: Any = OmegaConf.to_container(OmegaConf.load(path))
    written: Any = yaml.load(path.read_text(), yaml.BaseLoader)
    for parent in read.get("defaults", []):
        section = as_written(section, str(parent), own) if parent != "_self_" else section
    return section | {key: _restored(section[key], read[key], written[key]) for key in WORDS if key in read}


def _restored(value: Any, read: Any, written: Any) -> Any:
    if isinstance(value, dict) and isinstance(read, dict):
        return {k: _restored(v, read[k], written.get(k, v)) if k in read else v for k, v in value.items()}
    changed = isinstance(read, int | float) and str(read).lower() != str(written).lower()
    return written if changed and value == read else value
