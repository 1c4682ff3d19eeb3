"""What a round leaves on disk: its files by name, from labelled sets and metrics to samples for the report."""

from __future__ import annotations

import io
import math
import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mal import __version__
from mal.config.people import FILES
from mal.config.schema import Chain
from mal.data.augment import Augmentation
from mal.data.dataset import Dataset
from mal.data.image_set import IGNORED
from mal.methods import Setting
from mal.models.heads import TaskModel, pooled
from mal.models.pretrained import Start
from mal.process.device import Device, gpu_versions
from mal.process.memory import peak_device_mib, peak_host_mib, reserved_device_mib
from mal.run import folder as run_folder
from mal.run.code_copy import code_hash, git_state
from mal.run.heartbeat import Progress, now
from mal.run.ledger import Oracle, State
from mal.training.evaluate import Evaluation, pixel_entropy
from mal.training.memory_estimate import Footprint

FEATURES_SAMPLE = 2000  # unlabelled images on a map of features


@dataclass(frozen=True)
class Outcome:
    """What a round arrived at. query: int64 (b,), None in a chain's last round; samples: further files by name.

    taken: phases that another chain had trained alike -> that chain, METHOD/seed-S.
    """

    number: int
    state: State
    model: TaskModel
    evaluation: Evaluation
    signals: dict[str, float]
    query: np.ndarray | None
    samples: dict[str, bytes]
    floor: dict[str, float | None] | None
    history: dict[str, Any]
    taken: dict[str, str]
    progress: Progress


@dataclass(frozen=True)
class Recorder:
    """Turns the outcome of each round of one chain into the files of its commit."""

    chain: Path
    config: Chain
    dataset: Dataset
    device: Device
    expected: Footprint
    start: Start | None = None  # what the pretrained weights gave

    def files(self, outcome: Outcome) -> dict[str, Any]:
        """The round's files by name, in the order in which they are written."""
        files: dict[str, Any] = {run_folder.LABELED: outcome.state.labelled}
        if outcome.query is not None:
            files[run_folder.QUERY] = outcome.query
        if self.config.dataset.oracle == FILES:
            fixed = run_folder.round_folder(self.chain, outcome.number) / run_folder.ANSWERS
            files[run_folder.ANSWERS] = fixed.read_bytes()
        known = {name: None if math.isnan(value) else value for name, value in outcome.signals.items()}
        files[run_folder.METRICS] = self._metrics(outcome) | {"signals": known}
        files[run_folder.HISTORY] = outcome.history
        if self.config.keep_model or "continue" in self.config.task.init:
            weights = {name: tensor.cpu().contiguous() for name, tensor in outcome.model.state_dict().items()}
            files[run_folder.MODEL] = safetensors.torch.save(weights)
        files |= outcome.samples
        provenance = self._provenance(outcome.state, outcome.progress)
        files[run_folder.PROVENANCE] = provenance | ({"taken": outcome.taken} if outcome.taken else {})
        return files

    def _metrics(self, outcome: Outcome) -> dict[str, Any]:
        spec, labelled, refused = self.config.dataset, outcome.state.labelled, outcome.state.refused
        pool = len(self.dataset.pool) - len(refused)
        number, evaluation, progress = outcome.number, outcome.evaluation, outcome.progress
        metrics: dict[str, Any] = {
            "dataset": spec.name,
            "method": self.config.method["name"],
            "backbone": self.config.backbone["name"],
            "seed": self.config.seed,
            "round": number,
            "labeled": len(labelled),
            "pool": pool,
            "percent": 100 * len(labelled) / pool,
            "metric": "miou" if spec.task == "segmentation" else "accuracy",
            "value": float(evaluation.value),
            "classes": spec.classes,
            "per_class": [None if np.isnan(v) else float(v) for v in evaluation.per_class],
            "seconds": round(progress.seconds, 3),
            "preemptions": progress.attempts - 1,
            "device": self.device.name,
            "gpus": self.device.world.size if self.device.torch.type == "cuda" else 0,
        }
        if found := [f"{phase}: {each['diverged']}" for phase, each in outcome.history.items() if "diverged" in each]:
            metrics["diverged"] = found
        if outcome.floor is not None:
            metrics["floor"] = outcome.floor
        if spec.oracle == FILES:
            return metrics | {"refused": len(refused)}
        metrics["pool_classes"] = self._pool_classes(number)
        if outcome.query is not None:
            metrics["query_classes"] = self._class_counts(outcome.query)
        return metrics

    def _class_counts(self, indices: np.ndarray) -> list[int]:
        """Images, or pixels, of each class; 64 maps at a time."""
        classes, counts, oracle = self.config.dataset.classes, np.zeros(IGNORED + 1, np.int64), self.dataset.oracle
        if self.config.dataset.task != "segmentation":
            return np.bincount(oracle.label(indices), minlength=classes).tolist()
        for first in range(0, len(indices), 64):
            counts += np.bincount(oracle.label(indices[first : first + 64]).ravel(), minlength=IGNORED + 1)
        return counts[:classes].tolist()

    def _pool_classes(self, number: int) -> list[int]:
        """Of the whole pool: read once per chain, since maps may be files; the ledger has checked the round before."""
        if number == 0:
            return self._class_counts(self.dataset.pool)
        before = run_folder.read_json(run_folder.round_folder(self.chain, number - 1) / run_folder.METRICS)
        return list(before["pool_classes"])

    def _provenance(self, state: State, progress: Progress) -> dict[str, Any]:
        commit, dirty = git_state()
        cuda = self.device.torch.type == "cuda"
        return {
            "fingerprint": self.config.fingerprint(),
            "parent": state.parent,
            "pool": self.dataset.digest,
            "code": code_hash(),
            "git_commit": commit,
            "git_dirty": dirty,
            "versions": {
                "mal": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "cuda": torch.version.cuda if cuda else None,
                **(gpu_versions() if cuda else {}),
            },
            **({"weights": self._weights(self.start)} if self.start else {}),
            "tf32": torch.backends.cudnn.allow_tf32 if cuda else None,
            "host": socket.gethostname(),
            "device": self.device.name,
            "threads": torch.get_num_threads(),
            "world_size": self.device.world.size,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "expected_host_mib": self.expected.host,
            "expected_device_mib": self.expected.device if self.expected.cuda else None,
            "peak_host_mib": peak_host_mib(),
            "peak_device_mib": peak_device_mib(self.device.torch),
            "reserved_device_mib": reserved_device_mib(self.device.torch),
            "started": progress.started,
            "finished": now(),
        }

    def _weights(self, start: Start) -> dict[str, Any]:
        keys = ("weights", "weights_sha256", "freeze", "normalise")
        told = {key: self.config.backbone[key] for key in keys if key in self.config.backbone}
        return told | {
            "prefix": start.prefix,
            "loaded": len(start.tensors),
            "left_out": start.left_out,
            "unexpected": start.unexpected,
        }


