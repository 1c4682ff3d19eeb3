"""One round of a chain, from what is on disk to its commit.

labelled, unlabelled = ledger of the round      # round 0: the initial pool, drawn from (dataset, seed) alone
method.fit()                                    # MAL: F, C, D by Algorithm 1; a baseline: whatever it needs
model = task model M (Algorithm 3)              # evaluated on the test set
scores = method.score(model)                    # every unlabelled index exactly once, no augmentation
query = method.select(scores, budget)           # distinct unlabelled images, in order of choice
commit
"""

from __future__ import annotations

import gc
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from mal.config.schema import Chain
from mal.data.augment import Augmentation, build_augmentation
from mal.data.dataset import Dataset
from mal.data.image_set import Files, Note
from mal.data.loader import build_loader, count_workers, require_memory, visible_labels
from mal.data.pixel_statistics import pixel_statistics
from mal.files import sha256
from mal.labels.asking import asking_folder
from mal.labels.ledger import PeoplesLedger, bookkeeping
from mal.labels.sheet import request, why
from mal.methods import METHODS, Method, Query, Setting
from mal.methods.base import Scores
from mal.models.backbones import describe_start
from mal.models.heads import TaskModel
from mal.models.pretrained import IMAGENET, imagenet_statistics
from mal.process.device import Device
from mal.process.interrupt import Interrupt
from mal.record import Outcome, Recorder, samples
from mal.run import folder as run_folder
from mal.run.code_copy import code_hash
from mal.run.heartbeat import Progress
from mal.run.ledger import State, check_query, unlabelled
from mal.run.shared import Shared
from mal.task import train_task_model
from mal.training.evaluate import Evaluation, evaluate, evaluate_maps
from mal.training.floor import is_worth_it, simple_classifiers
from mal.training.loop import Trainer
from mal.training.memory_estimate import footprint
from mal.training.scan import Scanner, batch_of

log = logging.getLogger(__name__)


