"""The floor: what simple classifiers reach on the pixels of the same labelled images, for the same test set.

A task model below it is badly trained, and comparing methods by it compares trainings. Fixed settings, of pixels in
[0, 1], by scikit-learn: 1-nearest neighbour; logistic regression with C = 1; an SVM with an RBF kernel, C = 10 and
gamma = 1 / (d var).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from mal.data.augment import scale_of

RATE = 2e9  # products of pixels per second of the SVM's kernel, the slowest part, on one core
SECONDS, SHARE = 5.0, 0.02  # floor=auto: at most so long, or so much of the round
MEMORY = 2**30  # bytes of the test set as float32, at most
NEAREST, LOGISTIC, SVM = "1nn", "logistic", "svm"


def is_worth_it(labelled: int, test: int, pixels: int, round_seconds: float) -> bool:
    """Whether floor=auto computes it: pixels are those of an image, over all channels."""
    affordable = labelled * test * pixels / RATE <= max(SECONDS, SHARE * round_seconds)
    return affordable and 4 * test * pixels <= MEMORY


def simple_classifiers(
    images: np.ndarray, labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray, check: Callable[[], None]
) -> dict[str, float | None]:
    """Accuracy in percent of each classifier; None where the labelled images are of one class, which only 1nn takes.

    images: uint8 (n, C, H, W), or features; labels: int64 (n,); test_images, test_labels: likewise; check: called
    between them, may raise.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    models: dict[str, Any] = {
        NEAREST: KNeighborsClassifier(n_neighbors=1),
        LOGISTIC: LogisticRegression(C=1.0, max_iter=1000),
        SVM: SVC(C=10.0, gamma="scale"),
    }
    x, test_x = (flat.reshape(len(flat), -1).astype(np.float32) / scale_of(flat) for flat in (images, test_images))
    found: dict[str, float | None] = {}
    for name, model in models.items():
        if name != NEAREST and len(np.unique(labels)) < 2:
            found[name] = None
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # after 1000 iterations its accuracy no longer moves
            model.fit(x, labels)
        found[name] = float(100 * np.mean(model.predict(test_x) == test_labels))
        check()
    return found
