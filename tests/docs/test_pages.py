"""README and docs/: links that lead somewhere, files that are there, messages that the code has, a complete layout."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.chains import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:analysis|benchmarks|docs|mal|slurm|sweeps|tests)/[\w./-]*")
ELLIPSIS = "…"
WORDS = 12  # letters of a message that must be found


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    if page.name.startswith("add-a-"):  # the steps before name what does not exist yet
        text = text.partition("That is all.")[2]
    named = {word for word in CODE.findall(text) if PATH.fullmatch(word)}
    assert [word for word in sorted(named) if not (ROOT / word).exists()] == []


# ------------------------------------------------------------------------- messages


@cache
def literals() -> list[str]:
    """Every text of the product's source, what is filled in as an ellipsis."""
    found = []
    for package in ("mal", "sweeps", "slurm", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else ELLIPSIS for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%[sdg]", ELLIPSIS, node.value))
    return found


def said(message: str) -> bool:
    """Whether one text of the source holds the pieces of a message in their order."""
    pieces = [re.escape(piece) for piece in re.split(f" *{ELLIPSIS} *", message) if piece]
    pattern = re.compile(".*".join(pieces), re.S)
    return any(pattern.search(text) for text in literals())


def quoted_messages() -> list[str]:
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("| ")]
    cells = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    return [code for cell in cells for code in CODE.findall(cell)]


def test_troubleshooting_quotes_what_the_code_says() -> None:
    messages = [message for message in quoted_messages() if len(message.replace(ELLIPSIS, "")) >= WORDS]
    assert len(messages) > 40
    assert [message for message in messages if not said(message)] == []


# ------------------------------------------------------------------------- layout


def tracked() -> set[str]:
    """Files and folders of the two upper levels that git knows; a folder ends in a slash."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    upper = {name.split("/", 1)[0] + "/" * ("/" in name) for name in names if not name.startswith(".ci/")}
    second = {"/".join(name.split("/")[:2]) + "/" * (name.count("/") > 1) for name in names if "/" in name}
    return upper | {name for name in second if not name.endswith("__init__.py")}


def layout() -> set[str]:
    """What the README's layout names, by path from the root; folders end in a slash."""
    named: set[str] = set()
    for entry in (ROOT / "README.md").read_text().partition("## Layout\n")[2].split("\n- "):
        folder = re.match(r"\*\*(\w+/)\*\*", entry)
        head = folder[1] if folder else ""
        named |= {head, *(head + name for name in CODE.findall(entry))} - {""}
    return named


def test_the_layout_names_every_file_and_folder_of_the_two_upper_levels_and_no_other() -> None:
    assert sorted(tracked() - layout()) == [], "README.md, Layout: give each of them a phrase"
    assert sorted(layout() - tracked()) == [], "README.md, Layout: they are gone"
