"""What a round keeps for the report besides its metrics, where the configuration asks for it, as .npz files."""

from __future__ import annotations

import io

import numpy as np
from torch import Tensor

from mal import results
from mal.methods import Setting
from mal.methods.entropy import pixel_entropy
from mal.models.heads import TaskModel, pooled
from mal.pool import Oracle

FEATURES_SAMPLE = 2000  # unlabelled images on a map of features


def samples(model: TaskModel, setting: Setting, query: np.ndarray | None, oracle: Oracle) -> dict[str, bytes]:
    """The files that keep_features and keep_queries ask for, by name; query: int64 (b,), None in a last round."""
    files = {}
    if setting.config.keep_features:
        files[results.FEATURES] = sample_features(model, setting, query)
    if setting.config.keep_queries and query is not None:
        files[results.QUERIES] = sample_queries(model, setting, query[: setting.config.keep_queries], oracle)
    return files


def sample_features(model: TaskModel, setting: Setting, query: np.ndarray | None) -> bytes:
    """An .npz for the map of a round: M's features (n, d) of the labelled, the queried and a sample of the others.

    indices: int64 (n,); state: 0 unlabelled, 1 labelled, 2 queried.
    """
    queried = np.empty(0, np.int64) if query is None else query
    sample = setting.random("features").permutation(setting.unlabelled)[:FEATURES_SAMPLE]
    indices = np.unique(np.concatenate([setting.labelled, queried, sample]))
    by_backbone = lambda images: {"features": pooled(model.backbone(images))}  # noqa: E731
    scan = setting.scanner.scan("features", setting.loader, indices, by_backbone, model)
    state = np.isin(indices, setting.labelled) + 2 * np.isin(indices, queried)
    return _npz(indices=indices, features=scan["features"].astype(np.float16), state=state.astype(np.uint8))


def sample_queries(model: TaskModel, setting: Setting, query: np.ndarray, oracle: Oracle) -> bytes:
    """An .npz of queried images and of what M makes of them before their labels are bought.

    indices: int64 (n,); images: uint8 (n, C, H, W) as M sees them; truth and predicted: int64 (n,) or uint8 maps
    (n, H, W); entropy: of M for each image or pixel, nats, float16, likewise.
    """

    def predictions(images: Tensor) -> dict[str, Tensor]:
        logits = model(images)
        predicted = logits.argmax(dim=1)
        return {"predicted": predicted.byte() if predicted.ndim == 3 else predicted, "entropy": pixel_entropy(logits)}

    scan = setting.scanner.scan("queries", setting.loader, query, predictions, model)
    centre = setting.scanner.augmentation.centre
    images = centre(setting.loader.load(query).images).cpu().numpy()
    truth = setting.trainer.device.world.once(lambda: oracle.label(query))
    scan |= {"truth": centre(truth) if truth.ndim == 3 else truth, "entropy": scan["entropy"].astype(np.float16)}
    return _npz(indices=query, images=images, **scan)


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
