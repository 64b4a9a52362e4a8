"""One model of a table, written as Markdown, LaTeX and CSV here, and as HTML by ``templates/page.html``."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any, ClassVar

from multiflow.report.charts import Look

BOLD, CLOSE = ("best", "gone"), ("close", "near")
"""First words of looks that Markdown and LaTeX write bold, and as italic or underlined."""


@dataclass(frozen=True)
class TableCell:
    """What stands at one place of a table."""

    text: str = ""  # what is shown
    key: float | str | None = None  # what the row sorts by here, and what CSV writes; None stands last
    look: str | None = None  # class of the text: ``best``, ``close``, ``gone``, ``failed`` .
    small: str = ""  # what follows in small letters, such as a standard deviation
    seeds: int | None = None  # the number of seeds of a mean over fewer than others of its column; None of all others
    tip: str | None = None  # what is said where the cell is pointed at
    tint: float | None = None  # percent of colour in the ground
    meter: float | None = None  # share of the width that a bar behind the text takes
    icon: Look | None = None  # the look of the pruner that the cell names


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str  # the heading
    over: str | None = None  # a heading above, which neighbours share
    hint: str | None = None  # what the column means
    class_: str | None = None  # of its cells; ``number`` is right-aligned
    after: str | None = None  # class of a box of even width for small letters and seeds; None puts them with the text
    steep: bool = False  # whether the heading is written from bottom to top

    @property
    def is_number(self) -> bool:
        """Whether the column is right-aligned, and sorts from high to low first."""
        return "number" in (self.class_ or "").split()


@dataclass(frozen=True)
class Row:
    """A row of a table; its first cell names it."""

    cells: Sequence[TableCell]  # one a column
    name: str | None = None  # the pruner that lights up with others of its name
    tiers: str | None = None  # numbers of the tiers that show the row; None = all
    class_: str | None = None  # ``dense`` for the baseline, whose cells under one heading are one figure


@dataclass(frozen=True)
class Table:
    """A table."""

    columns: Sequence[Column]  # from left to right
    rows: Sequence[Row]  # from top to bottom
    caption: str = ""  # what it holds
    id: str | None = None  # of its element; None = none
    page_only: bool = False  # whether Markdown leaves it out, as it says the same elsewhere
    kind: ClassVar[str] = "table"

    @property
    def overs(self) -> list[tuple[str | None, int]]:
        """The headings above the headings, with the number of columns of each; none if no column has one."""
        runs = [(over, len(list(run))) for over, run in groupby(self.columns, lambda column: column.over)]
        return runs if any(over for over, _ in runs) else []

    @property
    def sorts(self) -> list[bool]:
        keys = zip_longest(*([cell.key for cell in row.cells] for row in self.rows))
        return [any(key is not None for key in of) for of in keys] or [False] * len(self.columns)


def plain_table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> Table:
    return Table([Column(title) for title in head], [Row([TableCell(key=value) for value in line]) for line in lines])


def csv_text(table: Table) -> str:
    """Return a table as CSV: its headings, and the keys of its cells."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column.title for column in table.columns)
    for row in table.rows:
        writer.writerow(f"{cell.key:.6g}" if isinstance(cell.key, float) else cell.key for cell in row.cells)
    return file.getvalue()


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""

    __slots__ = ()


def md(text: object) -> Markdown:
    """Write text in a line of Markdown that shows it as it is, whatever it holds.

    >>> md("a|b <script> *c* _d_ e_f")
    'a\\\\|b &lt;script&gt; \\\\*c\\\\* \\\\_d\\\\_ e_f'
    """
    if isinstance(text, Markdown):
        return text
    said = re.sub(r"[\x00-\x1f\x7f]+", " ", str(text))
    said = re.sub(r"&(?=#?\w+;)", "&amp;", said).replace("<", "&lt;").replace(">", "&gt;")
    said = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", said)
    return Markdown(re.sub(r"^(\d*)([#+=-](?!\d)|(?<=\d)[.)]\s)", r"\1\\\2", said))


def markdown_table(table: Table) -> Markdown:
    """Return a table in Markdown; nothing for one without rows."""
    if not table.rows:
        return Markdown()
    heads: list[str] = [
        md(f"{column.over} {column.title}" if column.over else column.title) for column in table.columns
    ]
    ruler = ["---:" if column.is_number else "---" for column in table.columns]
    body = [[_markdown_cell(cell) for cell in row.cells] for row in table.rows]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in (heads, ruler, *body)))


def _markdown_cell(cell: TableCell) -> str:
    look = (cell.look or "").split()
    text = md(cell.text)
    shown = f"**{text}**" if text and {*look} & {*BOLD} else f"_{text}_" if text and {*look} & {*CLOSE} else text
    small = f" {md(cell.small)}" if cell.small else ""
    return shown + small.replace("±", "± ") + (f" [{cell.seeds}]" if cell.seeds else "")


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{NO-BREAK SPACE}": r"\,",
    "±": r"$\,\pm\,$",
    "\n": " ",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def tex(text: str) -> str:
    r"""Write text so that LaTeX prints it as it is.

    >>> tex("R&D_50%")
    'R\\&D\\_50\\%'
    """
    return re.sub("[" + re.escape("".join(SPECIAL)) + "]", lambda match: SPECIAL[match[0]], text)


def latex_table(table: Table) -> str:
    """Return a table in LaTeX with booktabs; what is missing is a dash."""
    rules, at = [], 1
    for over, width in table.overs:
        if over:
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    above = [rf"\multicolumn{{{width}}}{{c}}{{{tex(text)}}}" if text else "" for text, width in table.overs]
    body = []
    for row in table.rows:
        body.append(" & ".join(_latex_cells(table, row)) + r" \\")
        if row.class_ == "dense":
            body.append(r"\midrule")
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{tex(table.caption)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if column.is_number else 'l' for column in table.columns)}}}",
            r"\toprule",
            " & ".join(above) + r" \\",
            " ".join(rules),
            " & ".join(tex(column.title) for column in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def _latex_cells(table: Table, row: Row) -> list[str]:
    shown, at = [], 0
    for over, width in table.overs:
        here = [_latex_cell(cell) for cell in row.cells[at : at + width]]
        shown += [rf"\multicolumn{{{width}}}{{c}}{{{here[0]}}}"] if over and row.class_ == "dense" else here
        at += width
    return shown


def _latex_cell(cell: TableCell) -> str:
    if cell.key is None:
        return "--"
    text, look = tex(cell.text), cell.look
    text = rf"\textbf{{{text}}}" if look in BOLD else rf"\underline{{{text}}}" if look in CLOSE else text
    seeds = rf"$^{{({cell.seeds})}}$" if cell.seeds else ""
    return text + seeds + (rf"{{\scriptsize{tex(cell.small)}}}" if cell.small else "")
