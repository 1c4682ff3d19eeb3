"""One person's labelling of what a sweep asks for: each answer is on disk before the next picture is shown."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from mal.config.people import CANNOT_TELL
from mal.labels import journal, store
from mal.labels.asking import Asked, read_asked
from mal.labels.formats import Said
from mal.labels.importing import Taken, chains_of, images_folder, take
from mal.run.heartbeat import now
from mal.run.lock import hold

LOCK = ".page.lock"


class Session:
    """What is asked for, in order, and the answers that the journal has of it."""

    def __init__(self, sweep: Path) -> None:
        """Raises ValueError where images need maps, which a page cannot draw."""
        self.sweep, self.chains = sweep, chains_of(sweep)
        config = self.chains[0][1]
        if config.dataset.task == "segmentation":
            raise ValueError(
                "serve=true is for images of one class each: draw maps elsewhere, and import= their PNG files."
            )
        self.names, self.images = tuple(config.dataset.class_names or []), images_folder(config)
        self.max_pixels, self.exif = config.dataset.max_pixels, config.dataset.exif != "ignore"
        self._lock = threading.RLock()
        self.answers: dict[int, str] = {}  # in the order they were given
        self.refresh()

    def refresh(self) -> None:
        """Read anew what is asked for, and what the journal has of it."""
        with self._lock:
            answers = store.read(self.sweep, self.names)
            self.asked: Asked = read_asked([folder for folder, _ in self.chains], answers)
            still = set(self.asked.open)
            self.answers = {i: label for i, label in journal.read(self.sweep).items() if i in still}

    @property
    def current(self) -> int | None:
        """The image to show; None where all are answered."""
        with self._lock:
            return next((index for index in self.asked.open if index not in self.answers), None)

    def answer(self, index: int, label: str) -> None:
        """Note an answer; ValueError where the image is not asked for, or the label is none."""
        with self._lock:
            if index not in self.asked.open:
                raise ValueError(f"index {index} is not asked for")
            if label not in (*self.names, CANNOT_TELL):
                raise ValueError(f"{label!r} is no class")
            journal.note(self.sweep, index, label)
            self.answers.pop(index, None)
            self.answers[index] = label

    def undo(self) -> None:
        """Take the last answer back, where there is one."""
        with self._lock:
            if self.answers:
                index = next(reversed(self.answers))
                journal.note(self.sweep, index, None)
                del self.answers[index]

    def take(self) -> Taken:
        """Take the answers into the store; the journal is then empty."""
        with self._lock:
            paths = self.asked.paths
            said = [Said(f"the page, {paths[i]}", "the page", i, paths[i], each) for i, each in self.answers.items()]
            taken = take(self.sweep, said, {"files": [{"file": journal.NAME, "sha256": None}], "time": now()})
            journal.clear(self.sweep)
            self.refresh()
            return taken


@contextlib.contextmanager
def alone(sweep: Path) -> Iterator[None]:
    """One page at a time; ValueError where there is another."""
    (sweep / store.FOLDER).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold(sweep / store.FOLDER / LOCK, 0))
        except TimeoutError:
            raise ValueError(f"{sweep.name} is being labelled by another serve=true: stop that one first.") from None
        yield