def samples(
    model: TaskModel, setting: Setting, query: np.ndarray | None, oracle: Oracle, augmentation: Augmentation
) -> dict[str, bytes]:
    """The files that keep_features and keep_queries ask for, by name; query: int64 (b,), None in a last round."""
    files = {}
    if setting.config.keep_features:
        files[run_folder.FEATURES] = sample_features(model, setting, query)
    if setting.config.keep_queries and query is not None:
        files[run_folder.QUERIES] = sample_queries(
            model, setting, query[: setting.config.keep_queries], oracle, augmentation
        )
    return files


def sample_features(model: TaskModel, setting: Setting, query: np.ndarray | None) -> bytes:
    """An .npz for the map of a round: M's features (n, d) of the labelled, the queried and a sample of the others.

    indices: int64 (n,); state: 0 unlabelled, 1 labelled, 2 queried.
    """
    queried = np.empty(0, np.int64) if query is None else query
    sample = setting.random("features").permutation(setting.unlabelled)[:FEATURES_SAMPLE]
    indices = np.unique(np.concatenate([setting.labelled, queried, sample]))
    by_backbone = lambda images: {"features": pooled(model.backbone(images))}  # noqa: E731
    scan = setting.scan_at("features", indices, by_backbone, model)
    state = np.isin(indices, setting.labelled) + 2 * np.isin(indices, queried)
    return _npz(indices=indices, features=scan["features"].astype(np.float16), state=state.astype(np.uint8))


def sample_queries(
    model: TaskModel, setting: Setting, query: np.ndarray, oracle: Oracle, augmentation: Augmentation
) -> bytes:
    """An .npz of queried images and of what M makes of them before their labels are bought.

    indices: int64 (n,); images: uint8 (n, C, H, W) as M sees them; truth and predicted: int64 (n,) or uint8 maps
    (n, H, W); entropy: of M for each image or pixel, nats, float16, likewise.
    """

    def predictions(images: Tensor) -> dict[str, Tensor]:
        logits = model(images)
        predicted = logits.argmax(dim=1)
        return {"predicted": predicted.byte() if predicted.ndim == 3 else predicted, "entropy": pixel_entropy(logits)}

    scan = setting.scan_at("queries", query, predictions, model)
    centre = augmentation.centre
    images = centre(setting.images(query)).cpu().numpy()
    truth = setting.device.world.once(lambda: oracle.label(query))
    scan |= {"truth": centre(truth) if truth.ndim == 3 else truth, "entropy": scan["entropy"].astype(np.float16)}
    return _npz(indices=query, images=images, **scan)


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
