"""A table of a report and its three written forms: Markdown, LaTeX with booktabs, and numbers for CSV."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Table:
    """Texts for people and numbers for programs.

    stem: file name. note: how to read it. columns: headings, the first one for the row names. rows: as many texts each.
    bold: (row, column) of the cells that are significantly best. data: what goes into the CSV file, in full precision.
    """

    stem: str
    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]
    data: pd.DataFrame
    bold: set[tuple[int, int]] = field(default_factory=set)

    def markdown(self) -> str:
        """A pipe table."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)]]
        for r, row in enumerate(self.rows):
            lines.append([f"**{text}**" if (r, c) in self.bold else text for c, text in enumerate(row)])
        return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines) + "\n"

    def latex(self) -> str:
        """A table environment; the document needs the package booktabs."""
        lines = [
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{latex_text(self.title)}. {latex_text(self.note)}}}",
            f"  \\label{{tab:{self.stem.replace('_', '-')}}}",
            f"  \\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            "    \\toprule",
            "    " + " & ".join(latex_text(text) for text in self.columns) + " \\\\",
            "    \\midrule",
        ]
        for r, row in enumerate(self.rows):
            cells = [latex_text(text, (r, c) in self.bold) for c, text in enumerate(row)]
            lines.append("    " + " & ".join(cells) + " \\\\")
        return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}"]) + "\n"

    def write(self, folder: Path) -> None:
        """STEM.csv, STEM.md and STEM.tex."""
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(self.data, folder / f"{self.stem}.csv")
        title = f"**{self.title}.** {self.note}".strip()
        (folder / f"{self.stem}.md").write_text(f"{title}\n\n{self.markdown()}", encoding="utf-8")
        (folder / f"{self.stem}.tex").write_text(self.latex(), encoding="utf-8")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A frame as CSV without its index: numbers in the shortest form that reads back to the same bits."""
    frame.to_csv(path, index=False, float_format=_shortest)


def _shortest(value: Any) -> str:
    return repr(float(value)).removesuffix(".0")


_ESCAPES = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
}
_SYMBOLS = {"±": r"\pm", "−": "-", "≥": r"\ge", "≤": r"\le", "×": r"\times", "<": "<", ">": ">"}
_NUMBERS = re.compile(r"[+−]?\d[\d.,]*( ± \d[\d.,]*)?")


def latex_text(text: str, bold: bool = False) -> str:
    """Text for LaTeX: special characters escaped, a number or `mean ± std` in maths."""
    if _NUMBERS.fullmatch(text):
        body = text.replace("±", r"\pm").replace("−", "-").replace(",", "{,}")
        return f"$\\mathbf{{{body}}}$" if bold else f"${body}$"
    escaped = "".join(_ESCAPES.get(character, character) for character in text)
    for symbol, command in _SYMBOLS.items():
        escaped = escaped.replace(symbol, f"${command}$")
    return f"\\textbf{{{escaped}}}" if bold else escaped


def mean_std(mean: float, std: float, decimals: int = 2) -> str:
    """`41.92 ± 0.75`; the mean alone where there is no deviation, a dash where there is no mean."""
    if mean != mean:
        return "–"
    text = number(mean, decimals)
    return text if std != std else f"{text} ± {number(std, decimals)}"


def number(value: float, decimals: int = 2, sign: bool = False) -> str:
    """A number with thousands separators and a true minus; a dash for NaN."""
    if value != value:
        return "–"
    text = f"{value:+,.{decimals}f}" if sign else f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(mean: float, low: float, high: float, decimals: int = 2) -> str:
    """`+1.94 [+1.53, +2.35]`; the mean alone where there is no interval."""
    if low != low:
        return number(mean, decimals, sign=True)
    return f"{number(mean, decimals, True)} [{number(low, decimals, True)}, {number(high, decimals, True)}]"


def p_value(p: float) -> str:
    """Three decimals, `<0.001` below that."""
    if p != p:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
