"""The report: everything in it, nothing outside it, from partial results too."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.made_up_runs import example, run, write_chain


class Links(HTMLParser):
    """Everything in a page that could make a browser ask for something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")
        ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    example(folder / "runs")
    assert run(f"runs={folder / 'runs'}", f"out={folder}") == 0
    return folder / "sweep"


def test_report_html_is_self_contained(written: Path) -> None:
    page = (written / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links.found)
    assert not links.tags & {"script", "link", "iframe", "object", "embed", "video", "audio", "base", "form"}
    assert not re.findall(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page
    assert page.count("data:image/png;base64,") == 9


def test_report_has_every_figure_table_and_warning(written: Path) -> None:
    pictures = {"curves", "gain", "hours", "map_digits_imbalanced", "penalty", "query_classes", "query_overlap"}
    pictures |= {"signals_digits_imbalanced", "losses_digits_imbalanced"}
    for ending in ("png", "pdf"):
        assert {p.stem for p in written.glob(f"*.{ending}")} == pictures
        assert all(p.stat().st_size > 5000 for p in written.glob(f"*.{ending}"))
    names = {"rounds", "area", "labels", "saved", "start", "classes", "signals", "cost"}
    stems = {f"{name}_digits_imbalanced" for name in names} | {"penalty", "penalty_holm"}
    stems |= {"claims_mal", "claims_random"}
    stems |= {"floor_digits_imbalanced"}
    for ending in ("csv", "md", "tex"):
        found = {p.stem for p in (written / "tables").glob(f"*.{ending}")}
        assert found == stems | ({"audit"} if ending == "csv" else set())
    text = (written / "report.md").read_text()
    for words in (
        "failed chain",
        "no metric",
        "mixed code",
        "RuntimeError: out of memory",
        "GPU-hours",
        "## Who beats whom",
    ):
        assert words in text
    for picture in pictures:
        assert f"]({picture}.png)" in text
    assert "Left out" not in text


def test_a_partial_sweep_gives_a_figure_and_says_what_is_missing(tmp_path: Path) -> None:
    write_chain(tmp_path / "runs", "mal", 0, [60, 70], planned=5)
    write_chain(tmp_path / "runs", "random", 0, [50], planned=5)
    out = tmp_path / "sweep"
    (out / "tables").mkdir(parents=True)
    before = [out / "gain.png", out / "map_digits.pdf", out / "tables" / "area_other.tex"]
    for path in (*before, out / "notes.txt"):
        path.touch()
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "baseline=entropy") == 0
    assert not any(path.exists() for path in before), "nothing of an earlier report is left"
    assert (out / "notes.txt").exists(), "but what others wrote is"
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "mal seed 0 (2 of 5); random seed 0 (1 of 5)" in text
    assert "one seed" in text
    assert "gains over entropy, which did not run" in text
    assert "pairwise penalties: they need two methods" in text
    assert "map of features" in text
    assert (tmp_path / "sweep" / "curves.png").stat().st_size > 5000


def test_without_figures(tmp_path: Path) -> None:
    for method in ("mal", "random"):
        write_chain(tmp_path / "runs", method, 0, [60, 70])
    assert run(f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "--no-figures", "targets=[65]") == 0
    written = {p.relative_to(tmp_path / "sweep").as_posix() for p in (tmp_path / "sweep").rglob("*")}
    assert {"curves.csv", "report.md", "report.html", "tables/labels_digits.tex"} <= written
    assert not {name for name in written if name.endswith((".png", ".pdf"))}
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "![" not in text
    assert "| Method | 65% |" in text
