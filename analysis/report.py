"""Build OUT/NAME: curves.csv, tables, figures, report.md and report.html."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import (
    audit,
    captions,
    checks,
    claims,
    class_tables,
    diagnostics,
    label_tables,
    queries,
    references,
    style,
    tables,
)
from analysis.floor import Floor, floor_of, floor_table
from analysis.options import Options
from analysis.panels import Panel, curves, panels_of
from analysis.reading import Finding, Runs
from analysis.table import Table, write_csv

TEMPLATE = Path(__file__).with_name("report.html")
FIGURES = (
    *("curves", "hours", "gain", "penalty", "query_classes", "query_overlap", "map_*", "pictures_*"),
    *("signals_*", "losses_*"),
)
TABLES = (
    *("rounds_*", "area_*", "labels_*", "saved_*", "start_*", "classes_*", "signals_*", "cost_*"),
    *("audit", "floor_*", "claims_*", "penalty", "penalty_holm"),
)
PRINT_DPI = 200  # of the PNG files
SCREEN_DPI = 140  # an inch of a figure on the screen, in CSS pixels


@dataclass(frozen=True)
class Picture:
    """A figure on disk. stem: file name without ending; PNG and PDF lie side by side."""

    stem: str
    caption: str


@dataclass
class Section:
    """A heading with what stands under it."""

    title: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    text: str = ""


@dataclass
class Report:
    """A report's content, and the files that make it up."""

    name: str
    folder: Path
    lead: str
    findings: list[Finding]
    audit: list[audit.Line]
    sections: list[Section]
    left_out: list[str]


def build(runs: Runs, name: str, options: Options) -> Report:
    """Write OUT/NAME anew: curves.csv, tables/, figures (unless switched off), report.md and report.html."""
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder, options.figures)
    panels = panels_of(runs.rounds)
    floors = _floors(runs, panels)
    audited = audit.audit(runs, panels, floors, options)
    report = Report(name, folder, lead(runs, panels), checks.check(runs, panels, floors), audited, [], [])
    write_csv(curves(panels), folder / "curves.csv")
    places = [Path(each).relative_to(options.runs).as_posix() for each in runs.rounds["folder"]]
    write_csv(runs.tidy.assign(folder=places), folder / "rounds.csv")
    sections = _sections(runs, panels, floors, options, report.left_out)
    if options.figures:
        _draw(runs, panels, floors, options, report, sections)
    report.sections = [s for s in sections.values() if s.pictures or s.tables]
    for section in report.sections:
        for table in section.tables:
            table.write(folder / "tables")
    audit.write(audited, folder / "tables" / "audit.csv")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(html(report), encoding="utf-8")
    return report


def _floors(runs: Runs, panels: list[Panel]) -> dict[str, Floor]:
    found = {panel.key: floor_of(panel, runs.rounds[runs.rounds["panel"] == panel.key]) for panel in panels}
    return {key: floor for key, floor in found.items() if floor is not None}


def _clear(folder: Path, figures: bool) -> None:
    """Remove what an earlier run of this module wrote and this one may not: no figure or table outlives its report."""
    old = [
        path for stem in TABLES for path in folder.glob(f"tables/{stem}.*") if path.suffix in (".csv", ".md", ".tex")
    ]
    if figures:
        old += [path for stem in FIGURES for path in folder.glob(f"{stem}.*") if path.suffix in (".png", ".pdf")]
    for path in old:
        path.unlink()


def lead(runs: Runs, panels: list[Panel]) -> str:
    """What ran, on what, at what cost: one sentence a panel and one on the code."""
    sentences = []
    for panel in panels:
        rows = runs.rounds[runs.rounds["panel"] == panel.key]
        pools = sorted({int(p) for p in rows["pool"]})
        backbone = style.backbone_label(panel.backbone) or "not recorded"
        pool = f"{pools[0]:,}" if len(pools) == 1 else f"{pools[0]:,} to {pools[-1]:,}"
        sentences.append(
            f"{panel.title}: {len(panel.methods)} method{'s' * (len(panel.methods) > 1)} "
            f"({', '.join(style.method_label(m) for m in panel.methods)}), "
            f"seeds {checks.spans(panel.seeds)}, {len(rows):,} rounds of {panel.budgets[0]:,.0f} to "
            f"{panel.budgets[-1]:,.0f} labels from a pool of {pool}, backbone {backbone}."
        )
    seconds = runs.rounds["seconds"].sum()
    gpu_hours = (runs.rounds["seconds"] * runs.rounds["gpus"]).sum() / 3600
    devices = ", ".join(sorted(set(runs.rounds["device"]) - {""})) or "a device not recorded"
    commits = ", ".join(sorted({str(c)[:10] for c in runs.rounds["git_commit"].dropna()})) or "not recorded"
    versions = "; ".join(sorted(set(runs.rounds["versions"]) - {""}))
    cost = f"{seconds / 3600:,.2f} hours" + (f", {gpu_hours:,.2f} GPU-hours" if gpu_hours else "")
    preempted = int(runs.rounds["preemptions"].sum())
    sentences.append(
        f"It took {cost} on {devices}, with {preempted} preemption{'s' * (preempted != 1)}; code version {commits}"
        + (f"; {versions}." if versions else ".")
    )
    return " ".join(sentences)


