"""What people are given to label: to_label.csv, to be filled in, and to_label.html, a contact sheet in one file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np

from mal.data.image_set import Files
from mal.labels.asking import COLUMNS, SHEET, TO_LABEL
from mal.labels.store import table

SHOWN = 1000  # images on the sheet: more of them no browser likes in one file
SIDE = 128  # pixels of a thumbnail
PAGE = Path(__file__).with_name("to_label.html")


def request(
    train: Files, query: np.ndarray, title: str, guesses: Sequence[str], reasons: Sequence[str]
) -> dict[str, bytes]:
    """The two files. query: int64 (b,), in order of choice; guesses, reasons: of each, "" where there is none."""
    paths = [train.store.name(int(index)) for index in query]
    ranks = range(1, len(query) + 1)
    rows = list(zip(query.tolist(), paths, ranks, guesses, reasons, [""] * len(query), strict=True))
    pictures = "\n".join(_figure(train, row) for row in rows[:SHOWN])
    left = f"The first {SHOWN:,} of {len(rows):,}, in order of choice." if len(rows) > SHOWN else "In order of choice."
    page = Template(PAGE.read_text()).substitute(title=html.escape(title), left=left, pictures=pictures)
    return {TO_LABEL: table(COLUMNS, rows), SHEET: page.encode("utf-8", "replace")}


def _figure(train: Files, row: tuple[int, str, int, str, str, str]) -> str:
    index, path, rank, guess, reason, _ = row
    words = " · ".join(filter(None, (f"index {index}", f"guess: {guess}" if guess else "", reason)))
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{_thumbnail(train.read(index))}">'
        f"<figcaption><b>{rank}</b> {html.escape(path)}<br>{html.escape(words)}</figcaption></figure>"
    )


def _thumbnail(image: np.ndarray) -> str:
    """uint8 (3, H, W) as a small JPEG, in base64."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode()


def why(scores: dict[str, np.ndarray], positions: np.ndarray, method: str) -> list[str]:
    """What a method's scores say of each image of a query: its name, and each number that it gave the image.

    scores: arrays (N, ...) by name; positions: int64 (b,), places in them.
    """
    count = max((len(array) for array in scores.values()), default=0)
    told = {n: a for n, a in scores.items() if a.ndim == 1 and len(a) == count and a.dtype.kind == "f"}
    return [
        f"{method}: {', '.join(f'{name} {array[at]:.3g}' for name, array in told.items())}" if told else method
        for at in positions.tolist()
    ]
