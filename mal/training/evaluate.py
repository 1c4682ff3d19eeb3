"""Evaluating M: accuracy or mean IoU on the whole test set, and how far its confidence is from its accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mal.data.image_set import IGNORED
from mal.data.loader import Loader
from mal.training.diagnostics import BINS, auc, calibration_error
from mal.training.scan import Scanner


@dataclass(frozen=True)
class Evaluation:
    """Accuracy or mean IoU in percent, and that of each class (NaN where there is none of it).

    confidence: the mean probability of the predicted class, percent; calibration: its expected calibration error.
    error_auc: how well entropy finds the errors: the probability that a wrong answer has more of it than a right one.
    """

    value: float
    per_class: np.ndarray
    confidence: float = math.nan
    calibration: float = math.nan
    error_auc: float = math.nan


def evaluate(model: nn.Module, scanner: Scanner, test: Loader, labels: np.ndarray, classes: int) -> Evaluation:
    """Accuracy and calibration of M, or of C on F, on the whole test set; labels: int64 (N,)."""

    def predict(images: Tensor) -> dict[str, Tensor]:
        logits = model(images).float()
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        return {"confidence": confidence, "predicted": predicted, "entropy": pixel_entropy(logits)}

    found = scanner.scan("evaluate", test, np.arange(len(labels)), predict, model)
    confidence, predicted = found["confidence"], found["predicted"]
    count = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels[predicted == labels], minlength=classes)
    with np.errstate(invalid="ignore"):
        per_class = 100 * correct / count
    right, value = predicted == labels, 100 * correct.sum() / count.sum()
    found_by_entropy = auc(found["entropy"][~right], found["entropy"][right])
    calibration = calibration_error(confidence, right)
    return Evaluation(value, per_class, float(100 * confidence.mean()), calibration, found_by_entropy)


def evaluate_maps(model: nn.Module, scanner: Scanner, test: Loader, classes: int) -> Evaluation:
    """Mean IoU of M on the whole test set, over the classes that are in its maps or in M's, without ignored pixels.

    Streamed: of each image only its counts are kept.
    """

    def count(images: Tensor, maps: Tensor) -> dict[str, Tensor]:
        confidence, predicted = model(images).float().softmax(dim=1).max(dim=1)
        known, hit = maps != IGNORED, predicted == maps
        total = torch.where(known, confidence, 0).sum(dim=(1, 2))
        found = {"pixels": overlaps(predicted, maps, classes), "confidence": total}
        return found | {"distance": distances(confidence, hit, known)}

    found = scanner.scan("evaluate", test, np.arange(len(test)), count, model, with_labels=True)
    both, predicted, true = found["pixels"].sum(axis=0)
    with np.errstate(invalid="ignore"):
        per_class = 100 * both / (predicted + true - both)
    share = 100 / true.sum()
    calibration = np.abs(found["distance"].sum(axis=0, dtype=np.float64)).sum() * share
    confidence = found["confidence"].sum(dtype=np.float64) * share
    return Evaluation(float(np.nanmean(per_class)), per_class, float(confidence), float(calibration))


def overlaps(predicted: Tensor, maps: Tensor, classes: int) -> Tensor:
    """Pixels of each class in both, in the predicted and in the true map, of those not ignored: int64 (B, 3, K).

    predicted: int64 (B, H, W); maps: uint8 (B, H, W).
    """
    known, hit = maps != IGNORED, predicted == maps
    first = classes * torch.arange(len(maps), device=maps.device)[:, None, None]

    def count(of: Tensor, where: Tensor) -> Tensor:
        return torch.bincount((of + first)[where], minlength=classes * len(maps)).view(len(maps), classes)

    return torch.stack([count(predicted, known & hit), count(predicted, known), count(maps, known)], dim=1)


def distances(confidence: Tensor, hit: Tensor, known: Tensor) -> Tensor:
    """Sum of confidence less correctness over the known pixels of each bin of confidence: (B, BINS); all (B, H, W).

    A sum for each bin, because a weighted count is not deterministic on CUDA.
    """
    place = (confidence * BINS).ceil().clamp(1, BINS) - 1
    distance = torch.where(known, confidence - hit.float(), 0)
    return torch.stack([torch.where(place == b, distance, 0).sum(dim=(1, 2)) for b in range(BINS)], dim=1)


def pixel_entropy(logits: Tensor) -> Tensor:
    """H of each prediction, in nats: (B, K, ...) to float32 (B, ...)."""
    log_p = logits.float().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)
