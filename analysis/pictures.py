"""Pictures of queries: image, truth, the task model's prediction before it was labelled, entropy.

In classification a figure with a row for each method; in segmentation a figure for each, with rows of maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from analysis import style
from analysis.figures import WIDTH, legend_columns
from analysis.panels import Panel
from analysis.reading import Runs
from mal.run import folder as run_folder

IGNORED = 255
COLUMNS = {"classification": 10, "segmentation": 6}  # images beside each other
METHODS = {"classification": 8, "segmentation": 4}  # at most
RIGHT, WRONG = "#33373B", "#B2182B"
# Paul Tol's "muted" and "bright", after grey for a first class, which mostly is the background; more classes: evenly.
PALETTE = (
    *("#33373B", "#CC6677", "#88CCEE", "#DDCC77", "#117733", "#AA4499", "#44AA99", "#999933", "#EE6677", "#4477AA"),
    *("#F0A830", "#882255", "#66CCEE", "#228833", "#BBBBBB", "#661100", "#6699CC", "#AA4466", "#CCBB44"),
)


@dataclass(frozen=True)
class Picture:
    """Queries of one round. images: uint8 (n, C, H, W); truth, predicted: classes (n,) or (n, H, W); entropy: nats,
    likewise.

    names: of the classes; indices: absolute, (n,).
    """

    method: str
    seed: int
    number: int
    names: list[str]
    indices: np.ndarray
    images: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    entropy: np.ndarray


def query_pictures(panel: Panel, rows: pd.DataFrame, runs: Runs) -> list[Picture]:
    """The last round with kept queries of each of the first methods, all of one seed and round, to be compared."""
    having = rows[[Path(folder, run_folder.QUERIES).is_file() for folder in rows["folder"]]]
    if having.empty:
        return []
    seed = having["seed"].mode().iloc[0]
    mine = having[having["seed"] == seed]
    number = mine.groupby("method")["round"].max().min()
    chosen = mine[mine["round"] == number].set_index("method")
    methods = [method for method in panel.methods if method in chosen.index]
    found = [_picture(Path(chosen.loc[m, "folder"]), m, int(seed), int(number), runs) for m in methods]
    return found[: METHODS[_task(found[0])]]


def _task(picture: Picture) -> str:
    return "segmentation" if picture.truth.ndim == 3 else "classification"


def _picture(folder: Path, method: str, seed: int, number: int, runs: Runs) -> Picture:
    config = next(chain.config for chain in runs.chains if chain.folder == folder.parent)
    names = config.get("dataset.class_names") or [str(k) for k in range(int(config["dataset.classes"]))]
    with np.load(folder / run_folder.QUERIES, allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in ("indices", "images", "truth", "predicted", "entropy")}
    count = COLUMNS["segmentation" if arrays["truth"].ndim == 3 else "classification"]
    shown = {name: values[:count] for name, values in arrays.items()}
    return Picture(method, seed, number, [str(name) for name in names], **shown)


def draw_queries(pictures: list[Picture]) -> dict[str, tuple[Figure, str]]:
    """Figures of a panel's pictures with their captions, by what ends the file's name; the pictures are of one task."""
    if not pictures:
        return {}
    if _task(pictures[0]) == "classification":
        return {"": (draw_rows(pictures), caption_of_rows(pictures))}
    return {f"_{picture.method}": (draw_maps(picture), caption_of_maps(picture)) for picture in pictures}


def draw_rows(pictures: list[Picture]) -> Figure:
    """A row for each method, a column for each query in order of choice: the image, its class, M's and its entropy."""
    count = max(len(picture.indices) for picture in pictures)
    side = (WIDTH - 0.9) / count
    height, span = pictures[0].images.shape[-2:]
    figure, axes = plt.subplots(
        len(pictures),
        count,
        figsize=(WIDTH, len(pictures) * (side * height / span + 0.36)),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.015, h_pad=0.02, wspace=0.01, hspace=0.01),
    )
    for row, picture in zip(axes, pictures, strict=True):
        for column, cell in enumerate(row):
            cell.set(xticks=[], yticks=[])
            cell.grid(False)
            sns.despine(ax=cell, left=True, bottom=True)
            if column < len(picture.indices):
                truth, predicted = int(picture.truth[column]), int(picture.predicted[column])
                cell.imshow(_pixels(picture.images[column]), cmap="gray", vmin=0, vmax=255)
                cell.set_title(picture.names[truth], fontsize=5.6, pad=1.5)
                told = f"{picture.names[predicted]} {picture.entropy[column]:.2f}"
                cell.set_xlabel(told, fontsize=5.6, labelpad=1.5, color=RIGHT if truth == predicted else WRONG)
        row[0].set_ylabel(style.method_label(picture.method), rotation=0, ha="right", va="center", labelpad=4)
    return figure


