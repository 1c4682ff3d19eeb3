"""Run folders with made-up values, in the format of mal.run.folder, for tests that know the answer."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis import curves, panels
from analysis.reading import Runs, load
from mal.files import sha256
from mal.run import folder as run_folder


def read(runs: Path, *names: str) -> tuple[Runs, list[panels.Panel]]:
    """The rounds of the named sweeps (default: `sweep`) and their panels."""
    loaded = load(runs, names or ("sweep",))
    return loaded, panels.panels_of(loaded.rounds)


def run(*arguments: object) -> int:
    """The exit status of `python analysis/curves.py ARGUMENTS`, in this process."""
    return curves.main([str(argument) for argument in arguments])


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
    history: dict[str, Any] | None = None,
    classes: int = 10,
    seconds: float = 60.0,
    gpus: int = 0,
) -> Path:
    """Commit one round for each value (None: a metric that is NaN); rounds in `skip` are not written.

    planned: rounds in the configuration, default the number of values. failed: an error recorded in the round after
    the last. metrics, provenance, config: further keys. queries: pool indices of each round's query; default random.
    history: the losses that every round recorded.
    """
    chain = run_folder.chain_folder(runs, name, method, seed)
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
    (chain / run_folder.CONFIG).write_text(yaml.safe_dump(resolved))
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
            "code": "a" * 12,
            "git_commit": "a" * 40,
            "git_dirty": False,
            "pool": f"pool-{seed}",
            "versions": {"python": "3.11.7", "torch": "2.15.0"},
        } | (provenance or {})
        if number not in skip:
            folder = run_folder.round_folder(chain, number)
            write_round(folder, filled, origin, np.sort(labeled), None if last else query, history)
        labeled = np.concatenate([labeled, query])
        rest = np.setdiff1d(rest, query)
    if failed:
        folder = run_folder.round_folder(chain, len(values))
        folder.mkdir()
        (folder / run_folder.FAILED).write_text(json.dumps({"error": failed, "traceback": f"Traceback\n{failed}"}))
    return chain


def write_round(
    folder: Path,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
    labeled: Any,
    query: Any,
    history: dict[str, Any] | None = None,
) -> None:
    """One committed round; not durable (no fsync), because tests write many."""
    files = {
        run_folder.METRICS: _json(metrics),
        run_folder.PROVENANCE: _json(provenance),
        run_folder.LABELED: _npy(labeled),
    }
    if query is not None:
        files[run_folder.QUERY] = _npy(query)
    if history is not None:
        files[run_folder.HISTORY] = _json(history)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    hashes = {name: sha256(data) for name, data in files.items()}
    (folder / run_folder.COMMITTED).write_bytes(_json({"format": run_folder.FORMAT, "files": hashes}))


def example(runs: Path) -> None:
    """A sweep of an imbalanced pool with everything that a report can show, and most of what it must warn of."""
    starts = {
        "mal": (70, 22),
        "mal_init_random": (70, 18),
        "entropy": (60, 30),
        "coreset": (60, 27),
        "random": (60, 26),
    }
    pool_classes = np.round(400 * 10 ** (-np.arange(10) / 4.5)).astype(int).tolist()
    for method, (start, gain) in starts.items():
        for seed in range(5):
            noise = np.random.default_rng([seed, *method.encode()]).normal(0, 0.6, 5)
            noise[0] = np.random.default_rng(seed).normal(0, 1.2)
            values = [float(v) for v in start + gain * (1 - np.exp(-np.arange(5) / 1.8)) + noise]
            more: dict[str, Any] = {
                "metrics": {"pool_classes": pool_classes, "per_class": [values[-1] - 2 * c for c in range(10)]},
                "history": {"task": {"window": 2, "losses": {"cross_entropy": [2.3, 1.1, 0.4]}}},
            }
            more["metrics"]["signals"] = {"confidence": 80.0 + seed, "calibration": 12.5}
            more["metrics"]["floor"] = {"1nn": 62.0 + seed, "logistic": None, "svm": 66.5 + seed}
            if (method, seed) == ("entropy", 4):
                values, more = values[:3], more | {"failed": "RuntimeError: out of memory", "planned": 5}
            if (method, seed) == ("coreset", 1):
                values[2] = math.nan
            if (method, seed) == ("random", 3):
                more["provenance"] = {"code": "b" * 12, "git_commit": "b" * 40}
            chain = write_chain(
                runs, method, seed, values, dataset="digits_imbalanced", gpus=1, seconds=50 + 9 * len(method), **more
            )
            if seed == 0 and method in ("mal", "coreset"):
                write_features(run_folder.round_folder(chain, 1))


def write_features(folder: Path, count: int = 300) -> None:
    """Features of a round: six blobs in 16 dimensions, some labelled, some queried."""
    rng = np.random.default_rng(0)
    blobs = rng.normal(0, 4, (6, 16))[rng.integers(0, 6, count)]
    state = rng.choice(3, count, p=(0.7, 0.2, 0.1)).astype(np.uint8)
    features = (blobs + rng.normal(size=(count, 16))).astype(np.float16)
    np.savez(folder / "features.npz", indices=np.arange(count), features=features, state=state)


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
