"""Folders of images as people have them: other programs' files, links, permissions, names that look alike."""

import contextlib
import os
import shutil
import socket
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mal import listing
from mal.config.lists import read_class_list, read_lists
from mal.data.decode import Reading, decode_image
from mal.data.image_set import Store
from mal.listing import (
    extensions,
    file_states,
    list_classes,
    list_images,
    say_difference,
    say_left_out,
    some,
    twins_of,
)
from tests.made_up_data import jpeg, picture, put, write_folders
from tests.odd_images import photo, saved

IMAGE = jpeg(picture(0, 40, 36))


@pytest.fixture
def train(tmp_path: Path) -> Path:
    write_folders(tmp_path)
    return tmp_path / "train"


def counts(root: Path) -> dict[str, int]:
    return {name: len(images) for name, images in list_classes(root, "key").classes.items()}


def test_what_programs_leave_behind_is_not_counted_and_is_said(train: Path) -> None:
    before = counts(train)
    for junk in (".ipynb_checkpoints", "@eaDir", ".Trash-1000", "__MACOSX", ".thumbnails"):
        put(train / "ant" / junk / "1.jpg", IMAGE)
        put(train / junk / "1.jpg", IMAGE)
    put(train / "ant" / "._1.jpg", b"\0\5\x16\7")
    put(train / "readme.txt", b"")
    tree = list_classes(train, "key")
    assert {name: len(images) for name, images in tree.classes.items()} == before
    said = say_left_out(tree.left_out)
    for what in ("2 folders @eaDir", "2 folders .ipynb_checkpoints", "1 hidden files", "1 .txt", "1 files beside"):
        assert what in said


@pytest.mark.parametrize("end", [".gif", ".avif", ".jfif", ".jpe", ".webp", ".jp2", ".JPEG"])
def test_what_can_be_read_is_counted(train: Path, end: str) -> None:
    before = counts(train)["ant"]
    put(train / "ant" / f"more{end}", IMAGE)
    assert end.lower() in extensions()
    assert counts(train)["ant"] == before + 1


def test_pictures_that_cannot_be_read_here_are_counted_and_said(train: Path) -> None:
    for number in range(3):
        put(train / "ant" / f"{number}.heic", IMAGE)
    put(train / "bee" / "notes.txt", b"")
    assert (
        say_left_out(list_classes(train, "key").left_out)
        == "3 .heic, not read here without pip install pillow-heif, 2 .txt"
    )


def test_heic_is_read_where_its_plugin_is_installed() -> None:
    pytest.importorskip("pillow_heif")
    assert ".heic" in extensions()
    content = saved(photo(), "HEIF", quality=95)
    how = Reading(32, "square")
    far = decode_image(content, how).astype(int) - decode_image(saved(photo(), "PNG"), how)
    assert np.abs(far).mean() < 3


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: socket.socket(socket.AF_UNIX).bind(str(path))])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_file_is_left_out_and_said(train: Path, make: Callable[[Path], None], linked: bool) -> None:
    before = counts(train)
    if linked:
        make(train.parent / "x")
        (train / "ant" / "x.jpg").symlink_to(train.parent / "x")
    else:
        make(train / "ant" / "x.jpg")
    assert counts(train) == before
    assert "1 pipes, sockets or devices" in say_left_out(list_classes(train, "key").left_out)


@pytest.mark.parametrize(
    "name", [b"a\nb.jpg", b"-rf.jpg", "\U0001f41c.jpg".encode(), b"x" * 251 + b".jpg", b"\xff\xfe.jpg"]
)
def test_a_name_is_a_name_and_is_shown_as_text(train: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(train / "ant") + b"/" + name))
    path.write_bytes(IMAGE)
    images = list_classes(train, "key").classes["ant"]
    assert os.fsdecode(name) in images.names
    store = Store.of(train / "ant", images)
    index = images.names.index(os.fsdecode(name))
    assert store.content(index) == IMAGE
    assert store.path(index).isprintable()
    assert some([path.name]).isprintable()


