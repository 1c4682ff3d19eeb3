"""Files of labels as Label Studio and CVAT export them, made up from answers: label by path.

Label Studio: https://labelstud.io/guide/task_format and the serializers and the converter of its sources.
CVAT: https://docs.cvat.ai/docs/dataset_management/formats/ and https://docs.cvat.ai/docs/other/xml_format
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from tests.labels.pools import NAMES


def label_studio(answers: dict[str, str], image: str = "/data/local-files/?d=pool/train/{}") -> list[dict[str, Any]]:
    """An export of Label Studio 1.x, JSON, of a project with <Choices name="choice" toName="image">.

    Each task has a model's prediction and a draft, which nobody handed in.
    """
    return [
        {
            "id": number,
            "annotations": [
                {
                    "id": 100 + number,
                    "completed_by": 1,
                    "result": [_choice(name)],
                    "was_cancelled": False,
                    "ground_truth": False,
                    "created_at": "2026-11-26T10:00:00.000000Z",
                    "updated_at": "2026-11-26T10:00:00.000000Z",
                    "draft_created_at": None,
                    "lead_time": 2.5,
                    "prediction": {},
                    "result_count": 1,
                    "unique_id": "0d4a6cde-8a3e-4d6c-a0d8-37b8d8f5a7c1",
                    "import_id": None,
                    "last_action": None,
                    "task": number,
                    "project": 3,
                    "updated_by": 1,
                    "parent_prediction": None,
                    "parent_annotation": None,
                    "last_created_by": None,
                }
            ],
            "file_upload": None,
            "drafts": [{"id": number, "result": [_choice("bee")], "task": number, "annotation": None}],
            "predictions": [{"id": number, "model_version": "a model", "score": 0.9, "result": [_choice("wasp")]}],
            "data": {"image": image.format(path.replace(" ", "%20"))},
            "meta": {},
            "created_at": "2026-11-26T09:00:00.000000Z",
            "updated_at": "2026-11-26T10:00:00.000000Z",
            "inner_id": number,
            "total_annotations": 1,
            "cancelled_annotations": 0,
            "total_predictions": 1,
            "comment_count": 0,
            "unresolved_comment_count": 0,
            "last_comment_updated_at": None,
            "project": 3,
            "updated_by": 1,
            "comment_authors": [],
        }
        for number, (path, name) in enumerate(answers.items(), 1)
    ]


def _choice(name: str) -> dict[str, Any]:
    return {
        "value": {"choices": [name]},
        "id": "Dx_aB91ISN",
        "from_name": "choice",
        "to_name": "image",
        "type": "choices",
        "origin": "manual",
    }


def skip(task: dict[str, Any], who: int) -> dict[str, Any]:
    """What is among a task's annotations where an annotator skipped it."""
    found: dict[str, Any] = task["annotations"][0]
    return found | {"completed_by": who, "was_cancelled": True, "result": []}


def label_studio_min(answers: dict[str, str], image: str = "s3://bucket/pool/{}") -> list[dict[str, Any]]:
    """The same as JSON-MIN, of tasks made from to_label.csv: what the table said is there too. "": not answered yet."""
    return [
        {
            "index": number,
            "path": path,
            "rank": number + 1,
            "guess": "wasp",
            "reason": "random",
            "label": "",
            "image": image.format(path),
            "id": number + 1,
            **({"choice": name} if name else {}),
            "annotator": 1,
            "annotation_id": number,
            "created_at": "2026-11-26T10:00:00.000000Z",
            "updated_at": "2026-11-26T10:00:00.000000Z",
            "lead_time": 2.5,
        }
        for number, (path, name) in enumerate(answers.items())
    ]


def cvat_xml(answers: dict[str, str], inside: str = "") -> str:
    """An export "CVAT for images 1.1" of a project whose one task has tags; inside: more of what is in each image."""
    labels = "".join(
        f"<label><name>{name}</name><color>#{n}a3d21</color><type>tag</type><attributes><attribute><name>sure</name>"
        "<mutable>False</mutable><input_type>checkbox</input_type><default_value>false</default_value>"
        "<values>false</values></attribute></attributes></label>"
        for n, name in enumerate(NAMES)
    )
    images = "\n".join(
        f'  <image id="{n}" name={quoteattr(path)} subset="Train" task_id="1" width="8" height="8">\n'
        f'    <tag label={quoteattr(name)} source="manual">\n      <attribute name="sure">true</attribute>\n'
        f"    </tag>\n{inside}  </image>"
        for n, (path, name) in enumerate(answers.items())
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <project>'
        f"<id>1</id><name>pool</name><tasks><task><id>1</id><name>a task</name><size>{len(answers)}</size>"
        "<mode>annotation</mode><overlap>0</overlap><subset>Train</subset></task></tasks>"
        f"<labels>{labels}</labels></project>\n    <dumped>2026-11-26 10:00:00.000000+00:00</dumped>\n  </meta>\n"
        f"{images}\n"
        f'  <image id="{len(answers)}" name="another/9.png" subset="Train" task_id="1" width="8" height="8">\n'
        "  </image>\n</annotations>\n"
    )


def datumaro(answers: dict[str, str]) -> dict[str, Any]:
    """An export "Datumaro 1.0" of CVAT."""
    return {
        "info": {},
        "categories": {
            "label": {
                "labels": [{"name": name, "parent": "", "attributes": []} for name in NAMES],
                "attributes": ["occluded"],
            },
            "points": {"items": []},
        },
        "items": [
            {
                "id": path.rpartition(".")[0],
                "annotations": [
                    {"id": 0, "type": "label", "attributes": {}, "group": 0, "label_id": NAMES.index(name)}
                ],
                "attr": {"frame": n},
                "point_cloud": {"path": ""},
                "image": {"path": path, "size": [8, 8]},
            }
            for n, (path, name) in enumerate(answers.items())
        ],
    }


def zipped(to: Path, member: str, content: str) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        archive.writestr(member, content)
        archive.writestr("images/default/ant/0.png", b"")
    return to


def written(to: Path, content: Any) -> Path:
    to.write_text(content if isinstance(content, str) else json.dumps(content))
    return to