def _sections(
    runs: Runs, panels: list[Panel], floors: dict[str, Floor], options: Options, left_out: list[str]
) -> dict[str, Section]:
    """The sections by key, with their tables."""
    sections = {
        "curves": Section("Learning curves"),
        "gain": Section("Gain and area under the budget curve"),
        "claims": Section("Claims"),
        "labels": Section("Labels needed and saved"),
        "start": Section("Start and choice"),
        "penalty": Section("Who beats whom"),
        "classes": Section("Head, middle and tail classes"),
        "queries": Section("What was queried"),
        "inside": Section("Inside the rounds"),
        "cost": Section("Cost"),
    }
    for group in tables.by_protocol(panels):
        sections["curves"].tables.append(tables.rounds_table(group))
    sections["curves"].tables += [floor_table(floor) for floor in floors.values()]
    left_out += [f"{panel.title}: {captions.NEEDS['floor']}" for panel in panels if panel.key not in floors]
    for panel in panels:
        rows = runs.rounds[runs.rounds["panel"] == panel.key]
        if panel.index(options.baseline) is None:
            left_out.append(f"{panel.title}: gains over {options.baseline}, which did not run (set baseline=NAME)")
        if panel.horizon < 2:
            left_out.append(f"{panel.title}: areas under the budget curve; they need two rounds of a method")
        _add(sections["gain"], tables.area_table(panel, options.baseline))
        _add(sections["labels"], label_tables.labels_table(panel, options.targets))
        _add(sections["labels"], label_tables.saved_table(panel))
        _add(sections["start"], label_tables.start_table(panel, options.baseline))
        classes, reason = class_tables.classes_table(panel, rows)
        _add(sections["classes"], classes)
        if reason:
            left_out.append(f"{panel.title}: head, middle and tail classes; {reason}")
        _add(sections["inside"], diagnostics.signals_table(panel, diagnostics.signals_of(panel, rows)))
        _add(sections["cost"], class_tables.cost_table(panel, rows))
    claimed = claims.comparisons(panels, options.baseline)
    sections["claims"].tables += [claims.claims_table(n, lines, options.difference) for n, lines in claimed.items()]
    if not claimed:
        left_out.append("claims: they need two methods with a finished chain of the same seed and two rounds")
    penalties = tables.penalty_tables(panels)
    sections["penalty"].tables += penalties
    if not penalties:
        left_out.append("pairwise penalties: they need two methods with two common seeds and two rounds")
    return sections


def _add(section: Section, table: Table | None) -> None:
    if table is not None:
        section.tables.append(table)


def _draw(
    runs: Runs,
    panels: list[Panel],
    floors: dict[str, Floor],
    options: Options,
    report: Report,
    sections: dict[str, Section],
) -> None:
    """Draw what the rounds allow; the rest goes into left_out."""
    from analysis import figures, query_figures

    def keep(section: str, stem: str, figure: Any, caption: str) -> None:
        figures.save(figure, report.folder / stem, PRINT_DPI)
        sections[section].pictures.append(Picture(stem, caption))

    figures.use_theme()
    published = references.read()
    beside = {panel.key: references.matching(panel, published) for panel in panels}
    report.left_out += [reason for _, reason in beside.values() if reason]
    lines = {key: floor.line for key, floor in floors.items()}
    drawn = figures.draw_curves(panels, {key: found for key, (found, _) in beside.items()}, lines)
    keep("curves", "curves", drawn, figures.curves_caption(panels, beside, lines))
    keep("cost", "hours", figures.draw_hours(panels), captions.HOURS)
    if compared := [p for p in panels if p.index(options.baseline) is not None and len(p.methods) > 1]:
        keep("gain", "gain", figures.draw_gain(compared, options.baseline), captions.gain(options.baseline))
    methods = figures.methods_of(panels)
    matrices = [tables.penalties(panels, methods, correct) for correct in (False, True)]
    if settings := len(matrices[0][1]):
        titles = ["As BADGE defines it", "With Holm's correction"]
        figure = query_figures.draw_penalties([matrix for matrix, _ in matrices], titles, methods, settings)
        keep("penalty", "penalty", figure, captions.PENALTY)
    _draw_queries(runs, panels, report, keep)
    _draw_inside(runs, panels, report, keep)