def draw_maps(picture: Picture) -> Figure:
    """A column for each query, from left to right in order of choice; rows: image, truth, prediction, entropy."""
    count, classes = len(picture.indices), len(picture.names)
    colours = palette(classes)
    cmap, top = ListedColormap([*colours, "white"]), np.log(classes)
    columns = [picture.images, _shown(picture.truth, classes), _shown(picture.predicted, classes), picture.entropy]
    width = WIDTH if count > 3 else 4.4
    side = (width - 0.7) / max(count, 3)
    legend_rows = -(-(classes + 1) // (legend_columns(width) + 1))
    height, span = picture.images.shape[-2:]
    figure, axes = plt.subplots(
        4,
        count,
        figsize=(width, 4 * side * height / span + 0.45 + 0.17 * legend_rows),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.015, h_pad=0.015, wspace=0.01, hspace=0.01),
    )
    looks: list[dict[str, Any]] = [
        {"cmap": "gray", "vmin": 0, "vmax": 255},
        *[{"cmap": cmap, "vmin": -0.5, "vmax": classes + 0.5, "interpolation": "nearest"}] * 2,
        {"cmap": "magma", "vmin": 0, "vmax": top},
    ]
    for row, (values, look) in enumerate(zip(columns, looks, strict=True)):
        for column in range(count):
            shown = axes[row, column].imshow(_pixels(values[column]), **look)
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].grid(False)
            sns.despine(ax=axes[row, column], left=True, bottom=True)
    for column, index in enumerate(picture.indices):
        axes[0, column].set_title(f"image {index:,}", fontsize=7.5, pad=2)
        axes[3, column].set_xlabel(f"mean {picture.entropy[column].astype(np.float64).mean():.2f}", labelpad=2)
    for row, name in enumerate(("image", "truth", "prediction", "entropy (nats)")):
        axes[row, 0].set_ylabel(name, labelpad=3)
    bar = figure.colorbar(shown, ax=axes[3, :].tolist(), pad=0.01, aspect=8)
    bar.outline.set_visible(False)
    _legend(figure, picture, colours, legend_columns(width) + 1)
    return figure


def palette(classes: int) -> list[Any]:
    """A colour for each class."""
    if classes <= len(PALETTE):
        return list(PALETTE[:classes])
    return list(sns.color_palette("husl", classes))


def caption_of_rows(pictures: list[Picture]) -> str:
    """What draw_rows shows."""
    first = pictures[0]
    return (
        f"seed {first.seed}: the first {len(first.indices)} images that round {first.number} queried, for each method, "
        "with their class above, below what its task model made of them before it was bought (red: wrong) and the "
        "entropy in nats."
    )


def caption_of_maps(picture: Picture) -> str:
    """What draw_maps shows."""
    return (
        f"{style.method_label(picture.method)}, seed {picture.seed}: the first {len(picture.indices)} images "
        f"that round {picture.number} queried, their maps, and what its task model made of them, which had not seen "
        "the maps. Entropy is that of the task model at each pixel; its scale ends at that of an even guess."
    )


def _legend(figure: Figure, picture: Picture, colours: list[Any], columns: int) -> None:
    """The classes that are in the picture."""
    seen = set(np.unique(picture.truth)) | set(np.unique(picture.predicted))
    handles = [
        Patch(facecolor=colours[k], edgecolor="#888888", lw=0.4, label=name)
        for k, name in enumerate(picture.names)
        if k in seen
    ]
    if IGNORED in seen:
        handles.append(Patch(facecolor="white", edgecolor="#888888", lw=0.4, label="not counted"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), columns),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.2,
        handletextpad=0.4,
    )


def _shown(maps: np.ndarray, classes: int) -> np.ndarray:
    """Maps with the last colour for ignored pixels."""
    return np.where(maps == IGNORED, classes, maps)


def _pixels(values: np.ndarray) -> np.ndarray:
    """An image (C, H, W) as matplotlib takes it, (H, W) or (H, W, 3); a map as it is."""
    if values.ndim == 2:
        return values.astype(np.float32) if values.dtype == np.float16 else values
    return values[0] if len(values) == 1 else values.transpose(1, 2, 0)
