"""The pages on adding a dataset or a backbone, followed to the letter in a copy of the checkout, which stays green.

The page on adding a method has its test in tests/methods/test_others.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mal.run import folder as run_folder
from tests import pages
from tests.chains import ROOT
from tests.made_up_data import write_cifar100

# A step of a page: its file in backticks; for a new file the number of its lines in brackets.
STEP = re.compile(r"\*\*\d\. [^`\n]*?`(?P<file>[\w/.]+)`(?: \((?P<lines>\d+) lines\))?")
QUICK = ("rounds=2", "initial=20", "budget=4", "minimax.epochs=0.2", "task.epochs=0.2", "device=cpu", "threads=1")
LITTLE = ("minimax.batch=8", "task.batch=8", "cluster=local", "cluster.workers=1")


def write_kuzushiji49(data: Path) -> None:
    """The four npz files, of made-up images."""
    random, folder = np.random.default_rng(0), data / "kuzushiji-49"
    folder.mkdir(parents=True)
    for part, count in (("train", 98), ("test", 49)):
        np.savez_compressed(folder / f"k49-{part}-imgs.npz", random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        np.savez_compressed(folder / f"k49-{part}-labels.npz", np.arange(count, dtype=np.uint8) % 49)


def write_small_cifar100(data: Path) -> None:
    """CIFAR100's python version, of few images."""
    write_cifar100(data / "cifar-100-python", train=60, test=20)


@dataclass(frozen=True)
class Page:
    """A page, its data, what makes its command a matter of seconds, and the names that show when it ran."""

    name: str
    data: Callable[[Path], None]
    small: tuple[str, ...]
    dataset: str
    backbone: str


KUZUSHIJI = ("dataset.train=98", "dataset.test=49", "backbone.width=4")
CIFAR = ("dataset.train=60", "dataset.test=20")
PAGES = [
    Page("add-a-dataset", write_kuzushiji49, KUZUSHIJI, "kuzushiji49", "small_cnn"),
    Page("add-a-backbone", write_small_cifar100, CIFAR, "cifar100", "shufflenet"),
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_does_what_it_says(page: Page, tmp_path: Path) -> None:
    pages.copy_checkout(tmp_path)
    page.data(tmp_path / "data")
    steps = list(STEP.finditer((ROOT / "docs" / f"{page.name}.md").read_text()))
    *texts, (_, command) = pages.blocks(page.name)
    code, settings, line = (text for _, text in texts)
    for step, text in zip(steps, (code, settings), strict=False):
        assert len(text.splitlines()) == int(step["lines"])
        with (tmp_path / step["file"]).open("x") as file:
            file.write(text)
    words = [*command.split()[1:], *page.small, *QUICK, *LITTLE]
    with pytest.raises(AssertionError, match=r"does not import it, so no job would find it"):
        pages.run(tmp_path, *words)
    add_line(tmp_path / steps[2]["file"], line)
    pages.run(tmp_path, *words)
    for method in ("mal", "random"):
        chain = run_folder.chain_folder(tmp_path / "runs", page.dataset, method, 0)
        first, last = (run_folder.read_round(run_folder.round_folder(chain, number)) for number in (0, 1))
        assert (first.metrics["dataset"], first.metrics["backbone"]) == (page.dataset, page.backbone)
        assert first.query is not None
        assert last.labeled.tolist() == np.union1d(first.labeled, first.query).tolist()
    pages.check(tmp_path, "tests/test_layers.py", "tests/config")


def add_line(package: Path, line: str) -> None:
    """Put one line of import among the others, in alphabetical order."""
    assert line.count("\n") == 1
    lines = package.read_text().splitlines(keepends=True)
    head = next(i for i, other in enumerate(lines) if other.startswith("from "))
    package.write_text("".join([*lines[:head], *sorted([*lines[head:], line])]))
