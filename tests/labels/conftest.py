"""A sweep that asks people for its first labels, for the tests of what they answer."""

import shutil
from pathlib import Path

import pytest

from tests.labels.pools import asked_sweep, write_pool


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("asking")
    return asked_sweep(write_pool(root / "pool"), root / "runs")


@pytest.fixture
def sweep(asking: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(asking, tmp_path / "runs" / asking.name))
