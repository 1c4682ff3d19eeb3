"""Labels from people at ImageNet's size: 64,058 answers of 1,000 classes, by each kind of file that is read.

python -m benchmarks.importing [--images 64058]

Paths are like ImageNet's. Each file is imported into a sweep of its own, by the command's own function, and all of its
answers must have arrived. Prints seconds, processor seconds and the size of the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from benchmarks.parts import Clock
from mal.config.compose import compose_sweep
from mal.config.frozen import save_chain
from mal.files import write_atomic
from mal.labels import store
from mal.labels.asking import COLUMNS, SHEET, TO_LABEL, asking_folder
from mal.labels.importing import import_files
from mal.run import folder as run_folder

NAMES = [f"n{10_000_000 + 7 * number:08}" for number in range(1000)]
Answers = Mapping[str, str]  # label by path


def asked_sweep(runs: Path, paths: list[str]) -> Path:
    """The folder of a sweep whose one chain asks for the labels of these images, and of no other."""
    images = runs / "images"
    (images / NAMES[0]).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / NAMES[0] / "0.png")  # the pool itself is not read
    overrides = ["dataset=folder", f"dataset.train_images={images}", f"dataset.test_images={images}", "oracle=files"]
    overrides += [f"dataset.class_names=[{','.join(NAMES)}]", "initial=1", "methods=[random]"]
    (config,) = compose_sweep([*overrides, "budget=1", "rounds=1", "name=imported"]).chains
    chain = run_folder.chain_folder(runs, config.name, config.method["name"], config.seed)
    write_atomic(chain / run_folder.CONFIG, save_chain(config).encode())
    rows = ((index, path, index + 1, "", "random", "") for index, path in enumerate(paths))
    files = {run_folder.QUERY: np.arange(len(paths)), TO_LABEL: store.table(COLUMNS, rows), SHEET: b""}
    run_folder.commit(asking_folder(chain, 0), files)
    return chain.parents[1]


def ours(answers: Answers) -> str:
    """A filled-in to_label.csv."""
    rows = ((index, path, index + 1, "", "random", label) for index, (path, label) in enumerate(answers.items()))
    return store.table(COLUMNS, rows).decode()


def label_studio(answers: Answers) -> str:
    """Label Studio's JSON, indented as it writes it; https://labelstud.io/guide/task_format"""
    time = "2026-11-26T10:00:00.000000Z"
    return json.dumps(
        [
            {
                "id": number,
                "annotations": [
                    {
                        "id": number,
                        "completed_by": 1,
                        "result": [
                            {
                                "value": {"choices": [label]},
                                "id": "Dx_aB91ISN",
                                "from_name": "choice",
                                "to_name": "image",
                                "type": "choices",
                                "origin": "manual",
                            }
                        ],
                        "was_cancelled": False,
                        "ground_truth": False,
                        "created_at": time,
                        "updated_at": time,
                        "draft_created_at": None,
                        "lead_time": 2.5,
                        "prediction": {},
                        "result_count": 1,
                        "unique_id": "0d4a6cde-8a3e-4d6c-a0d8-37b8d8f5a7c1",
                        "task": number,
                        "project": 3,
                        "updated_by": 1,
                    }
                ],
                "drafts": [],
                "predictions": [],
                "data": {"image": f"/data/local-files/?d=imagenet/train/{path}"},
                "meta": {},
                "created_at": time,
                "updated_at": time,
                "total_annotations": 1,
                "cancelled_annotations": 0,
                "project": 3,
            }
            for number, (path, label) in enumerate(answers.items(), 1)
        ],
        indent=2,
    )


def cvat(answers: Answers) -> str:
    """CVAT for images 1.1; https://docs.cvat.ai/docs/dataset_management/formats/format-cvat"""
    images = "\n".join(
        f'  <image id="{number}" name={quoteattr(path)} width="500" height="375">\n'
        f'    <tag label={quoteattr(label)} source="manual">\n    </tag>\n  </image>'
        for number, (path, label) in enumerate(answers.items())
    )
    meta = f"<meta><task><id>1</id><name>a task</name><size>{len(answers)}</size></task></meta>"
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
    return f"{head}  {meta}\n{images}\n</annotations>\n"


FILES: dict[str, Callable[[Answers], str]] = {
    "to_label.csv": ours,
    "label_studio.json": label_studio,
    "annotations.xml": cvat,
}


def main() -> None:
    """A line for each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64_058)
    given = parser.parse_args()
    labels = [NAMES[number] for number in np.random.default_rng(0).integers(0, len(NAMES), given.images)]
    answers = {f"{label}/{label}_{number}.JPEG": label for number, label in enumerate(labels)}
    clock = Clock()
    for name, write in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            sweep = asked_sweep(Path(folder), list(answers))
            path = Path(folder) / name
            path.write_text(write(answers))
            with clock.part(name):
                taken = import_files(sweep, [path])
            assert not taken.missing
            assert [row.label for row in taken.rows] == labels
            part = clock.parts[-1]
            print(
                f"{name}: {given.images:,} answers, {path.stat().st_size / 2**20:.0f} MiB, {part.seconds:.1f} s, "
                f"{part.cpu:.1f} processor s",
                flush=True,
            )


if __name__ == "__main__":
    main()
