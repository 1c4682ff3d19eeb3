"""A real Chromium, driven over its DevTools protocol."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe")  # fmt: skip


class Tab:
    """A browser tab driven over the DevTools protocol: commands and events are JSON, each ended by a NUL byte."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back = to, back
        self.buffer, self.count, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def ask(self, method: str, **params: Any) -> Any:
        """The answer to a command; events that arrive meanwhile are kept."""
        self.count += 1
        number = self.count
        message = {"id": number, "method": method, "params": params}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait(self, event: str) -> None:
        """Return when an event has happened."""
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self.read())

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            data = os.read(self.back, 1 << 20)
            assert data, "the browser has gone"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return dict(json.loads(message))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A new headless browser with an empty profile."""
    assert BROWSER is not None
    (its_in, to), (back, its_out) = os.pipe(), os.pipe()
    words = [BROWSER, *QUIET, f"--user-data-dir={profile}"]
    shell = f'exec "$@" 3<&{its_in} 4>&{its_out}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *words], pass_fds=(its_in, its_out), stderr=subprocess.DEVNULL
    )
    os.close(its_in)
    os.close(its_out)
    try:
        yield Tab(to, back)
    finally:
        process.terminate()
        process.wait(30)
        os.close(to)
        os.close(back)