def test_folders_of_a_slow_storage_are_listed_side_by_side(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mal.listing.SURE_SECONDS", 0)
    monkeypatch.setattr("mal.listing.SLOW_PER_S", 1e9)
    seen = set()
    walk = listing._walk
    monkeypatch.setattr(listing, "_walk", lambda *args: (seen.add(threading.current_thread().name), walk(*args)))
    assert counts(train) == {"ant": 10, "bee": 10, "wasp": 10}
    assert any("ThreadPool" in name for name in seen)


def test_every_link_to_nothing_and_loop_is_named(train: Path) -> None:
    (train / "moth").symlink_to(train.parent / "gone")
    (train / "ant" / "lost.jpg").symlink_to(train.parent / "gone.jpg")
    (train / "bee" / "again").symlink_to(train)
    (train / "wasp" / "self.jpg").symlink_to(train / "wasp" / "self.jpg")
    with pytest.raises(ValueError, match=r"^key: ") as refusal:
        list_classes(train, "key")
    for words in (
        f"{train}/moth is a link to {train.parent}/gone, which is not there",
        f"{train}/ant/lost.jpg is a link to",
        f"{train}/bee/again is a link to a folder that it is in",
        f"{train}/wasp/self.jpg is a link that leads to itself",
    ):
        assert words in str(refusal.value)


def test_links_that_lead_somewhere_are_followed(train: Path) -> None:
    shutil.move(train / "wasp", train.parent / "elsewhere")
    (train / "wasp").symlink_to(train.parent / "elsewhere")
    (train / "ant" / "one.jpg").symlink_to(train / "bee" / "1.jpg")
    assert counts(train) == {"ant": 11, "bee": 10, "wasp": 10}


@contextlib.contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """As a user whom permissions stop."""
    if os.geteuid() != 0:
        yield
        return
    for parent in (folder, *folder.parents[:4]):
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_an_unreadable_folder_is_named(train: Path, mode: int) -> None:
    (train / "bee").chmod(mode)
    with unprivileged(train), pytest.raises(ValueError, match=rf"{train}/bee.* cannot be read \(Permission denied\)"):
        list_classes(train, "key")
    (train / "bee").chmod(0o755)


def test_an_unreadable_file_is_named(train: Path) -> None:
    (train / "bee" / "1.jpg").chmod(0)
    images = list_classes(train, "key").classes["bee"]
    with unprivileged(train), pytest.raises(ValueError, match=r"bee/1\.jpg cannot be read \(Permission denied\)"):
        Store.of(train / "bee", images).content(images.names.index("1.jpg"))


def test_a_failing_storage_is_no_fault_of_the_files(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Input/output error"):
        list_classes(train, "key")


def test_one_folder_too_high_or_too_low_is_told(train: Path) -> None:
    with pytest.raises(ValueError, match=rf"one folder too high\. Set key={train.parent}/test"):
        list_classes(train.parent, "key")
    shutil.rmtree(train / "ant" / "more")
    with pytest.raises(ValueError, match=rf"one folder too low\. Set key={train}"):
        list_classes(train / "ant", "key")
    outer = train.parent / "outer"
    outer.mkdir()
    train.rename(outer / "insects")
    with pytest.raises(ValueError, match=rf"one folder too high\. Set key={outer}/insects"):
        list_classes(outer, "key")


def test_names_that_look_alike_are_told() -> None:
    composed, apart = (unicodedata.normalize(form, "Bärenklau") for form in ("NFC", "NFD"))
    assert twins_of([composed, apart, "ant", "Ant", "bee"]) == [(apart, composed), ("Ant", "ant")]
    said = say_difference("train", [composed, "wasp"], "test", [apart])
    assert "wasp in train only" in said.replace(f"{composed}, ", "")
    assert "differ in case or in Unicode's form" in said
    assert say_difference("train", ["a", ""], "test", ["a"]) == "'' in train only"


def test_states_of_files_come_with_their_folders(train: Path) -> None:
    found, absent = file_states(train, ["ant/1.jpg", "ant/no.jpg"]).states()
    state = (train / "ant" / "1.jpg").stat()
    _, size, time = found
    assert found == ("ant/1.jpg", state.st_size, state.st_mtime_ns)
    assert absent == ("ant/no.jpg", -1, 0)
    images = list_images(train / "ant", "key")
    assert ("1.jpg", size, time) in list(images.states())


# ------------------------------------------------------------------------- lists


def lists(folder: Path, train: str, test: str) -> tuple[Path, Path]:
    put(folder / "train.txt", train.encode())
    put(folder / "test.txt", test.encode())
    return folder / "train.txt", folder / "test.txt"


ROOTS = (Path("/photos"), Path("/photos"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("b/2.jpg;1\na/1.jpg;0", "a/3.jpg;0"),
        ('"path","label"\r\n"b/2.jpg","1"\r\n"a/1.jpg","0"', '"a/3.jpg","0"'),
        ("/photos/b/2.jpg,1\n/photos/a/1.jpg,0", "/photos/a/3.jpg,0"),
        ("b/2.jpg 1\na/1.jpg 0\n", "a/3.jpg 0\n"),
        ("b/2.jpg,1\r\n./a/1.jpg,0\r\n\r\n", "a/3.jpg,0"),
        ("\ufeffpath,label\nb/2.jpg,1\na/1.jpg,0", "path,label\na/3.jpg,0"),
        ("b/2.jpg\t1\na/1.jpg\t0", "a/3.jpg\t0"),
    ],
)
def test_lists_of_paths_and_labels_are_read(tmp_path: Path, train: str, test: str) -> None:
    found, names = read_lists(*lists(tmp_path, train, test), ROOTS)
    assert found == ({"a/1.jpg": 0, "b/2.jpg": 1}, {"a/3.jpg": 0})
    assert list(found[0]) == ["a/1.jpg", "b/2.jpg"]
    assert names == ["0", "1"]


def test_names_of_classes_are_numbered_in_order(tmp_path: Path) -> None:
    found, names = read_lists(*lists(tmp_path, "1.jpg wasp\n2 and more.jpg ant", "3.jpg wasp"), ROOTS)
    assert (found, names) == (({"1.jpg": 1, "2 and more.jpg": 0}, {"3.jpg": 1}), ["ant", "wasp"])


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("a.jpg 0\nb.jpg", r"train\.txt, line 2: 'b\.jpg' is not `path label`"),
        ("a.jpg 0\na.jpg 1", "a.jpg is there before, with the label 0"),
        ("a.jpg 0\n../b.jpg 1", "line 2"),
        ("a.jpg 0\nb.jpg 2", "has no image of the classes 1: labels are to be numbers from 0"),
        ("a.jpg 1\nb.jpg 2", "has no image of the classes 0: labels are to be numbers from 0"),
        ("a.jpg 0\nb.jpg 99999999999", "99999999999 is no label"),
        ("a.jpg 0\nb.jpg -1", "not both: -1"),
        ("a.jpg 0\nb.jpg 1.0", r"not both: 1\.0"),
        ("a.jpg,0,x\nb.jpg,1,y", "not both: x, y"),
        ("a.jpg 0\n/elsewhere/b.jpg 1", "line 2: .*, with a path below /photos"),
        ("0 a/1.jpg\n1 b/2.jpg", "line 2"),
        (f"a.jpg 0\n{'x' * 200_000},1", "line 2"),
        ("", r"train\.txt lists no image"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(tmp_path: Path, train: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_lists(*lists(tmp_path, train, "c.jpg 0"), ROOTS)


def test_a_list_of_classes_names_each_once(tmp_path: Path) -> None:
    put(tmp_path / "classes.txt", b"road\nsky\n\nroad\n")
    with pytest.raises(ValueError, match="names a class twice: road"):
        read_class_list(tmp_path / "classes.txt")
    put(tmp_path / "classes.txt", b"road\r\ntraffic light\r\n")
    assert read_class_list(tmp_path / "classes.txt") == ["road", "traffic light"]
