"""The tables for a paper: LaTeX with booktabs, one a model, pruners by tasks and sparsities."""

from __future__ import annotations

import re
from itertools import groupby

from multiflow.bench.records import DENSE
from multiflow.report.bench.tables import Row, columns, rows
from multiflow.report.bench.values import Bench, Entry

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def tables_tex(bench: Bench) -> str:
    """Return a table a model: the best of a column bold, what is within noise of it underlined."""
    return "\n".join(["% needs \\usepackage{booktabs}", *(_table(bench, model) for model in bench.models)])


def escape(text: str) -> str:
    r"""Write text so that LaTeX prints it as it is.

    >>> escape("R&D_50%")
    'R\\&D\\_50\\%'
    """
    return re.sub(r"[\\~^<>|&%$#_{}]", lambda match: SPECIAL[match[0]], text)


def _table(bench: Bench, model: str) -> str:
    places = columns(bench, model)
    tracks = [(place, len(list(run))) for place, run in groupby(places, lambda place: place.dense)]
    over, rules, at = [], [], 2
    for track, width in tracks:
        over.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(f'{track.task} ({track.metric})')}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    made = rows(bench, model)
    marked = any(entry and bench.few(entry) for row in made for entry in row.entries)
    note = " A superscript is the number of seeds of a mean over fewer than others of its column." * marked
    body = []
    for row in made:
        body.append(_line(bench, row, [width for _, width in tracks]))
        if row.pruner == DENSE:
            body.append(r"\midrule")
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape(model)}: mean and standard deviation over seeds. Bold: best of a column. Underlined: "
            rf"within noise of it (95\,\% paired bootstrap).{note}}}",
            rf"\begin{{tabular}}{{l{'r' * len(places)}}}",
            r"\toprule",
            " & ".join(["", *over]) + r" \\",
            " ".join(rules),
            " & ".join(["", *(rf"{100 * p.sparsity:.4g}\,\%" for p in places)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def _line(bench: Bench, row: Row, widths: list[int]) -> str:
    shown = [_figure(bench, entry) if entry else "--" for entry in row.entries]
    if row.pruner == DENSE:  # one figure a task
        starts = [sum(widths[:i]) for i in range(len(widths))]
        shown = [rf"\multicolumn{{{width}}}{{c}}{{{shown[at]}}}" for at, width in zip(starts, widths, strict=True)]
    return " & ".join([escape(row.pruner), *shown]) + r" \\"


def _figure(bench: Bench, entry: Entry) -> str:
    mean = f"{entry.mean:.1f}"
    mean = rf"\textbf{{{mean}}}" if entry.best else rf"\underline{{{mean}}}" if entry.close else mean
    seeds = bench.few(entry)
    return (
        mean
        + (rf"$^{{({seeds})}}$" if seeds else "")
        + (rf"{{\scriptsize$\,\pm\,${entry.std:.1f}}}" if entry.std is not None else "")
    )
