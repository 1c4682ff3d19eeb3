"""One round of a chain, from what is on disk to its commit.

labelled, unlabelled = ledger of the round      # round 0: the initial pool, drawn from (dataset, seed) alone
method.fit()                                    # MAL: F, C, D by Algorithm 1; a baseline: whatever it needs
model = task model M (Algorithm 3)              # evaluated on the test set
scores = method.score(model)                    # every unlabelled index exactly once, no augmentation
query = method.select(scores, budget)           # absolute pool indices, in order of choice
commit
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import platform
import socket
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from mal import __version__, results
from mal.config import Chain
from mal.data.augment import Augmentation, build_augmentation
from mal.data.dataset import Dataset
from mal.data.loader import build_loader, count_workers, visible_labels
from mal.data.moments import pixel_statistics
from mal.data.splits import IGNORED
from mal.device import Device
from mal.footprint import footprint
from mal.interrupt import Interrupt
from mal.maps import evaluate_maps
from mal.memory import peak_device_mib, peak_host_mib
from mal.methods import METHODS, Method, Setting
from mal.models.heads import TaskModel
from mal.pool import Ledger, State, check_query, initial_labelled, unlabelled
from mal.progress import Progress, now
from mal.provenance import code_hash, git_state
from mal.samples import samples
from mal.scan import Scanner, batch_of
from mal.task import Evaluation, evaluate, train_task_model
from mal.training import Trainer

log = logging.getLogger(__name__)


class Rounds:
    """Runs the rounds of one chain in this process; the dataset is read and put on the device once."""

    def __init__(self, chain: Path, config: Chain, dataset: Dataset, device: Device, interrupt: Interrupt) -> None:
        self.chain, self.config, self.dataset, self.device = chain, config, dataset, device
        self.interrupt, self.segmentation = interrupt, config.dataset.task == "segmentation"
        initial = initial_labelled(dataset.pool, config.initial, config.dataset.name, config.seed)
        self.ledger = Ledger(chain, dataset.pool, dataset.digest, initial, config.budget, config.fingerprint())
        mean, std = pixel_statistics(dataset, interrupt.check)
        self.augmentation: Augmentation = build_augmentation(config.dataset, mean, std, device.torch)
        nothing = visible_labels(len(dataset.train), np.empty(0, np.int64), np.empty(0, np.int64))
        workers = count_workers(config.workers, config.threads)
        self.images = build_loader(config.loader, dataset.train, nothing, device.torch, workers)
        self.test_labels = dataset.test.labels[np.arange(len(dataset.test))]
        self.test = build_loader(config.loader, dataset.test, self.test_labels, device.torch, workers)
        self.footprint = footprint(config, device.torch.type == "cuda")
        log.info("memory of a round: %s", self.footprint)

    def run(self, number: int) -> None:
        """Round `number`, from its last checkpoint where there is one, up to its commit.

        Raises `Interrupted` where a stop is asked for, and `DamagedRun` where the rounds before are not as committed.
        """
        folder = results.round_folder(self.chain, number)
        world = self.device.world
        state = world.once(lambda: self.ledger.state(number))
        progress = Progress(folder, number, self.interrupt)
        try:
            setting = self._setting(number, state, folder, progress)
            method = METHODS[self.config.method["acquisition"]](setting)
            method.fit()
            model = self._task_model(setting, number)
            evaluation = self._evaluate(model, setting.scanner)
            signals = self._signals(evaluation, setting)
            query = None
            if number + 1 < self.config.rounds:
                query, found = self._query(method, model, setting)
                signals |= found
            kept = samples(model, setting, query, self.dataset.oracle)
            progress.phase("commit", 0)
        finally:
            if self.interrupt.cause:
                progress.leave(self.interrupt.cause)
        outcome = setting, state, model, evaluation, signals, query, kept
        world.once(lambda: results.commit(folder, self._files(*outcome)))

    def _files(
        self,
        setting: Setting,
        state: State,
        model: TaskModel,
        evaluation: Evaluation,
        signals: dict[str, float],
        query: np.ndarray | None,
        kept: dict[str, bytes],
    ) -> dict[str, Any]:
        """The round's files by name, in the order in which they are written."""
        number, progress = setting.number, setting.trainer.progress
        files: dict[str, Any] = {results.LABELED: state.labelled}
        if query is not None:
            files[results.QUERY] = query
        files[results.METRICS] = self._metrics(number, state, evaluation, query, progress)
        known = {name: None if math.isnan(value) else value for name, value in signals.items()}
        files[results.METRICS]["signals"] = known
        files[results.HISTORY] = setting.trainer.history
        if self.config.keep_model or self.config.task.init == "continue":
            weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
            files[results.MODEL] = safetensors.torch.save(weights)
        files |= kept
        files[results.PROVENANCE] = self._provenance(state, progress)
        return files

    def _setting(self, number: int, state: State, folder: Path, progress: Progress) -> Setting:
        labels = self.dataset.oracle.label(state.labelled)
        loader = self.images.showing(visible_labels(len(self.images), state.labelled, labels))
        origin = f"{self.config.fingerprint()}/{state.parent}/{self.dataset.digest}"
        trainer = Trainer(
            folder=folder / results.CHECKPOINT,
            identity=hashlib.sha256(origin.encode()).hexdigest(),
            key=(self.config.seed, number),
            loader=loader,
            augmentation=self.augmentation,
            device=self.device,
            progress=progress,
            checkpoint_seconds=60 * self.config.checkpoint_minutes,
        )
        scanner = Scanner(
            self.augmentation,
            self.device,
            progress,
            batch_of(*self._predictions()),
            folder=trainer.folder,
            identity=trainer.identity,
        )
        remaining = unlabelled(self.dataset.pool, state.labelled)
        return Setting(self.config, number, state.labelled, remaining, loader, trainer, scanner)

    def _task_model(self, setting: Setting, number: int) -> TaskModel:
        init = self.config.task.init
        encoder = setting.minimax.encoder if init == "from_f" else None
        before = None
        if init == "continue" and number > 0:
            path = results.round_folder(self.chain, number - 1) / results.MODEL
            weights = safetensors.torch.load(self.device.world.once(path.read_bytes))
            before = {name: tensor.to(self.device.torch) for name, tensor in weights.items()}
        pool = len(self.dataset.pool)
        return train_task_model(self.config, setting.trainer, setting.labelled, pool, encoder, before)

    def _evaluate(self, model: nn.Module, scanner: Scanner) -> Evaluation:
        if self.segmentation:
            return evaluate_maps(model, scanner, self.test, self.config.dataset.classes)
        return evaluate(model, scanner, self.test, self.test_labels, self.config.dataset.classes)

    def _predictions(self) -> tuple[int, int]:
        """Classes, and how many predictions of them an image gets."""
        dataset = self.config.dataset
        return dataset.classes, (dataset.crop or dataset.size) ** 2 if self.segmentation else 1

    def _class_counts(self, indices: np.ndarray) -> list[int]:
        """Images, or pixels, of each class; 64 maps at a time."""
        classes, counts = self.config.dataset.classes, np.zeros(IGNORED + 1, np.int64)
        if not self.segmentation:
            return np.bincount(self.dataset.oracle.label(indices), minlength=classes).tolist()
        for first in range(0, len(indices), 64):
            counts += np.bincount(self.dataset.oracle.label(indices[first : first + 64]).ravel(), minlength=IGNORED + 1)
        return counts[:classes].tolist()

    def _pool_classes(self, number: int) -> list[int]:
        """Of the whole pool: read once a chain, since maps may be files; the ledger has checked the round before."""
        if number == 0:
            return self._class_counts(self.dataset.pool)
        before = results.read_json(results.round_folder(self.chain, number - 1) / results.METRICS)
        return list(before["pool_classes"])

    def _signals(self, evaluation: Evaluation, setting: Setting) -> dict[str, float]:
        """How far M's confidence is from its accuracy; the accuracy of C, where F and C were trained, and the same."""
        signals = {"confidence": evaluation.confidence, "calibration": evaluation.calibration}
        if "minimax" in vars(setting):
            classifier = nn.Sequential(setting.minimax.encoder, setting.minimax.classifier)
            of_c = self._evaluate(classifier, setting.scanner)
            signals |= {"c_value": of_c.value, "c_confidence": of_c.confidence, "c_calibration": of_c.calibration}
        return signals

    def _query(self, method: Method, model: TaskModel, setting: Setting) -> tuple[np.ndarray, dict[str, float]]:
        """The query, and what the method has to say of it."""
        scores = method.score(model)
        positions = self.device.world.once(lambda: method.select(scores, self.config.budget))
        query = setting.unlabelled[positions]
        check_query(query, self.config.budget, setting.unlabelled, f"The query of method {self.config.method['name']}")
        return query, method.diagnostics(scores)

    def _metrics(
        self, number: int, state: State, evaluation: Evaluation, query: np.ndarray | None, progress: Progress
    ) -> dict[str, Any]:
        classes = self.config.dataset.classes
        metrics: dict[str, Any] = {
            "dataset": self.config.dataset.name,
            "method": self.config.method["name"],
            "backbone": self.config.backbone["name"],
            "seed": self.config.seed,
            "round": number,
            "labeled": len(state.labelled),
            "pool": len(self.dataset.pool),
            "percent": 100 * len(state.labelled) / len(self.dataset.pool),
            "metric": "miou" if self.segmentation else "accuracy",
            "value": float(evaluation.value),
            "classes": classes,
            "pool_classes": self._pool_classes(number),
            "per_class": [None if np.isnan(v) else float(v) for v in evaluation.per_class],
            "seconds": round(progress.seconds, 3),
            "preemptions": progress.attempts - 1,
            "device": self.device.name,
            "gpus": self.device.world.size if self.device.torch.type == "cuda" else 0,
        }
        if query is not None:
            metrics["query_classes"] = self._class_counts(query)
        return metrics

    def _provenance(self, state: State, progress: Progress) -> dict[str, Any]:
        commit, dirty = git_state()
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
                "cuda": torch.version.cuda if self.device.torch.type == "cuda" else None,
            },
            "host": socket.gethostname(),
            "device": self.device.name,
            "threads": torch.get_num_threads(),
            "world_size": self.device.world.size,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "expected_host_mib": self.footprint.host,
            "expected_device_mib": self.footprint.device if self.footprint.cuda else None,
            "peak_host_mib": peak_host_mib(),
            "peak_device_mib": peak_device_mib(self.device.torch),
            "started": progress.started,
            "finished": now(),
        }
