"""Writes the report of a benchmark: page, Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multiflow.base.files import write_atomically
from multiflow.bench.records import Cell, Pruning
from multiflow.report.bench.gather import gather
from multiflow.report.bench.latex import tables_tex
from multiflow.report.bench.markdown import markdown
from multiflow.report.bench.page import bench_page
from multiflow.report.bench.tables import cells_csv, pairs_csv, tables_csv


def write_report(
    cells: Sequence[Cell],
    prunings: Sequence[Pruning],
    expected: Sequence[Cell],
    folder: Path,
    title: str,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write ``report.html``, ``report.md``, three CSV files and ``tables.tex``; return their paths.

    Args:
        cells: what was computed, failed cells included, in the order of the file.
        prunings: the prunings of the cells.
        expected: all cells of the grid without figures, so that the report can say what is missing; none: unknown.
        folder: where to write; made if need be.
        title: of the report.
        notes: what else is to be said before the figures, such as lines that could not be read.

    Raises:
        MultiflowError: the folder cannot be written.
    """
    bench = gather(cells, prunings, expected, title, notes)
    files = {
        "report.html": bench_page(bench),
        "report.md": markdown(bench),
        "tables.csv": tables_csv(bench),
        "pairs.csv": pairs_csv(bench),
        "cells.csv": cells_csv(bench),
        "tables.tex": tables_tex(bench),
    }
    return [write_atomically(Path(folder) / name, text) for name, text in files.items()]
