"""Files of labels that people hand in: our CSV, exports of Label Studio and of CVAT, folders of PNG maps.

Label Studio: its JSON and JSON-MIN of image classification (`choices`); https://labelstud.io/guide/task_format
CVAT: "CVAT for images 1.1" (annotations.xml, tags) and "Datumaro 1.0" (JSON, labels), each also in its zip;
https://docs.cvat.ai/docs/dataset_management/formats/
What a file says is read here as it is; whether it may be taken is decided in mal/labels/importing.py.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mal.config.people import CANNOT_TELL
from mal.labels.store import MAP

CSV_TITLES = ("index", "path", "label")
DELIMITERS = ",;\t"
MOST_BYTES = 2**30  # of a member of a zip


@dataclass(frozen=True)
class Said:
    """What one annotator said of one image.

    where: file and place in it, for messages; index: of the pool, None where the file has none; path: of the image as
    the file has it, without an ending where exact is false, None where it has none; label: the class's name,
    CANNOT_TELL or MAP; map: the PNG file of a MAP.
    """

    where: str
    annotator: str
    index: int | None
    path: str | None
    label: str
    exact: bool = True
    map: bytes = b""


def read_file(path: Path) -> list[Said]:
    """What a file or a folder of maps says, without images that have no label; ValueError names what is wrong where."""
    if path.is_dir():
        return list(_maps(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
    return _read(str(path), path.suffix.lower(), content)


def _read(name: str, suffix: str, content: bytes) -> list[Said]:
    if suffix == ".zip":
        return _zip(name, content)
    if suffix not in (".csv", ".tsv", ".txt", ".json", ".xml"):
        raise ValueError(
            f"{name} is none of the files that are read: a CSV of ours (.csv), Label Studio's or Datumaro's JSON "
            "(.json), CVAT's XML (.xml), CVAT's archives (.zip), or a folder of maps (PNG)."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from None
    if suffix == ".json":
        return list(_json(name, text))
    return list(_cvat(name, text)) if suffix == ".xml" else list(_csv(name, text))


def _zip(name: str, content: bytes) -> list[Said]:
    """CVAT's archives: annotations.xml, or annotations/*.json."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            chosen = [m for m in members if m.filename.endswith("annotations.xml")]
            chosen = chosen or [m for m in members if "annotations/" in m.filename and m.filename.endswith(".json")]
            if not chosen:
                raise ValueError(f"{name} has neither annotations.xml nor annotations/*.json in it.")
            if large := [m.filename for m in chosen if m.file_size > MOST_BYTES]:
                raise ValueError(f"{name}: {large[0]} is larger than {MOST_BYTES} bytes.")
            read = [(m.filename, archive.read(m)) for m in chosen]
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, OSError) as error:
        raise ValueError(f"{name} is not a readable zip ({error}): export it again.") from None
    return [each for member, data in read for each in _read(f"{name}/{member}", Path(member).suffix, data)]


# ------------------------------------------------------------------------- CSV


def _csv(name: str, text: str) -> Iterator[Said]:
    """Our to_label.csv, filled in; further columns are free, the order of columns too."""
    lines = io.StringIO(text, newline="")
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        titles = [title.strip().lower() for title in next(rows, [])]
        if "label" not in titles or not {"index", "path"} & set(titles):
            raise ValueError(
                f"{name}, line 1: the columns are {titles}, without `label`, or without `index` and `path`: fill in a "
                "copy of to_label.csv."
            )
        if len(set(titles)) < len(titles):
            raise ValueError(f"{name}, line 1: a column's title is there twice.")
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if row and len(row) != len(titles):
                raise ValueError(f"{where}: {len(row)} columns where line 1 has {len(titles)}.")
            fields = dict(zip(titles, row, strict=False))
            if label := fields.get("label", "").strip():
                yield _row(name, where, fields, label)
    except csv.Error as error:
        raise ValueError(f"{name}, line {rows.line_num}: not a CSV ({error}).") from None


def _row(name: str, where: str, fields: dict[str, str], label: str) -> Said:
    index, path = fields.get("index", "").strip(), fields.get("path") or None
    if index and not (index.isascii() and index.isdigit()):
        raise ValueError(f"{where}: index {index!r} is not a whole number from 0.")
    if not index and path is None:
        raise ValueError(f"{where}: neither an index nor a path says which image is meant.")
    return Said(where, name, int(index) if index else None, path, label)


# ------------------------------------------------------------------------- JSON


def _json(name: str, text: str) -> Iterator[Said]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({error}): it is cut or was edited.") from None
    if isinstance(found, dict) and isinstance(found.get("items"), list) and isinstance(found.get("categories"), dict):
        yield from _datumaro(name, found)
    elif isinstance(found, list) and all(isinstance(task, dict) for task in found):
        for number, task in enumerate(found):
            yield from _task(f"{name}, task {task.get('id', number)}", name, task)
    else:
        raise ValueError(
            f"{name} is neither Label Studio's JSON (a list of tasks) nor Datumaro's (categories and items): export it "
            "as JSON, JSON-MIN, or Datumaro 1.0."
        )


def _task(where: str, name: str, task: dict[str, Any]) -> Iterator[Said]:
    """A task of Label Studio, by each annotator; a skip means that they cannot tell, where nobody answered."""
    if "data" not in task:
        yield from _flat_task(where, name, task)
        return
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list) or not isinstance(task["data"], dict):
        raise ValueError(f"{where}: no list `annotations` beside `data`: this is not an export of Label Studio.")
    image, skipped = _image(where, task["data"]), dict[str, Said]()
    answered = False
    for annotation in annotations:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise ValueError(f"{where}: an annotation has no list `result`: this is not an export of Label Studio.")
        who = annotation.get("completed_by", "")
        who = who.get("email", who.get("id", "")) if isinstance(who, dict) else who
        annotator = f"{name}, annotator {who}"
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            skipped[annotator] = Said(where, annotator, None, image, CANNOT_TELL)
        elif (label := _choice(where, annotation["result"])) is not None:
            answered = True
            yield Said(where, annotator, None, image, label)
    if not answered:
        yield from skipped.values()


