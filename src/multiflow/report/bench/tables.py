"""The tables of all figures: what Markdown, HTML and LaTeX show alike, and the CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from multiflow.bench.records import DENSE, Cell
from multiflow.report.bench.bootstrap import Difference
from multiflow.report.bench.values import Bench, Entry, Place
from multiflow.report.bench.words import duel


@dataclass(frozen=True)
class Row:
    """A row of a model's table.

    Args:
        pruner: whose figures they are.
        tiers: that have it.
        entries: its figure at each place, or None.
        states: why there is none: ``failed``, ``pending``, or nothing where the grid has no such cell.
    """

    pruner: str
    tiers: tuple[str, ...]
    entries: tuple[Entry | None, ...]
    states: tuple[str, ...]


def rows(bench: Bench, model: str) -> list[Row]:
    """Return the table of a model, the dense baseline first; its figures stand at every sparsity of a task."""
    names = {cell.pruner for cell in bench.expected if cell.model == model}
    return [_row(bench, name, columns(bench, model)) for name in bench.pruners if name in names]


def columns(bench: Bench, model: str) -> list[Place]:
    """Return the places of a model; where it has but dense figures yet, those of the dense baseline."""
    return bench.places_of(model) or bench.tracks(model)


def tiers_said(row: Row) -> str:
    """Write the tiers of a row's pruner; the baseline is in all that are compared with it."""
    return "" if row.pruner == DENSE else ", ".join(row.tiers)


def tables_csv(bench: Bench) -> str:
    """Return one line a model, task, sparsity and pruner; differences are in points of the metric."""
    head = [
        "model",
        "task",
        "metric",
        "sparsity",
        "pruner",
        "tier",
        "seeds",
        "seed_list",
        "mean",
        "std",
        "low",
        "high",
        "to_dense",
        "to_dense_low",
        "to_dense_high",
        "within_noise_of_dense",
        "best",
        "to_best",
        "to_best_low",
        "to_best_high",
        "within_noise_of_best",
        "common_seeds_with_best",
    ]

    def line(entry: Entry) -> list[object]:
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

    return _csv(head, map(line, bench.entries.values()))


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
    return _csv(head, lines)


def cells_csv(bench: Bench) -> str:
    """Return one line a cell of the grid: its figures and its cost, or why it has none."""
    figures = list(dict.fromkeys(name for cell in bench.cells for name in cell.figures))
    head = [
        "id",
        "tier",
        "model",
        "pruner",
        "sparsity",
        "task",
        "seed",
        "state",
        "error",
        "metric",
        "score",
        "items",
        "steps",
        "finetune",
        "evaluate",
    ]
    head += ["peak_memory", "pruning", "git", "machine", "finished", *figures]

    def line(state: str, cell: Cell) -> list[object]:
        return [
            *(cell.id, cell.tier, cell.model, cell.pruner, cell.sparsity, cell.task, cell.seed, state, cell.error),
            *(cell.metric, cell.score, len(cell.each) or None, cell.steps or None),
            *(cell.seconds.get("finetune"), cell.seconds.get("evaluate"), cell.peak_memory or None),
            *(cell.pruning, cell.git, cell.machine, cell.finished),
            *(cell.figures.get(name) for name in figures),
        ]

    states = (("done", bench.cells), ("failed", bench.failed), ("missing", bench.missing))
    return _csv(head, (line(state, cell) for state, cells in states for cell in cells))


def _row(bench: Bench, pruner: str, places: Sequence[Place]) -> Row:
    entries = tuple(bench.entries.get((p.dense if pruner == DENSE else p, pruner)) for p in places)
    states = tuple("" if e else _state(bench, p, pruner) for e, p in zip(entries, places, strict=True))
    return Row(pruner, bench.tiers_of[pruner], entries, states)


def _state(bench: Bench, place: Place, pruner: str) -> str:
    def here(cell: Cell) -> bool:
        same = (cell.model, cell.task, cell.pruner) == (place.model, place.task, pruner)
        return same and (pruner == DENSE or cell.sparsity == place.sparsity)

    return "failed" if any(map(here, bench.failed)) else "pending" if any(map(here, bench.missing)) else ""


def _ends(difference: Difference | None) -> tuple[float | None, ...]:
    return (difference.value, difference.low, difference.high) if difference else (None, None, None)


def _csv(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in line] for line in lines)
    return file.getvalue()
