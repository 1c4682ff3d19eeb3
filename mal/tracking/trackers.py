"""TensorBoard, W&B (offline) and MLflow (its file store): what each is told of a chain, without a network.

Each is one run per chain. What a tracker wrote before is replaced, or read and left out: the chain's folder is the
truth, so that an attempt that was killed anywhere leaves neither a gap nor a step that is there twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

from mal.config.registry import Registry
from mal.run.lock import hold
from mal.tracking.entries import Entry

LOCK_SECONDS = 60.0


class Tracker(Protocol):
    """One run of one tracker."""

    def write(self, entry: Entry) -> None:
        """Take an entry, which comes once in this process's life."""
        ...

    def flush(self) -> None:
        """Put what was taken on the disk."""
        ...

    def close(self) -> None:
        """End the process's part of the run."""
        ...


class MakeTracker(Protocol):
    """Opens the run of a chain below a folder, with what it was launched with by dotted keys."""

    def __call__(self, folder: Path, chain: Path, config: dict[str, Any]) -> Tracker:
        """folder: of all runs of this tracker in the sweep."""
        ...


TRACKERS: Registry[MakeTracker] = Registry("tracker")


def run_name(chain: Path) -> str:
    """METHOD/seed-S."""
    return f"{chain.parent.name}/{chain.name}"


def run_id(chain: Path) -> str:
    """The same for each attempt of a chain, and no other's: of its folder below the runs folder."""
    return hashlib.sha256("/".join(chain.absolute().parts[-3:]).encode()).hexdigest()[:16]


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Scalars over steps, those of a round over labels, and the pictures of its query."""

    def __init__(self, folder: Path, chain: Path, config: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        place = folder / run_name(chain)
        shutil.rmtree(place, ignore_errors=True)  # written anew from the chain's folder
        self._writer = EventFileWriter(str(place))
        text = "\n".join(f"    {key}: {value}" for key, value in config.items())
        self._text("config", text)

    def write(self, entry: Entry) -> None:
        """See `Tracker`."""
        step = entry.step if entry.labeled is None else entry.labeled
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in entry.values.items()]
        for name, png in entry.pictures.items():
            picture = self._summary.Image(encoded_image_string=png, **_sides(png))
            values.append(self._summary.Value(tag=f"query/{name[:2]}", image=picture))
        self._add(values, step)

    def _add(self, values: list[Any], step: int) -> None:
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        self._writer.add_event(event)

    def _text(self, tag: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(list(text_pb(tag, text).value), 0)

    def flush(self) -> None:
        """See `Tracker`."""
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


def _sides(png: bytes) -> dict[str, int]:
    """Width and height as a PNG's header has them, and its channels as far as anybody asks."""
    return {"width": int.from_bytes(png[16:20]), "height": int.from_bytes(png[20:24]), "colorspace": 3}


@TRACKERS.register("wandb")
class WandB:
    """A run offline, for `wandb sync`: all over steps, those of a round also over labels."""

    def __init__(self, folder: Path, chain: Path, config: dict[str, Any]) -> None:
        import wandb

        name = run_id(chain)
        for old in (folder / "wandb").glob(f"offline-run-*-{name}"):
            shutil.rmtree(old, ignore_errors=True)  # written anew from the chain's folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True)
        self._wandb = wandb
        self._run: Any = wandb.init(
            mode="offline",
            dir=str(folder),
            project=chain.parents[1].name,
            group=chain.parent.name,
            name=run_name(chain),
            id=name,
            config=config,
            settings=settings,
        )
        self._run.define_metric("labeled")
        self._run.define_metric("round/*", step_metric="labeled")

    def write(self, entry: Entry) -> None:
        """See `Tracker`."""
        values: dict[str, Any] = dict(entry.values)
        if entry.labeled is not None:
            values["labeled"] = entry.labeled
        if entry.pictures:
            from io import BytesIO

            from PIL import Image

            values["query"] = [
                self._wandb.Image(Image.open(BytesIO(png)), caption=name) for name, png in entry.pictures.items()
            ]
        self._run.log(values, step=entry.step)  # a round's values join those of its last window

    def flush(self) -> None:
        """W&B's own process writes."""

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


@TRACKERS.register("mlflow")
class MLflow:
    """A run in MLflow's file store: metrics over steps, those of a round over labels, pictures as artifacts."""

    def __init__(self, folder: Path, chain: Path, config: dict[str, Any]) -> None:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # a database on shared storage takes one writer at a time
        from mlflow import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=folder.absolute().as_uri())
        with hold(folder / ".lock", LOCK_SECONDS):  # chains of a sweep begin at the same time
            self._run = self._opened(chain, config)
        self._steps: dict[str, set[int]] = {}

    def _opened(self, chain: Path, config: dict[str, Any]) -> str:
        """The id of the chain's run, begun where there is none."""
        client, name = self._client, chain.parents[1].name
        experiment = client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else client.create_experiment(name)
        tag = run_id(chain)
        found = [run for run in client.search_runs([place]) if run.data.tags.get("mal.chain") == tag]
        if found:
            return str(found[0].info.run_id)
        run = client.create_run(place, run_name=run_name(chain), tags={"mal.chain": tag})
        for key, value in config.items():
            client.log_param(run.info.run_id, key, value)
        return str(run.info.run_id)

    def write(self, entry: Entry) -> None:
        """See `Tracker`."""
        step = entry.step if entry.labeled is None else entry.labeled
        for key, value in entry.values.items():
            if step not in self._known(key):
                self._client.log_metric(self._run, key, value, step=step)
                self._known(key).add(step)
        for name, png in entry.pictures.items():
            self._picture(f"query-of-{entry.labeled}-labels/{name}.png", png)

    def _known(self, key: str) -> set[int]:
        """The steps of a metric that are there, from an attempt before this one too."""
        if key not in self._steps:
            history = []
            with contextlib.suppress(Exception):  # MLflow's own, for a metric that is not there yet
                history = self._client.get_metric_history(self._run, key)
            self._steps[key] = {point.step for point in history}
        return self._steps[key]

    def _picture(self, name: str, png: bytes) -> None:
        from io import BytesIO

        from PIL import Image

        self._client.log_image(self._run, Image.open(BytesIO(png)), artifact_file=name)

    def flush(self) -> None:
        """Each value is in its file already."""

    def close(self) -> None:
        """The run stays open: whether it goes on is the chain's to say."""
