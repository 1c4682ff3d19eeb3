"""Run folders with made-up values, in the format of mal.results, for tests that know the answer."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mal import results


def write_chain(
    runs: Path,
    method: str,
    seed: int,
    values: Sequence[float | None],
    *,
    name: str = "sweep",
    dataset: str = "digits",
    backbone: str = "small_cnn",
    metric: str = "accuracy",
    initial: int = 100,
    budget: int = 100,
    pool: int = 1000,
    planned: int | None = None,
    skip: Sequence[int] = (),
    failed: str | None = None,
    config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    queries: Sequence[np.ndarray] | None = None,
    classes: int = 10,
    seconds: float = 60.0,
    gpus: int = 0,
) -> Path:
    """Commit one round for each value (None: a metric that is NaN); rounds in `skip` are not written.

    planned: rounds in the configuration, default the number of values. failed: an error recorded in the round after
    the last. metrics, provenance, config: further keys. queries: pool indices of each round's query; default random.
    """
    chain = results.chain_folder(runs, name, method, seed)
    chain.mkdir(parents=True)
    resolved = {
        "dataset": {"name": dataset, "classes": classes},
        "backbone": {"name": backbone},
        "method": {"name": method},
        "rounds": planned or len(values),
        "initial": initial,
        "budget": budget,
        "seed": seed,
        "task": {"epochs": 5},
    } | (config or {})
    (chain / results.CONFIG).write_text(yaml.safe_dump(resolved))
    order = np.random.default_rng(seed).permutation(pool)
    labeled, rest = order[:initial], order[initial:]
    chooser = np.random.default_rng([seed, *method.encode()])
    for number, value in enumerate(values):
        query = chooser.permutation(rest)[:budget] if queries is None else queries[number]
        last = number == (planned or len(values)) - 1
        filled = {
            "dataset": dataset,
            "method": method,
            "seed": seed,
            "round": number,
            "labeled": len(labeled),
            "pool": pool,
            "percent": 100 * len(labeled) / pool,
            "metric": metric,
            "value": value,
            "seconds": seconds,
            "preemptions": 0,
            "backbone": backbone,
            "device": "cpu",
            "gpus": gpus,
            "classes": classes,
            "per_class": [value] * classes,
        } | (metrics or {})
        if not last:
            filled.setdefault("query_classes", np.bincount(query % classes, minlength=classes).tolist())
        origin = {
            "fingerprint": f"{method}-0",
            "git_commit": "a" * 40,
            "git_dirty": False,
            "pool": f"pool-{seed}",
            "versions": {"python": "3.11.7", "torch": "2.15.0"},
        } | (provenance or {})
        if number not in skip:
            write_round(results.round_folder(chain, number), filled, origin, np.sort(labeled), None if last else query)
        labeled = np.concatenate([labeled, query])
        rest = np.setdiff1d(rest, query)
    if failed:
        folder = results.round_folder(chain, len(values))
        folder.mkdir()
        (folder / results.FAILED).write_text(json.dumps({"error": failed, "traceback": f"Traceback\n{failed}"}))
    return chain


def write_round(folder: Path, metrics: dict[str, Any], provenance: dict[str, Any], labeled: Any, query: Any) -> None:
    """One committed round; not durable (no fsync), because tests write many."""
    files = {results.METRICS: _json(metrics), results.PROVENANCE: _json(provenance), results.LABELED: _npy(labeled)}
    if query is not None:
        files[results.QUERY] = _npy(query)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    hashes = {name: results.sha256(data) for name, data in files.items()}
    (folder / results.COMMITTED).write_bytes(_json({"format": results.FORMAT, "files": hashes}))


def exactly(mean: float, std: float, n: int) -> np.ndarray:
    """n values whose mean and standard deviation (ddof=1) are exactly these."""
    z = np.linspace(-1, 1, n)
    return mean + std * z / z.std(ddof=1)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _npy(indices: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(indices, dtype=np.int64), allow_pickle=False)
    return buffer.getvalue()
