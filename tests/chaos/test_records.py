"""The records of faults over hours add up over runs, and say what was lost."""

from dataclasses import replace
from pathlib import Path

from tests.chaos.records import ChainRow, FaultRow, Records
from tests.chaos.strikes import hosts

FAULT = FaultRow("2026-11-26T20:00:00Z", "abc", "22.05.8", "plain", "SIGKILL", "mal/seed-0", "went on", 4.0)
CHAIN = ChainRow("2026-11-26T20:00:00Z", "abc", "22.05.8", "plain", "mal/seed-0", 3, 3, True, 0, 0, 30.0, 40.0)


def test_runs_add_up(tmp_path: Path) -> None:
    assert "holds no faults yet" in Records(tmp_path / "new").table()
    first, second = Records(tmp_path / "new"), Records(tmp_path / "new")
    for records, seconds in ((first, 4.0), (second, 8.0)):
        records.add(replace(FAULT, seconds=seconds))
        records.add(CHAIN)
    first.add(replace(FAULT, kind="disk full, for long", outcome="person", seconds=90.0))
    first.add(replace(FAULT, kind="prolog failed", outcome="released"))
    second.add(replace(CHAIN, committed=2, identical=False, persons=2, useful_s=20.0))
    assert second.chains()[0] == CHAIN
    table = first.table().splitlines()
    assert table[0] == (
        "4 faults, 3 chains of 9 rounds. Rounds lost: 1; chains that differ: 1; chains that needed a person: 1; "
        "jobs that Slurm held and that were released: 1; ETTR 0.67."
    )
    assert table[4:] == [
        "| SIGKILL | 2 | 6.0 | 8 | 0 | 0 |",
        "| disk full  for long | 1 | 90.0 | 90 | 0 | 1 |",
        "| prolog failed | 1 | 4.0 | 4 | 1 | 0 |",
    ]


def test_the_page_holds_the_table_of_the_committed_records() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs"
    page = (folder / "reliability.md").read_text()
    summary, *table = Records(folder / "reliability").table().splitlines()
    paragraphs = [" ".join(paragraph.split()) for paragraph in page.split("\n\n")]  # wherever their lines end
    assert [paragraph for paragraph in paragraphs if paragraph.startswith(summary)] != []
    assert [line for line in table if line and line not in page.splitlines()] == []


def test_slurm_s_lists_of_nodes() -> None:
    assert [hosts(text) for text in ("n1", "n[1-2]", "n[1,3]")] == [["n1"], ["n1", "n2"], ["n1", "n3"]]
