"""From records to what a benchmark found: which cells count, who is compared with whom, who is best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.report.bench.bootstrap import Difference, differences, interval
from multiflow.report.bench.overall import best_of, compare_overall, each_of
from multiflow.report.bench.values import Bench, Entry, Place, score_of


def gather(
    cells: Sequence[Cell],
    prunings: Sequence[Pruning] = (),
    expected: Sequence[Cell] = (),
    title: str = "benchmark",
    notes: Sequence[str] = (),
) -> Bench:
    """Return what the records say, under the names of the grid where it is known: renaming computes nothing anew."""
    found = count_cells(cells, expected)
    tiers_of: dict[str, dict[str, None]] = {}
    for cell in found.grid:
        tiers_of.setdefault(cell.pruner, {})[cell.tier] = None
    pruners = _unique([DENSE] * (DENSE in tiers_of) + [cell.pruner for cell in found.grid])
    tier_of = {name: next(iter(tiers)) for name, tiers in tiers_of.items()}
    entries, pairs = _compare(found.done, pruners, _unique(cell.task for cell in found.grid), tier_of)
    shares, share_differences = compare_overall(entries, pruners)
    return Bench(
        title=title,
        notes=(*notes, *found.notes),
        expected=found.grid,
        cells=found.done,
        failed=found.failed,
        missing=found.missing,
        prunings=tuple(_prunings(prunings, [*found.grid, *found.done])),
        models=tuple(_unique(cell.model for cell in found.grid)),
        pruners=tuple(pruners),
        tiers=tuple(_unique(cell.tier for cell in found.grid)),
        tiers_of={name: tuple(tiers) for name, tiers in tiers_of.items()},
        entries=entries,
        differences=pairs,
        overall=shares,
        overall_differences=share_differences,
        dense_alone=dense_alone(found.grid),
    )


class Counted(NamedTuple):
    """The cells of the grid, which of them have figures, failed or are missing, and what is to be said of others."""

    grid: tuple[Cell, ...]
    done: tuple[Cell, ...]
    failed: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    notes: tuple[str, ...]


def count_cells(cells: Iterable[Cell], expected: Sequence[Cell] = ()) -> Counted:
    """Return which cells count, under the names of the grid.

    A cell that failed and was computed later counts as computed. Where the grid is known, cells that it does not have
    (of an older config) are left out; where it is not, the last of two cells that differ in other settings alone
    counts. The notes say so.
    """
    last = {cell.id: cell for cell in sorted(cells, key=lambda cell: cell.score is not None)}
    grid = {cell.id: cell for cell in expected} or last
    notes = []
    if strangers := len(last.keys() - grid.keys()):
        notes.append(f"{_cells(strangers)} of other settings left out: not in the grid of the config.")
    there = [
        replace(last[one.id], model=one.model, pruner=one.pruner, task=one.task, tier=one.tier)
        for one in grid.values()
        if one.id in last
    ]
    done: dict[tuple[object, ...], Cell] = {}
    computed = [cell for cell in there if cell.score is not None]
    for cell in computed:
        done[cell.model, cell.task, cell.metric, cell.sparsity, cell.pruner, cell.seed] = cell
    if twice := len(computed) - len(done):
        notes.append(f"{_cells(twice)} computed with other settings too: the last of each counts.")
    return Counted(
        tuple(grid.values()),
        tuple(done.values()),
        tuple(cell for cell in there if cell.score is None),
        tuple(cell for id, cell in grid.items() if id not in last),
        tuple(notes),
    )


def _prunings(prunings: Iterable[Pruning], cells: Iterable[Cell]) -> Iterator[Pruning]:
    """The prunings of cells, each under every model and pruner that uses it, with the cells' sparsities alone."""
    uses: dict[str | None, dict[tuple[str, str], set[float]]] = {}
    for cell in cells:
        uses.setdefault(cell.pruning, {}).setdefault((cell.model, cell.pruner), set()).add(cell.sparsity)
    for one in {pruning.id: pruning for pruning in prunings}.values():
        for (model, pruner), sparsities in uses.get(one.id, {}).items():
            zeros = {sparsity: counts for sparsity, counts in one.zeros.items() if sparsity in sparsities}
            yield replace(one, model=model, pruner=pruner, zeros=zeros)


def dense_alone(grid: Iterable[Cell]) -> frozenset[tuple[str, str]]:
    """Return (model, task) of which the grid has dense cells alone, where it prunes the model for other tasks."""
    cells = list(grid)
    pruned = {(cell.model, cell.task) for cell in cells if cell.pruner != DENSE}
    models = {model for model, _ in pruned}
    return frozenset((cell.model, cell.task) for cell in cells if cell.model in models) - pruned


def _compare(
    cells: Sequence[Cell], pruners: Sequence[str], tasks: Sequence[str], tier_of: Mapping[str, str]
) -> tuple[dict[tuple[Place, str], Entry], dict[tuple[Place, str, str], Difference]]:
    by_entry: dict[tuple[Place, str], list[Cell]] = {}
    for cell in cells:
        by_entry.setdefault((Place(cell.model, cell.task, cell.metric, cell.sparsity), cell.pruner), []).append(cell)
    models = _unique(cell.model for cell in cells)

    def order(place: Place) -> tuple[int, int, str, float]:
        return models.index(place.model), tasks.index(place.task), place.metric, place.sparsity

    entries: dict[tuple[Place, str], Entry] = {}
    found: dict[tuple[Place, str, str], Difference] = {}
    for place in sorted({place for place, _ in by_entry}, key=order):
        here = {name: by_entry[place, name] for name in pruners if (place, name) in by_entry}
        dense = {DENSE: by_entry[place.dense, DENSE]} if (place.dense, DENSE) in by_entry else {}
        pairs = differences({name: each_of(these) for name, these in {**dense, **here}.items()})
        pairs |= {(b, a): -difference for (a, b), difference in pairs.items()}
        made = {name: _entry(place, name, tier_of[name], these, pairs) for name, these in here.items()}
        rivals = {name: entry.mean for name, entry in made.items() if name != DENSE}
        best = best_of(rivals, pairs) if rivals else None
        for name, entry in made.items():
            rival = None if name in (DENSE, best) or best is None else pairs.get((name, best))
            entries[place, name] = replace(entry, best=name == best, to_best=rival)
        found |= {(place, a, b): difference for (a, b), difference in pairs.items()}
    return entries, found


def _entry(
    place: Place, name: str, tier: str, cells: Sequence[Cell], pairs: Mapping[tuple[str, str], Difference]
) -> Entry:
    cells = tuple(sorted(cells, key=lambda cell: cell.seed))
    each = each_of(cells)
    mean = fmean(score_of(cell) for cell in cells)
    low, high = interval(each) if len(each) == len(cells) else (mean, mean)
    return Entry(place, name, tier, cells, low, high, to_dense=pairs.get((name, DENSE)))


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _cells(number: int) -> str:
    return "1 cell" if number == 1 else f"{number} cells"
