"""From records to what a benchmark found: which cells count, who is compared with whom, who is best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from multiflow.report.bench.bootstrap import Difference, differences, interval
from multiflow.report.bench.overall import best_of, compare_overall, each_of
from multiflow.report.bench.values import Bench, Entry, Place, score_of
from multiflow.report.records import DENSE, Cell, Pruning


def gather(
    cells: Sequence[Cell],
    prunings: Sequence[Pruning] = (),
    expected: Sequence[Cell] = (),
    title: str = "benchmark",
    notes: Sequence[str] = (),
) -> Bench:
    """Return what the records say.

    A cell that failed and was computed later counts as computed. Where the grid is known, cells that it does not have
    (of an older config) are left out; where it is not, the last of two cells that differ in other settings alone
    counts. The notes say so.
    """
    notes = list(notes)
    last = {
        cell.id: cell for cell in (*(c for c in cells if c.score is None), *(c for c in cells if c.score is not None))
    }
    grid = {cell.id: cell for cell in expected} or last
    if strangers := [cell for id, cell in last.items() if id not in grid]:
        notes.append(f"{_cells(len(strangers))} of the results not in the grid of the config: left out.")
    done: dict[tuple[object, ...], Cell] = {}
    twice = 0
    for cell in (last[id] for id in grid if id in last and last[id].score is not None):
        key = (cell.model, cell.task, cell.metric, cell.sparsity, cell.pruner, cell.seed)
        twice += key in done
        done[key] = cell
    if twice:
        notes.append(f"{_cells(twice)} computed with other settings too: the last of each counts.")
    failed = tuple(last[id] for id in grid if id in last and last[id].score is None)
    tier_of: dict[str, str] = {}
    for cell in grid.values():
        tier_of.setdefault(cell.pruner, cell.tier)
    pruners = _unique([DENSE] * (DENSE in tier_of) + [cell.pruner for cell in grid.values()])
    entries, found = _compare(list(done.values()), pruners, _unique(cell.task for cell in grid.values()), tier_of)
    shares, share_differences = compare_overall(entries, pruners)
    used = {cell.pruning for cell in grid.values()} | {cell.pruning for cell in done.values()}
    masks = {pruning.id: pruning for pruning in prunings}
    return Bench(
        title=title,
        notes=tuple(notes),
        expected=tuple(grid.values()),
        cells=tuple(done.values()),
        failed=failed,
        missing=tuple(cell for id, cell in grid.items() if id not in last),
        prunings=tuple(pruning for id, pruning in masks.items() if id in used or used <= {None}),
        models=tuple(_unique(cell.model for cell in grid.values())),
        pruners=tuple(pruners),
        tiers=tuple(_unique(cell.tier for cell in grid.values())),
        tier_of=tier_of,
        entries=entries,
        differences=found,
        overall=shares,
        overall_differences=share_differences,
        dense_alone=dense_alone(grid.values()),
    )


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
    return "One cell" if number == 1 else f"{number} cells"