def _draw_queries(runs: Runs, panels: list[Panel], report: Report, keep: Callable[[str, str, Any, str], None]) -> None:
    """Class balance, overlap and maps of features, each for the panels that have what it needs."""
    from analysis import pictures, query_figures

    rows = {panel.key: runs.rounds[runs.rounds["panel"] == panel.key] for panel in panels}
    balances = [(panel, found) for panel in panels if (found := queries.balance(panel, rows[panel.key]))]
    if balances:
        figure = query_figures.draw_balance([p for p, _ in balances], [found for _, found in balances])
        keep("queries", "query_classes", figure, captions.BALANCE)
    overlaps = [(panel, shared) for panel in panels if (shared := queries.overlap(panel, rows[panel.key]))]
    if overlaps:
        figure = query_figures.draw_overlap([p for p, _ in overlaps], [shared for _, shared in overlaps])
        keep("queries", "query_overlap", figure, captions.OVERLAP)
    mapped = False
    for panel in panels:
        if maps := queries.feature_maps(panel, rows[panel.key]):
            mapped = True
            keep("queries", f"map_{panel.key}", query_figures.draw_maps(panel, maps), captions.maps(panel.title))
    for panel in panels:
        shown = pictures.draw_queries(pictures.query_pictures(panel, rows[panel.key], runs))
        for end, (figure, caption) in shown.items():
            keep("queries", f"pictures_{panel.key}{end}", figure, f"{panel.title}, {caption}")
    missing = {"class balance of queries": balances, "overlap of queries": overlaps, "map of features": mapped}
    report.left_out += [f"{what}: {captions.NEEDS[what]}" for what, found in missing.items() if not found]


def _draw_inside(runs: Runs, panels: list[Panel], report: Report, keep: Callable[[str, str, Any, str], None]) -> None:
    """Signals and losses of the panels whose rounds recorded them."""
    from analysis import diagnostic_figures

    told, trained = False, False
    for panel in panels:
        rows = runs.rounds[runs.rounds["panel"] == panel.key]
        if found := diagnostics.signals_of(panel, rows):
            told = True
            figure = diagnostic_figures.draw_signals(panel, found)
            keep("inside", f"signals_{panel.key}", figure, captions.signals(panel.title))
        if losses := diagnostics.losses_of(panel, rows):
            trained = True
            figure = diagnostic_figures.draw_losses(panel, losses)
            keep("inside", f"losses_{panel.key}", figure, captions.losses(panel.title))
    missing = {"signals": told, "losses": trained}
    report.left_out += [f"{what}: {captions.NEEDS[what]}" for what, found in missing.items() if not found]


def markdown(report: Report) -> str:
    """The report as Markdown, with its figures beside it."""
    lines = [f"# {report.name}", "", report.lead, ""]
    if report.findings:
        lines += ["## Warnings", "", *[f"- **{f.kind}**: {f.text}" for f in report.findings], ""]
    lines += ["## Audit", "", audit.INTRODUCTION, ""]
    lines += [*[f"- **{line.result}**, {line.check}: {line.figure}" for line in report.audit], ""]
    for section in report.sections:
        lines += [f"## {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        for picture in section.pictures:
            lines += [f"![{picture.caption}]({picture.stem}.png)", "", picture.caption, ""]
        for table in section.tables:
            lines += [f"**{table.title}.** {table.note}".strip(), "", table.markdown(), ""]
    if report.left_out:
        lines += ["## Left out", "", *[f"- {line}" for line in report.left_out], ""]
    return "\n".join(lines)


def html(report: Report) -> str:
    """The report as one file that asks for nothing else: styles and figures inside, requests forbidden."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def embed(picture: Picture) -> str:
        data = (report.folder / f"{picture.stem}.png").read_bytes()
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"

    def width(picture: Picture) -> int:
        with (report.folder / f"{picture.stem}.png").open("rb") as file:
            pixels = int.from_bytes(file.read(20)[16:20], "big")  # IHDR's first field
        return round(pixels * SCREEN_DPI / PRINT_DPI)

    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report, introduction=audit.INTRODUCTION, embed=embed, width=width
    )
