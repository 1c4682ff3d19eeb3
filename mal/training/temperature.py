"""The temperature that makes a classifier's confidence fit its accuracy (Guo et al. 2017, Section 4.2)."""

from __future__ import annotations

import numpy as np

BOUNDS = (0.05, 20.0)  # few images may be all right, or all wrong, and have no best temperature


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The factor on the temperature, within BOUNDS, of the least cross-entropy; logits (N, K), labels int64 (N,)."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits = logits.astype(np.float64)

    def loss(log_factor: float) -> float:
        scaled = logits / np.exp(log_factor)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))

    low, high = np.log(BOUNDS)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))