def _choice(where: str, result: list[Any]) -> str | None:
    """The one choice of an annotation; None where there is none."""
    chosen: list[str] = []
    for part in result:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "choices":
            raise ValueError(f"{where}: {kind} is not a choice: labels are those of image classification (Choices).")
        value = part.get("value")
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise ValueError(f"{where}: a result of type choices has no list of choices.")
        chosen += choices
    return _only(where, chosen)


def _flat_task(where: str, name: str, task: dict[str, Any]) -> Iterator[Said]:
    """A task of Label Studio's JSON-MIN: its data, `id`, the answer by the name of its control, who gave it, when."""
    keys = list(task)
    if "id" not in keys or "annotator" not in keys:
        raise ValueError(f"{where}: neither `data` nor `annotator`: this is not an export of Label Studio.")
    at = keys.index("id")
    controls = keys[at + 1 : keys.index("annotator")]
    if len(controls) > 1:
        raise ValueError(f"{where}: {len(controls)} answers ({', '.join(controls)}): labels are those of one Choices.")
    for control in controls:
        answer = task[control]
        choices = answer.get("choices") if isinstance(answer, dict) else [answer]
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise ValueError(f"{where}: {control} is not a choice: labels are those of image classification (Choices).")
        if (label := _only(where, choices)) is not None:
            image = _image(where, {key: task[key] for key in keys[:at]})
            yield Said(where, f"{name}, annotator {task['annotator']}", None, image, label)


def _image(where: str, data: dict[str, Any]) -> str:
    """The image's address in a task: `image`, or the only text."""
    texts = [value for value in data.values() if isinstance(value, str)]
    image = data.get("image", texts[0] if len(texts) == 1 else None)
    if not isinstance(image, str):
        raise ValueError(f"{where}: its data have no `image`.")
    return image


def _only(where: str, chosen: list[str]) -> str | None:
    if len(set(chosen)) > 1:
        raise ValueError(f"{where}: {len(set(chosen))} classes for one image: {', '.join(sorted(set(chosen)))}.")
    return chosen[0].strip() if chosen else None


def _datumaro(name: str, found: dict[str, Any]) -> Iterator[Said]:
    labels = found["categories"].get("label")
    entries = labels.get("labels") if isinstance(labels, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) for e in entries
    ):
        raise ValueError(f"{name}: categories has no label.labels, each with its name: this is not Datumaro's JSON.")
    names = [entry["name"] for entry in entries]
    for item in found["items"]:
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise ValueError(f"{name}: an item has no id: this is not Datumaro's JSON.")
        where, image = f"{name}, item {item['id']}", item.get("image") or item.get("media") or {}
        path = image.get("path") if isinstance(image, dict) else None
        chosen = []
        for annotation in item.get("annotations") or []:
            if not isinstance(annotation, dict) or annotation.get("type") != "label":
                kind = annotation.get("type") if isinstance(annotation, dict) else annotation
                raise ValueError(f"{where}: {kind} is not a label of the whole image: use CVAT's tags.")
            number = annotation.get("label_id")
            if not isinstance(number, int) or not 0 <= number < len(names):
                raise ValueError(f"{where}: label_id {number} is not one of the {len(names)} labels.")
            chosen.append(names[number])
        if (label := _only(where, chosen)) is not None:
            yield Said(where, name, None, path or item["id"], label, exact=bool(path))


# ------------------------------------------------------------------------- XML and maps


def _cvat(name: str, text: str) -> Iterator[Said]:
    """CVAT for images 1.1: a `tag` in each `image`."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{name} defines entities, as no export of CVAT does.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{name} is not valid XML ({error}): it is cut or was edited.") from None
    if root.tag != "annotations" or root.findall("track"):
        raise ValueError(
            f"{name} is not CVAT's XML of images (<annotations> of <image>): export it as CVAT for images 1.1."
        )
    for image in root.findall("image"):
        path = image.get("name")
        where = f"{name}, image {image.get('id', '')} {path}"
        if not path:
            raise ValueError(f"{where}: it has no name.")
        if shapes := sorted({child.tag for child in image} - {"tag"}):
            raise ValueError(f"{where}: {', '.join(shapes)} is not a label of the whole image: use CVAT's tags.")
        tags = [child.get("label") or "" for child in image]
        if (label := _only(where, tags)) is not None:
            yield Said(where, name, None, path, label)


def _maps(folder: Path) -> Iterator[Said]:
    """PNG maps, each at its image's path but for the ending; `cannot tell.txt` beside them lists what was refused."""
    refused = folder / f"{CANNOT_TELL}.txt"
    others = [p for p in sorted(folder.rglob("*")) if p.is_file() and p != refused and not p.name.startswith(".")]
    for path in others:
        below = path.relative_to(folder)
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path} is no PNG: a folder of maps holds PNG files, and `{refused.name}`.")
        yield Said(str(path), str(folder), None, str(below.with_suffix("")), MAP, exact=False, map=path.read_bytes())
    for line in refused.read_text("utf-8").splitlines() if refused.is_file() else []:
        if line.strip():
            yield Said(f"{refused}: {line}", str(folder), None, line.strip(), CANNOT_TELL)
