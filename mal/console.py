"""The commands of an installed package: mal-launch, -status, -cancel, -label, -prune, -curves and -prepare.

Those of the repository, `python sweeps/launch.py` and so on, are the same modules.
"""

from __future__ import annotations

import sys
from importlib import import_module

from mal.files import run_command
from mal.run.code_copy import commands_folder


def launch() -> None:
    """mal-launch."""
    _run("sweeps.launch")


def status() -> None:
    """mal-status."""
    _run("sweeps.status")


def cancel() -> None:
    """mal-cancel."""
    _run("sweeps.cancel")


def prune() -> None:
    """mal-prune."""
    _run("sweeps.prune")


def label() -> None:
    """mal-label."""
    _run("sweeps.label")


def curves() -> None:
    """mal-curves."""
    _run("analysis.curves")


def prepare() -> None:
    """mal-prepare."""
    _run("mal.data.prepare")


def _run(module: str) -> None:
    # First, so that nobody's package of the same name on PYTHONPATH is taken for ours.
    sys.path.insert(0, str(commands_folder()))
    run_command(import_module(module).main)
