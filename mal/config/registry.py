"""Names for datasets, backbones and methods."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the close ones, if any, as `; did you mean a or b?`."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.55)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class Registry(Generic[T]):
    """Things by name: a duplicate name raises, an unknown one lists the known ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that puts a class or function under `name`."""

        def put(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._entries[name]} and {entry}.")
            self._entries[name] = entry
            return entry

        return put

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            hint = nearest(name, self._entries)
            raise ValueError(f"{self.kind} {name!r} is unknown{hint or '.'} Known: {', '.join(self.names())}.")
        return self._entries[name]

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._entries)
