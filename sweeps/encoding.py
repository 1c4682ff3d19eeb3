"""features=BACKBONE: a frozen encoder's features, made by the launch before its chains, once for all sweeps.

The keys of the encoder are `features` and those of ENCODER; the chains read the set as with features=DIR.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mal.config.compose import Sweep, compose_sweep
from mal.config.conf_folders import choices, own_folder
from mal.config.feature_sets import PARTS, labels_file, values_file
from mal.process.interrupt import EXIT_INTERRUPTED
from mal.run.code_copy import code_variables

ENCODER = ("backbone.weights", "backbone.weights_prefix", "backbone.normalise", "backbone.name", "loader")
SHARED = ("dataset", "experiment", "data", "conf", "device", "precision", "tf32", "threads", "workers", "check")
PERCEPTRON = "mlp"  # what the chains train; no encoder
ROOT = Path(__file__).resolve().parent.parent


def settle_features(arguments: list[str]) -> list[str] | None:
    """The arguments of the chains: features=BACKBONE made, and replaced by its folder. None: a dry run has said it all.

    Raises ValueError where the chains or the encoder are asked for wrongly, before anything is computed, and where
    Slurm would have to compute.
    """
    own, _ = own_folder(arguments)
    encoder = next((a.partition("=")[2] for a in reversed(arguments) if _key(a) == "features"), "")
    if encoder == PERCEPTRON or encoder not in choices("backbone", own):
        return arguments
    if given := [a for a in arguments if _key(a) == "backbone"]:
        raise ValueError(f"{given[0]}: the chains' backbone is a perceptron with features={encoder}: leave it out.")
    chains = [a for a in arguments if _key(a) not in ("features", *ENCODER)]
    words = [a for a in arguments if _key(a) in (*ENCODER, *SHARED) or a.startswith("dataset.")]
    words.append(f"backbone={encoder}")
    sweep, backbone = _checked(chains, words)
    from mal.features import is_complete, plan
    from mal.models.at_launch import to_fetch

    if sweep.dry_run and (missing := to_fetch(backbone)):
        print(f"weights: a launch first fetches {missing[1]} to {missing[0]}, then makes the features by them")
        return None
    extraction = plan(words)
    identity, folder = extraction.manifest["identity"][:12], extraction.folder
    extraction = replace(extraction, folder=folder.with_name(f"{folder.name}-{identity}"))  # other weights, another set
    if not is_complete(extraction):
        count = extraction.images
        command = ["-m", "mal.features", *words, f"out={extraction.folder}"]
        if sweep.dry_run:
            print(f"features: a launch first takes {count:,} images through {encoder}, into {extraction.folder}")
            return None
        if sweep.cluster.get("kind") == "slurm":
            raise ValueError(
                f"features={encoder}: the features of {count:,} images are not there yet, and a launch computes none "
                f"on a login node. Make them by a job, e.g. srun -n8 python {shlex.join(command)}; then launch again."
            )
        print(f"features: {count:,} images through {encoder}, into {extraction.folder}", flush=True)
        _make(command)
    return [*chains, f"features={extraction.folder}"]


def _key(argument: str) -> str:
    return argument.partition("=")[0]


def _checked(chains: Sequence[str], words: Sequence[str]) -> tuple[Sweep, dict[str, Any]]:
    """The sweep of the chains, as it will be once the features are there, and the encoder's section."""
    encoder = compose_sweep([*words, "methods=[random]", "seeds=1"]).chains[0]
    spec = encoder.dataset
    with tempfile.TemporaryDirectory() as folder:  # a set of as many images, of zeros, which take no room
        for part, count in zip(PARTS, (spec.train, spec.test), strict=True):
            np.lib.format.open_memmap(values_file(Path(folder), part), "w+", np.float16, (count, 1))
            labels = np.lib.format.open_memmap(labels_file(Path(folder), part), "w+", np.int16, (count,))
            labels[-1] = spec.classes - 1
            labels.flush()
        return compose_sweep([*chains, f"features={folder}"]), encoder.backbone


def _make(command: Sequence[str]) -> None:
    """Run the encoder in a process of its own. KeyboardInterrupt where it was stopped: the same command goes on."""
    variables = code_variables(ROOT, os.environ.get("PYTHONPATH", "")) | {"MAL_LAUNCHER": str(os.getpid())}
    status = subprocess.run([sys.executable, *command], env=os.environ | variables).returncode
    if status == EXIT_INTERRUPTED:
        raise KeyboardInterrupt("the features are not all there; the same command goes on")
    if status:
        raise ValueError(f"the features could not be made (exit status {status}); what was done stays done.")
