"""How busy a job's GPUs on this node are, by nvidia-smi, a look every half minute; nothing where there is none."""

from __future__ import annotations

import os
import subprocess
import time

EVERY_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0


class GpuShare:
    """The mean share of time in which the GPUs of this job compute, and their memory."""

    def __init__(self, gpus: int) -> None:
        self.memory_mib: int | None = None
        self._found: list[float] = []
        self._looked = time.monotonic() if gpus else float("inf")

    @property
    def percent(self) -> float | None:
        """Mean over the looks so far, None without any."""
        return round(sum(self._found) / len(self._found), 1) if self._found else None

    def look(self) -> None:
        """Ask nvidia-smi, if the last look is long enough ago."""
        if time.monotonic() - self._looked < EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        command = ["nvidia-smi", f"--id={os.environ.get('CUDA_VISIBLE_DEVICES', '')}"]
        command += ["--query-gpu=utilization.gpu,memory.total", "--format=csv,noheader,nounits"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True).stdout
            rows = [[float(cell) for cell in row.split(",")] for row in said.splitlines()]
            self._found += [share for share, _ in rows]
            self.memory_mib = int(min(memory for _, memory in rows))
        except (OSError, subprocess.SubprocessError, ValueError):  # no such command, or it does not tell: none is known
            self._looked = float("inf")
