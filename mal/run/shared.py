"""Phases of a round that several chains of a sweep train alike: trained by one of them, taken by the others.

What a phase ends with is a function of what it begins with, so it is kept under the hash of that: the networks as they
were initialised, the configuration of a step, batches, data, code and machine. A chain that would begin with the same
takes the networks instead of training them, bit for bit. What is kept is a convenience: where it is missing, damaged or
cannot be read, the chain trains. The last chain of the seed to commit the round removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mal.config.alike import TRAINED_AS, signatures
from mal.config.frozen import load_chain
from mal.config.schema import Chain
from mal.process.distributed import World
from mal.run import checkpoint
from mal.run import folder as run_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shared:
    """What one chain may take from others of its sweep and seed in round `number`, and keep for them.

    origin: all that a phase depends on besides what `identity` is given. taken: of this round, phase -> the chain that
    trained it.
    """

    chain: Path
    config: Chain
    number: int
    origin: str
    taken: dict[str, str] = field(default_factory=dict)

    def identity(
        self,
        phase: str,
        recipe: object,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        indices: Mapping[str, np.ndarray],
        batch: int,
        steps: int,
    ) -> str:
        """The hash of all that decides what the phase ends with; recipe: the section of the configuration of a step."""
        digest = hashlib.sha256(f"{self.origin}/{phase}/{recipe!r}/{batch}/{steps}".encode())
        for name, module in modules.items():
            digest.update(f"/{name}/{module!r}".encode())
            for key, tensor in module.state_dict().items():
                digest.update(f"/{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        for name, optimizer in optimizers.items():
            groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            digest.update(f"/{name}/{type(optimizer).__qualname__}/{groups!r}".encode())
        for name, values in indices.items():
            digest.update(f"/{name}/{len(values)}".encode() + np.ascontiguousarray(values, np.int64).tobytes())
        return digest.hexdigest()

    def take(self, phase: str, identity: str, device: torch.device, world: World) -> dict[str, Any] | None:
        """Networks and history of the phase, by name, as another chain kept them; None where none did."""
        try:
            kept = checkpoint.load(self._path(phase, identity), identity, device, world)
        except OSError as error:
            log.warning("What other chains trained cannot be read (%s): phase %s is trained here.", error, phase)
            return None
        if kept is not None:
            self.taken[phase] = str(kept["chain"])
            log.info("phase %s is taken from %s, which trained the same", phase, kept["chain"])
        return kept

    def keep(self, phase: str, identity: str, state: Mapping[str, Any]) -> None:
        """Keep networks and history for the chains that have this phase before them; state: as `take` returns it."""
        path = self._path(phase, identity)
        try:
            if phase in self.taken or path.is_file() or not self._wanted(phase):
                return
            name = f"{self.chain.parent.name}/{self.chain.name}"
            checkpoint.save(path, {"identity": identity, "chain": name, **state})
        except OSError as error:
            log.warning("Phase %s cannot be kept for other chains (%s): they train it themselves.", phase, error)

    def clear(self) -> None:
        """Remove what is kept of this round and those before it, where no chain of the seed has them before it.

        Called after this one's commit; one before it may have been killed between the two.
        """
        for number in range(self.number + 1):
            if (folder := self._folder(number)).exists() and not self._others(number):
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # other rounds or seeds have not finished
                    folder.parent.rmdir()
                    folder.parent.parent.rmdir()

    def _wanted(self, phase: str) -> bool:
        """Whether another chain has the phase before it. phase: as it is named in training."""
        named = next(name for name, trained in TRAINED_AS.items() if trained == phase)
        own = signatures(self.config, named, self.number)[0]
        return any(own in signatures(other, named, self.number) for other in self._others(self.number))

    def _others(self, number: int) -> list[Chain]:
        """Of the other chains of the sweep and seed, those that have round `number` before them."""
        sweep, seed = self.chain.parent.parent, self.chain.name
        chains = [path.parent for path in sweep.glob(f"*/{seed}/{run_folder.CONFIG}") if path.parent != self.chain]
        left = [c for c in chains if not run_folder.is_committed(run_folder.round_folder(c, number))]
        configs = [load_chain(chain / run_folder.CONFIG) for chain in left]
        return [config for config in configs if number < config.rounds]

    def _folder(self, number: int) -> Path:
        return self.chain.parent.parent / run_folder.SHARED / self.chain.name / f"round-{number}"

    def _path(self, phase: str, identity: str) -> Path:
        return self._folder(self.number) / f"{phase}-{identity[:16]}.ckpt"
