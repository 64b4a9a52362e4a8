"""Writes the report of a benchmark: page, Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from multiflow.base.files import write_atomically
from multiflow.bench.records import Cell, Pruning
from multiflow.report.bench.page import bench_document
from multiflow.report.bench.quality import columns, figures_table
from multiflow.report.bench.results import Bench, PlaceEntry, gather
from multiflow.report.bench.statistics import Difference
from multiflow.report.bench.words import duel
from multiflow.report.document import markdown, page
from multiflow.report.tables import csv_text, latex_table, plain_table
from multiflow.report.text import NBSP


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
    document = bench_document(bench)
    files = {
        "report.html": page(document),
        "report.md": markdown(document),
        "tables.csv": tables_csv(bench),
        "pairs.csv": pairs_csv(bench),
        "cells.csv": cells_csv(bench),
        "tables.tex": tables_tex(bench),
    }
    return [write_atomically(Path(folder) / name, text) for name, text in files.items()]


def tables_tex(bench: Bench) -> str:
    """Return a table a model: the best of a column bold, what is within noise of it underlined."""
    made = [r"% needs \usepackage{booktabs}"]
    for model in [model for model in bench.models if columns(bench, model)]:
        caption = (
            f"{model}: mean and standard deviation over seeds. Bold: best of a column. Underlined: within noise of it "
            f"(95{NBSP}% paired bootstrap)."
        )
        if any(bench.few(entry) for (place, _), entry in bench.entries.items() if place.model == model):
            caption += " A superscript is the number of seeds of a mean over fewer than others of its column."
        made.append(latex_table(figures_table(bench, model, caption)))
    return "\n".join(made)


def tables_csv(bench: Bench) -> str:
    """Return one line a model, task, sparsity and pruner; differences are in points of the metric."""
    head = [
        *("model", "task", "metric", "sparsity", "pruner", "tier", "seeds", "seed_list", "mean", "std", "low", "high"),
        *("to_dense", "to_dense_low", "to_dense_high", "within_noise_of_dense", "best"),
        *("to_best", "to_best_low", "to_best_high", "within_noise_of_best", "common_seeds_with_best"),
    ]

    def line(entry: PlaceEntry) -> list[object]:
        place = entry.place
        return [
            *(place.model, place.task, place.metric, place.sparsity, entry.pruner, entry.tier),
            *(len(entry.cells), " ".join(map(str, entry.seeds)), entry.mean, entry.std, entry.low, entry.high),
            *_ends(entry.to_dense),
            entry.to_dense and int(entry.to_dense.noise),
            int(entry.best) if place.sparsity else None,
            *_ends(entry.to_best),
            1 if entry.best else entry.to_best and int(entry.close),
            entry.to_best and " ".join(map(str, entry.to_best.seeds)),
        ]

    return csv_text(plain_table(head, map(line, bench.entries.values())))


def pairs_csv(bench: Bench) -> str:
    """Return one line a pair of pruners and sparsity: places won, level and lost, and the difference over all of them.

    ``share`` is the difference of the shares of the dense score, mean over all models and tasks, in points of percent.
    """
    head = ["sparsity", "a", "b", "places", "wins", "ties", "losses", "share", "share_low", "share_high", "seeds"]
    lines = []
    for sparsity in sorted({place.sparsity for place in bench.places}):
        for a, b in combinations(bench.rivals, 2):
            found = duel(bench, a, b, sparsity)
            difference = bench.overall_differences.get((sparsity, a, b))
            seeds = difference and " ".join(map(str, difference.seeds))
            if found.places:
                counts = (found.places, found.wins, found.ties, found.losses)
                lines.append([sparsity, a, b, *counts, *_ends(difference), seeds])
    return csv_text(plain_table(head, lines))


def cells_csv(bench: Bench) -> str:
    """Return one line a cell of the grid: its figures and its cost, or why it has none."""
    figures = list(dict.fromkeys(name for cell in bench.cells for name in cell.figures))
    head = [
        *("id", "tier", "model", "pruner", "sparsity", "task", "seed", "state", "error", "metric", "score"),
        *("items", "steps", "finetune", "evaluate", "peak_memory", "pruning", "git", "machine", "finished", *figures),
    ]

    def line(state: str, cell: Cell) -> list[object]:
        return [
            *(cell.id, cell.tier, cell.model, cell.pruner, cell.sparsity, cell.task, cell.seed, state, cell.error),
            *(cell.metric, cell.score, len(cell.each) or None, cell.steps or None),
            *(cell.seconds.get("finetune"), cell.seconds.get("evaluate"), cell.peak_memory or None),
            *(cell.pruning, cell.git, cell.machine, cell.finished),
            *(cell.figures.get(name) for name in figures),
        ]

    states = (("done", bench.cells), ("failed", bench.failed), ("missing", bench.missing))
    return csv_text(plain_table(head, [line(state, cell) for state, cells in states for cell in cells]))


def _ends(difference: Difference | None) -> tuple[float | None, ...]:
    return (difference.value, difference.low, difference.high) if difference else (None, None, None)
