"""The pages on adding something, followed to the letter in a copy of the checkout: it runs, every check stays green."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mal.run import folder as run_folder
from tests.chains import ROOT, environment
from tests.made_up_data import write_cifar100

# A step of a page: its file in backticks, for a new one the number of its lines, then the text that goes there.
STEP = re.compile(
    r"\*\*\d\. [^`\n]*?`(?P<file>[\w/.]+)`(?: \((?P<lines>\d+) lines\))?.*?\n\n```\w+\n(?P<text>.*?)```", re.S
)
COMMAND = re.compile(r"```sh\npython (sweeps/launch\.py .*)\n```")
QUICK = ("rounds=2", "initial=20", "budget=4", "minimax.epochs=0.2", "task.epochs=0.2", "device=cpu", "threads=1")
LITTLE = ("minimax.batch=8", "task.batch=8", "cluster=local", "cluster.workers=1")


def write_kuzushiji49(data: Path) -> None:
    """The four npz files, of made-up images."""
    random = np.random.default_rng(0)
    for part, count in (("train", 98), ("test", 49)):
        folder = data / "kuzushiji-49"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"k49-{part}-imgs.npz", random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        np.savez_compressed(folder / f"k49-{part}-labels.npz", np.arange(count, dtype=np.uint8) % 49)


def write_small_cifar100(data: Path) -> None:
    """CIFAR100's python version, of few images."""
    write_cifar100(data / "cifar-100-python", train=60, test=20)


@dataclass(frozen=True)
class Page:
    """A page, its data, what makes its command a matter of seconds, and the names that must show up when it ran."""

    name: str
    data: Callable[[Path], None]
    small: tuple[str, ...]
    dataset: str
    backbone: str


PAGES = [
    Page(
        "add-a-dataset.md",
        write_kuzushiji49,
        ("dataset.train=98", "dataset.test=49", "backbone.width=4"),
        "kuzushiji49",
        "small_cnn",
    ),
    Page("add-a-backbone.md", write_small_cifar100, ("dataset.train=60", "dataset.test=20"), "cifar100", "shufflenet"),
]


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.name)
def followed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    """A page, and a copy of the checkout in which its steps were done."""
    page: Page = request.param
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("analysis", "benchmarks", "docs", "mal", "slurm", "sweeps", "tests", "pyproject.toml", "Makefile"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "study"))
        else:
            shutil.copy(source, checkout / name)
    follow((ROOT / "docs" / page.name).read_text(), checkout)
    return page, checkout


def follow(text: str, checkout: Path) -> None:
    """Do the steps of a page: a file with a number of lines is new; another one gets its line in alphabetical order."""
    steps = list(STEP.finditer(text))
    assert len(steps) == 3
    for step in steps:
        path, content = checkout / step["file"], step["text"]
        if step["lines"]:
            assert not path.exists()
            assert len(content.splitlines()) == int(step["lines"])
            path.write_text(content)
        else:
            assert len(content.splitlines()) == 1
            lines = path.read_text().splitlines(keepends=True)
            head = next(i for i, line in enumerate(lines) if line.startswith("from "))
            path.write_text("".join([*lines[:head], *sorted([*lines[head:], content])]))


def run(checkout: Path, *command: str | Path) -> str:
    """A command in the copy, which must succeed; what it said."""
    result = subprocess.run(
        [*map(str, command)],
        cwd=checkout,
        env=environment(PYTHONPATH=str(checkout)),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_the_pages_command_runs(followed: tuple[Page, Path]) -> None:
    page, checkout = followed
    page.data(checkout / "data")
    command = COMMAND.search((checkout / "docs" / page.name).read_text())
    assert command is not None
    run(checkout, sys.executable, *command[1].split(), *page.small, *QUICK, *LITTLE)
    for method in ("mal", "random"):
        chain = run_folder.chain_folder(checkout / "runs", page.dataset, method, 0)
        first, last = (run_folder.read_round(run_folder.round_folder(chain, number)) for number in (0, 1))
        assert (first.metrics["dataset"], first.metrics["backbone"]) == (page.dataset, page.backbone)
        assert first.query is not None
        assert last.labeled.tolist() == np.union1d(first.labeled, first.query).tolist()


@pytest.mark.slow
def test_the_checkout_stays_green(followed: tuple[Page, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    _, checkout = followed
    tools = Path(sys.executable).parent
    run(checkout, tools / "ruff", "check")
    run(checkout, tools / "ruff", "format", "--check")
    run(checkout, tools / "mypy", "--cache-dir", tmp_path_factory.getbasetemp() / "mypy")
    said = run(
        checkout, sys.executable, "-m", "pytest", "tests/test_layers.py", "tests/config", "-p", "no:cacheprovider"
    )
    assert "skipped" not in said
