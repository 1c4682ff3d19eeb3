"""The labelling page: who may reach it, what it shows, and a pool labelled in a real Chromium, killed in between."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client

from mal.labels import journal, store
from mal.labels.importing import import_files
from mal.labels.page import Application
from mal.labels.session import Session, alone
from mal.run import folder as run_folder
from tests.browser import BROWSER, Tab, browser
from tests.chains import ROOT, environment, launch
from tests.labels.pools import NAMES, overrides, truth, write_pool

TOKEN = "a-token"
HERE = {"base_url": "http://127.0.0.1:8000/"}


@pytest.fixture
def client(sweep: Path) -> Client:
    return Client(Application(Session(sweep), TOKEN))


@pytest.mark.parametrize(
    ("path", "place", "status"),
    [
        (f"/{TOKEN}/", "http://127.0.0.1:8000/", 200),
        (f"/{TOKEN}/", "http://localhost:8000/", 200),
        (f"/{TOKEN}/", "http://example.org:8000/", 400),  # a name that somebody points at this machine
        ("/another/", "http://127.0.0.1:8000/", 404),
        ("/", "http://127.0.0.1:8000/", 404),
        (f"/{TOKEN}/image/10", "http://127.0.0.1:8000/", 200),
        (f"/{TOKEN}/image/1", "http://127.0.0.1:8000/", 404),  # of the pool, but not asked for
        (f"/{TOKEN}/image/../../etc/passwd", "http://127.0.0.1:8000/", 404),
        (f"/{TOKEN}/answer", "http://127.0.0.1:8000/", 405),
    ],
)
def test_who_may_see_what(client: Client, path: str, place: str, status: int) -> None:
    answer = client.get(path, base_url=place)
    assert answer.status_code == status
    assert answer.headers["Cache-Control"] == "no-store"


def test_an_answer_is_on_disk_before_the_next_picture_and_can_be_undone(sweep: Path, client: Client) -> None:
    first = client.get(f"/{TOKEN}/state", **HERE).get_json()
    assert (first["index"], first["given"], first["asked"], first["classes"]) == (0, 0, 6, list(NAMES))
    after = client.post(f"/{TOKEN}/answer", json={"index": 0, "label": "ant"}, **HERE).get_json()
    assert journal.read(sweep) == {0: "ant"}
    assert (after["index"], after["given"], after["last"]) == (10, 1, "ant")
    client.post(f"/{TOKEN}/undo", json={}, **HERE)
    assert journal.read(sweep) == {}
    for index, label in ((1, "ant"), (0, "dog"), (None, "ant")):
        assert client.post(f"/{TOKEN}/answer", json={"index": index, "label": label}, **HERE).status_code == 400
    client.post(f"/{TOKEN}/answer", json={"index": 0, "label": "cannot tell"}, **HERE)
    client.post(f"/{TOKEN}/answer", json={"index": 10, "label": "bee"}, **HERE)
    with (sweep / store.FOLDER / journal.NAME).open("ab") as file:
        file.write(b'{"index": 20, "lab')  # of a process that was killed
    again = Session(sweep)
    assert again.answers == {0: "cannot tell", 10: "bee"}
    again.answer(20, "wasp")
    again.take()
    assert journal.read(sweep) == {}
    assert again.current == 30
    assert store.read(sweep, NAMES).of(again_indices := store.read(sweep, NAMES).indices).tolist() == [-2, 1, 2]
    assert again_indices.tolist() == [0, 10, 20]


def test_one_page_at_a_time_and_what_came_by_a_file_meanwhile_is_not_asked_again(sweep: Path, tmp_path: Path) -> None:
    with alone(sweep), pytest.raises(ValueError, match="being labelled by another"), alone(sweep):
        pass
    session = Session(sweep)
    (tmp_path / "a.csv").write_text("index,label\n0,ant\n")
    import_files(sweep, [tmp_path / "a.csv"])
    session.refresh()
    assert session.current == 10


# ------------------------------------------------------------------------- in a browser


def value(tab: Tab, expression: str) -> str:
    """What an expression is in the page, as text; "" while the page is not there yet."""
    return str(tab.ask("Runtime.evaluate", expression=f"String({expression})")["result"].get("value", ""))


def until(tab: Tab, expression: str) -> None:
    """Wait until an expression holds."""
    deadline = time.monotonic() + 60
    while value(tab, expression) != "true":
        assert time.monotonic() < deadline, f"{expression}: {value(tab, 'document.body.innerText')}"
        time.sleep(0.02)


def press(tab: Tab, key: str) -> None:
    """A key of the keyboard."""
    text = {"text": key} if len(key) == 1 else {}
    tab.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
    tab.ask("Input.dispatchKeyEvent", type="keyUp", key=key)


@contextlib.contextmanager
def served(runs: Path, name: str) -> Iterator[str]:
    """The page's address, while its process runs; it is killed at the end."""
    command = [sys.executable, str(ROOT / "sweeps" / "label.py"), f"runs={runs}", f"name={name}", "serve=true"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[2]
        finally:
            process.kill()


def answer_here(tab: Tab) -> None:
    """Label the picture that is shown, by its key, and wait for the next."""
    shown = value(tab, "document.body.dataset.index")
    until(tab, "document.images[0].complete && document.images[0].naturalWidth > 0")
    press(tab, str(1 + NAMES.index(truth(value(tab, "document.getElementById('path').textContent")))))
    until(tab, f"document.body.dataset.index !== '{shown}'")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (Debian: chromium)")
def test_a_pool_is_labelled_in_a_browser_over_two_rounds_killed_in_between(tmp_path: Path) -> None:
    words = overrides(
        write_pool(tmp_path / "pool"), "rounds=2", "initial=4", "budget=3", "name=page", "methods=[random]"
    )
    words = (*words, f"runs={tmp_path / 'runs'}", "cluster=local")
    chain = tmp_path / "runs" / "page" / "random" / "seed-0"
    with browser(tmp_path / "profile") as tab:
        tab.ask("Network.enable")
        tab.ask("Page.enable")
        for asked in (4, 3):
            ended = launch(*words, "oracle=files")
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert f"waits for {asked} labels (0 given)" in ended.stdout
            for last, answers in ((False, 2), (True, asked - 2)):  # the page's process is killed after two
                with served(tmp_path / "runs", "page") as address:
                    tab.ask("Page.navigate", url=address)
                    until(tab, f"location.href === '{address}' && document.body.dataset.index >= 0")
                    if asked == 4 and not last:
                        answer_here(tab)
                        press(tab, "Backspace")
                        until(tab, "document.getElementById('given').textContent === '0 of 4'")
                    for _ in range(answers):
                        answer_here(tab)
                    if last:
                        press(tab, "Enter")
                        until(tab, "document.getElementById('given').textContent === '0 of 0'")
    ended = launch(*words, "oracle=files")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ended = launch(*words, "name=truth", "seeds=1")
    for number in range(2):
        for name in (run_folder.LABELED, run_folder.HISTORY):
            other = tmp_path / "runs" / "truth" / "random" / "seed-0" / f"round-{number}" / name
            assert (chain / f"round-{number}" / name).read_bytes() == other.read_bytes()
    urls = {e["params"]["request"]["url"] for e in tab.events if e.get("method") == "Network.requestWillBeSent"}
    assert all(url.startswith("http://127.0.0.1:") for url in urls), urls
    policy = [e["params"]["response"]["headers"] for e in tab.events if e.get("method") == "Network.responseReceived"]
    assert "default-src 'none'" in json.dumps(policy)