class Rounds:
    """Runs the rounds of one chain in this process; the dataset is read and put on the device once."""

    def __init__(
        self,
        chain: Path,
        config: Chain,
        dataset: Dataset,
        device: Device,
        interrupt: Interrupt,
        progress: Progress | None = None,
    ) -> None:
        """progress: the heartbeat of the first round to run, where it has begun."""
        self.chain, self.config, self.dataset, self.device = chain, config, dataset, device
        self.begun = progress
        self.interrupt, self.segmentation = interrupt, config.dataset.task == "segmentation"
        self.ledger, self.oracle = bookkeeping(chain, config, dataset)
        if config.loader == "memory":
            require_memory((dataset.train, dataset.test), device.torch)
        self.augmentation: Augmentation = build_augmentation(config.dataset, *self._statistics(), device.torch)
        nothing = visible_labels(len(dataset.train), np.empty(0, np.int64), np.empty(0, np.int64))
        workers = count_workers(config.workers, config.threads)
        note = self._note("read images", len(dataset.train))
        self.images = build_loader(config.loader, dataset.train, nothing, device.torch, workers, note, self._leave)
        self.test_labels = dataset.test.labels[np.arange(len(dataset.test))]
        self.test = build_loader(
            config.loader, dataset.test, self.test_labels, device.torch, workers, note, self._leave
        )
        expected = footprint(config, device.torch.type == "cuda")
        log.info("memory of a round: %s", expected)
        if (start := describe_start(config.backbone, config.dataset.channels)) is not None:
            log.info("weights of %s: %s", config.backbone["weights"], start)
        self.recorder = Recorder(chain, config, dataset, device, expected, start)

    def run(self, number: int) -> None:
        """Round `number`, from its last checkpoint where there is one, up to its commit.

        Where people are asked for the initial labels, it asks them and returns without a commit. Raises `Interrupted`
        where a stop is asked for, and `DamagedRun` where the rounds before are not as committed.
        """
        gc.collect()  # the scores of the round before hang in reference cycles: N x d numbers
        folder = run_folder.round_folder(self.chain, number)
        world = self.device.world
        if world.once(lambda: self._ask_first(number)):
            return
        state = world.once(lambda: self.ledger.state(number))
        progress, self.begun = self.begun or Progress(folder, number, self.interrupt), None
        try:
            setting, trainer, scanner = self._open(number, state, folder, progress)
            method = METHODS[self.config.method["acquisition"]](setting)
            method.fit()
            model = self._task_model(setting, trainer)
            evaluation = self._evaluate(model, scanner)
            signals = self._signals(model, evaluation, setting, scanner)
            query: np.ndarray | None = None
            kept: dict[str, bytes] = {}
            if setting.has_query:
                query, found, kept = self._query(method, model, setting)
                signals |= found
            kept |= samples(model, setting, query, self.oracle, self.augmentation)
            floor = self._floor(setting, progress)
            progress.phase("commit", 0)
        finally:
            if self.interrupt.cause:
                progress.leave(self.interrupt.cause)
        shared = trainer.shared
        taken = shared.taken if shared else {}
        outcome = Outcome(
            number, state, model, evaluation, signals, query, kept, floor, trainer.history, taken, progress
        )
        world.once(lambda: run_folder.commit(folder, self.recorder.files(outcome)))
        if shared:
            world.once(shared.clear)

    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation that images are normalised by: the pool's, or those of the weights that F starts from."""
        if self.config.backbone.get("normalise") == IMAGENET:
            return imagenet_statistics(self.config.dataset.channels)
        note = self._note("pixel statistics", len(self.dataset.pool))
        # By one process for all: the others would wait for its lock, and it for them where it asks whether to stop.
        return self.device.world.once(lambda: pixel_statistics(self.dataset, note))

    def _note(self, phase: str, steps: int) -> Note:
        """Beats the heart while images are decoded, and leaves where a stop is asked for."""
        progress = self.begun
        if progress is not None:
            progress.phase(phase, steps)

        def note(done: int, total: int) -> None:
            if progress is not None:
                progress.at(done)
            self.interrupt.check()

        return note

    def _leave(self) -> None:
        """Leaves where a stop is asked for while a batch is waited for; several processes leave at a step's end."""
        if self.device.world.size == 1:
            self.interrupt.check()

    def _open(self, number: int, state: State, folder: Path, progress: Progress) -> tuple[Setting, Trainer, Scanner]:
        """What a method sees of the round, and the two that it trains and scans with."""
        labels = self.oracle.label(state.labelled)
        loader = self.images.showing(visible_labels(len(self.images), state.labelled, labels))
        origin = f"{self.config.fingerprint()}/{state.parent}/{self.dataset.digest}"
        trainer = Trainer(
            folder=folder / run_folder.CHECKPOINT,
            identity=sha256(origin.encode()),
            key=(self.config.seed, number),
            loader=loader,
            augmentation=self.augmentation,
            device=self.device,
            progress=progress,
            checkpoint_seconds=60 * self.config.checkpoint_minutes,
            shared=self._shared(number, labels) if self.config.share else None,
        )
        scanner = Scanner(
            self.augmentation,
            self.device,
            progress,
            batch_of(*self._predictions()),
            folder=trainer.folder,
            identity=trainer.identity,
        )
        remaining = np.setdiff1d(unlabelled(self.dataset.pool, state.labelled), state.refused)
        setting = Setting(self.config, number, state.labelled, remaining, loader, trainer, scanner)
        return setting, trainer, scanner

    def _shared(self, number: int, labels: np.ndarray) -> Shared:
        """What other chains may have trained alike in a round, and all that decides it besides networks and steps."""
        config, device, augmentation = self.config, self.device, self.augmentation
        origin = {
            "seed": config.seed,
            "round": number,
            "data": [self.dataset.digest, asdict(config.dataset), config.loaders()],
            "pixels": [augmentation.mean.tolist(), augmentation.std.tolist()],
            "labels": sha256(labels.tobytes()),
            "backbone": config.backbone,
            "arithmetic": [config.precision, config.tf32, config.sync_batch_norm, config.cuda_graphs],
            "threads": torch.get_num_threads(),
            "machine": [device.name, device.world.size, torch.__version__, torch.version.cuda],
            "code": code_hash(),
        }
        return Shared(self.chain, config, number, repr(origin))

    def _task_model(self, setting: Setting, trainer: Trainer) -> TaskModel:
        init = self.config.task.init
        encoder = setting.minimax.encoder if setting.starts_from_f else None
        before = None
        if "continue" in init and setting.number > 0:
            path = run_folder.round_folder(self.chain, setting.number - 1) / run_folder.MODEL
            weights = safetensors.torch.load(self.device.world.once(path.read_bytes))
            before = {name: tensor.to(self.device.torch) for name, tensor in weights.items()}
        return train_task_model(self.config, trainer, setting.labelled, setting.unlabelled, encoder, before)

    def _evaluate(self, model: nn.Module, scanner: Scanner) -> Evaluation:
        if self.segmentation:
            return evaluate_maps(model, scanner, self.test, self.config.dataset.classes)
        return evaluate(model, scanner, self.test, self.test_labels, self.config.dataset.classes)

    def _predictions(self) -> tuple[int, int]:
        """Classes, and how many predictions of them an image gets."""
        dataset = self.config.dataset
        return dataset.classes, (dataset.crop or dataset.size) ** 2 if self.segmentation else 1

    def _signals(
        self, model: nn.Module, evaluation: Evaluation, setting: Setting, scanner: Scanner
    ) -> dict[str, float]:
        """Of M and, where it is trained, C: confidence against accuracy, and whether uncertainty finds the errors."""
        signals = {"confidence": evaluation.confidence, "calibration": evaluation.calibration}
        if not self.segmentation:
            signals |= {"error_auc": evaluation.error_auc, "train_value": self._train_value(model, setting)}
        if setting.minimax_is_trained:
            classifier = nn.Sequential(setting.minimax.encoder, setting.minimax.classifier)
            of_c = self._evaluate(classifier, scanner)
            signals |= {"c_value": of_c.value, "c_confidence": of_c.confidence, "c_calibration": of_c.calibration}
            if not self.segmentation:
                signals["c_error_auc"] = of_c.error_auc
        return signals

    def _train_value(self, model: nn.Module, setting: Setting) -> float:
        """M's accuracy on the labelled images as they are, percent: below 100 its training has not converged."""

        def predict(images: Tensor) -> dict[str, Tensor]:
            return {"predicted": model(images).argmax(dim=1)}

        predicted = setting.scan_labelled(predict, model, phase="evaluate labelled")["predicted"]
        return float(100 * np.mean(predicted == self.oracle.label(setting.labelled)))

    def _floor(self, setting: Setting, progress: Progress) -> dict[str, float | None] | None:
        """What simple classifiers reach on the labelled images; None where the configuration leaves it out."""
        wanted, count, test = self.config.floor, len(setting.labelled), len(self.test)
        pixels = setting.config.dataset.channels * setting.config.dataset.size**2
        if self.segmentation or wanted == "off":
            return None
        if wanted == "auto" and not is_worth_it(count, test, pixels, progress.seconds):
            return None
        progress.phase("floor", 0)
        labels = self.oracle.label(setting.labelled)

        def compute() -> dict[str, float | None]:
            images = setting.images(setting.labelled).cpu().numpy()
            test_images = self.test.load(np.arange(test)).images.cpu().numpy()
            return simple_classifiers(images, labels, test_images, self.test_labels, self.interrupt.check)

        return self.device.world.once(compute)

    def _query(
        self, method: Method, model: TaskModel, setting: Setting
    ) -> tuple[np.ndarray, dict[str, float], dict[str, bytes]]:
        """The query, what the method has to say of it, and what people are given to label, by name."""
        name, budget = self.config.method["name"], min(self.config.budget, len(setting.unlabelled))
        scores = method.score(model)
        query = self.device.world.once(lambda: method.select(scores, budget))
        if not isinstance(query, Query):
            raise TypeError(
                f"select of method {name} returned {type(query).__name__}, which does not say what its numbers are: "
                "return self.setting.query(positions=...) for places in unlabelled, or "
                "self.setting.query(indices=...) for absolute pool indices."
            )
        check_query(query.indices, budget, setting.unlabelled, f"The query of method {name}")
        asked = self._request(query, scores, model, setting) if isinstance(self.ledger, PeoplesLedger) else {}
        return query.indices, method.diagnostics(scores), asked

    def _request(self, query: Query, scores: Scores, model: TaskModel, setting: Setting) -> dict[str, bytes]:
        """What people are given to label: the images of a query, with M's guesses and the method's reasons."""
        names, guesses = self.config.dataset.class_names or [], [""] * len(query)
        if not self.segmentation:
            scan = setting.scan_at("guess", query.indices, lambda x: {"class": model(x).argmax(dim=1)}, model)
            guesses = [names[label] for label in scan["class"]]
        reasons = why(scores, query.positions, self.config.method["name"])
        return self.device.world.once(
            lambda: self._sheet(query.indices, f"after round {setting.number}", guesses, reasons)
        )

    def _ask_first(self, number: int) -> bool:
        """Ask people for the initial labels, where that is to be done before round `number`."""
        indices = self.ledger.to_ask(number) if isinstance(self.ledger, PeoplesLedger) else None
        if indices is None:
            return False
        sheet = self._sheet(indices, "at first", [""] * len(indices), ["initial: drawn at random"] * len(indices))
        run_folder.commit(asking_folder(self.chain, 0), {run_folder.QUERY: indices, **sheet})
        return True

    def _sheet(self, indices: np.ndarray, when: str, guesses: list[str], reasons: list[str]) -> dict[str, bytes]:
        train, title = self.dataset.train, f"{self.config.name}: {self.config.method['name']}, {when}"
        assert isinstance(train, Files)
        return request(train, indices, title, guesses, reasons)
