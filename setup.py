"""Where a wheel has the packages: mal at top level, the others in a folder mal_commands, shadowing nobody's `analysis`.

In the repository and in an editable install they stay where they are; mal/console.py finds them in both.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDER = "mal_commands"
MOVED = ("analysis", "slurm", "sweeps")


class BuildPy(build_py):
    """Moves them once they are built."""

    def run(self) -> None:
        """Build, then move."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, FOLDER)
        shutil.rmtree(folder, ignore_errors=True)  # of a build before
        folder.mkdir()
        for package in MOVED:
            Path(self.build_lib, package).rename(folder / package)


setup(cmdclass={"build_py": BuildPy})
