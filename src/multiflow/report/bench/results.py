"""What a benchmark found, from its records: which cells count, who is compared with whom, who is best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.report.bench.statistics import (
    Difference,
    Each,
    best_of,
    common_seeds,
    differences,
    each_of,
    ends,
    interval,
    item_means,
    over_seeds,
)

FIRST = "multiflow"
"""The pruner whose standing the words tell, where the grid has it."""


class GridPlace(NamedTuple):
    """Where pruners are compared; the dense baselines stand at sparsity 0."""

    model: str
    task: str
    metric: str
    sparsity: float

    @property
    def dense(self) -> GridPlace:
        return self._replace(sparsity=0.0)


@dataclass(frozen=True)
class PlaceEntry:
    """What one pruner reaches at one place."""

    place: GridPlace  # where
    pruner: str  # name in the grid
    tier: str  # the first tier of the grid that the pruner is in
    cells: tuple[Cell, ...]  # those with figures, one a seed, by seed
    low: float  # 95 % interval of the mean over seeds and items; equal to `mean` where there are no items
    high: float  # its other end
    # this minus the dense baseline; None where they have no seed in common, and for the baseline
    to_dense: Difference | None = None
    # this minus the best pruner of the place; None for the best, and where there is no seed in common
    to_best: Difference | None = None
    best: bool = False  # whether it is the best pruner of its place

    @property
    def scores(self) -> list[float]:
        """The main figure, seed by seed."""
        return [score_of(cell) for cell in self.cells]

    @property
    def mean(self) -> float:
        return fmean(self.scores)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return stdev(self.scores) if len(self.cells) > 1 else None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(cell.seed for cell in self.cells)

    @property
    def close(self) -> bool:
        """Whether it is not the best of its place, but the difference may be luck."""
        return self.to_best is not None and self.to_best.high >= 0

    @property
    def look(self) -> str | None:
        """How tables mark it: ``best``, ``close`` or not at all."""
        return "best" if self.best else "close" if self.close else None


@dataclass(frozen=True)
class Overall:
    """What one pruner keeps of the dense score at one sparsity, mean over all models and tasks."""

    sparsity: float  # asked for
    pruner: str  # name in the grid
    share: float  # percent of the dense score, each model and task counting alike
    low: float  # its 95 % interval over seeds and items
    high: float  # its other end
    seeds: tuple[int, ...]  # those that it and the dense baseline have of all models and tasks
    places: int  # number of models and tasks
    # this minus the best of the sparsity, in points; None for the best, and without a seed in common
    to_best: Difference | None = None
    best: bool = False  # whether it is the best

    @property
    def close(self) -> bool:
        """Whether it is not the best, but the difference may be luck."""
        return self.to_best is not None and self.to_best.high >= 0

    @property
    def look(self) -> str | None:
        """How tables mark it: ``best``, ``close`` or not at all."""
        return "best" if self.best else "close" if self.close else None


@dataclass(frozen=True)
class Bench:
    """Everything a benchmark found so far."""

    title: str  # what it is called
    notes: tuple[str, ...]  # what else is to be said on top, such as lines that could not be read
    # all cells of the grid, without figures; those computed where no grid is known
    expected: tuple[Cell, ...] = field(repr=False)
    # those with figures, one for each place, pruner and seed, under the names of the grid
    cells: tuple[Cell, ...] = field(repr=False)
    failed: tuple[Cell, ...] = field(repr=False)  # the cells that have an error and no figures
    missing: tuple[Cell, ...] = field(repr=False)  # the cells of the grid that nobody computed yet
    # those of the grid's cells, under its names and with its sparsities alone. Models of one source share a pruning
    # without data: it stands here for each of them, under one id
    prunings: tuple[Pruning, ...] = field(repr=False)
    models: tuple[str, ...]  # in the order of the grid
    pruners: tuple[str, ...]  # the same, the dense baseline first
    tiers: tuple[str, ...]  # the same
    tiers_of: Mapping[str, tuple[str, ...]]  # pruner -> the tiers that its cells belong to, in the order of the grid
    # (place, pruner) -> what it reaches, in the order of the grid
    entries: Mapping[tuple[GridPlace, str], PlaceEntry] = field(repr=False)
    # (place, a, b) -> a minus b, both ways round
    differences: Mapping[tuple[GridPlace, str, str], Difference] = field(repr=False)
    # (sparsity, pruner) -> what it keeps of the dense score; of pruners that have every model and task
    overall: Mapping[tuple[float, str], Overall] = field(repr=False, default_factory=dict)
    # (sparsity, a, b) -> a minus b of that, both ways round
    overall_differences: Mapping[tuple[float, str, str], Difference] = field(repr=False, default_factory=dict)
    # (model, task) that the grid has dense cells of and no others, on a model that it prunes elsewhere: trainings to
    # look at, such as a longer one, and no places
    dense_alone: frozenset[tuple[str, str]] = frozenset()

    @property
    def places(self) -> list[GridPlace]:
        return [place for place in dict.fromkeys(place for place, _ in self.entries) if place.sparsity]

    @property
    def rivals(self) -> list[str]:
        found = {pruner for _, pruner in self.entries}
        return [pruner for pruner in self.pruners if pruner in found and pruner != DENSE]

    @property
    def first(self) -> str | None:
        """The pruner whose standing the words tell."""
        return FIRST if FIRST in self.rivals else next(iter(self.rivals), None)

    @property
    def overall_sparsities(self) -> list[float]:
        """The sparsities at which pruners are compared over all models and tasks."""
        return sorted({sparsity for sparsity, _ in self.overall})

    def ground(self, sparsity: float) -> int:
        return len({(c.model, c.task) for c in self.expected if c.sparsity == sparsity and c.pruner != DENSE})

    @property
    def records(self) -> list[Cell | Pruning]:
        """The cells that have figures, and each pruning once that says where it was computed."""
        prunings = {one.id: one for one in self.prunings if one.versions or one.git or one.machine}
        return [*self.cells, *prunings.values()]

    def few(self, entry: PlaceEntry) -> int | None:
        """Return the number of seeds of a mean that has fewer than others of its column, else None."""
        column = [*self.at(entry.place), *self.at(entry.place.dense)]
        if entry.pruner == DENSE:
            column += [e for place in self.places if place.dense == entry.place for e in self.at(place)]
        most = max(len(e.cells) for e in column)
        return len(entry.cells) if len(entry.cells) < most else None

    def fewer_seeds(self, one: Overall) -> int | None:
        """Return the number of seeds of an overall share that has fewer than others of its sparsity, else None."""
        most = max(len(other.seeds) for other in self.overall.values() if other.sparsity == one.sparsity)
        return len(one.seeds) if len(one.seeds) < most else None

    @property
    def loud(self) -> list[str]:
        """The few pruners whose lines are bold: the first, its tier, and whoever is best most often."""
        tier = self.tiers_of[self.first][0] if self.first else ""
        ranked = sorted(self.rivals, key=lambda name: (name != self.first, self.tiers_of[name][0] != tier))
        best = [entry.pruner for entry in self.entries.values() if entry.best]
        often = max(ranked, key=best.count, default=None)
        shown = [name for name in ranked if self.tiers_of[name][0] == tier][:6]
        return shown if often in shown or often is None else [*shown[:5], often]

    def tier_keys(self, pruner: str) -> str | None:
        """Return the numbers of the tiers of a pruner, as names may hold blanks; None of the baseline."""
        keys = [str(self.tiers.index(tier) + 1) for tier in self.tiers_of[pruner]]
        return None if pruner == DENSE else " ".join(keys)

    def at(self, place: GridPlace) -> list[PlaceEntry]:
        return [self.entries[place, p] for p in self.pruners if (place, p) in self.entries]

    def best(self, place: GridPlace) -> PlaceEntry:
        return next(entry for entry in self.at(place) if entry.best)

    def places_of(self, model: str) -> list[GridPlace]:
        return [place for place in self.places if place.model == model]

    def tracks(self, model: str) -> list[GridPlace]:
        """Return the tasks of a model, each with its metric, as the places of their dense baselines."""
        return [track for track in self.trainings(model) if (model, track.task) not in self.dense_alone]

    def trainings(self, model: str) -> list[GridPlace]:
        return list(dict.fromkeys(place.dense for place, _ in self.entries if place.model == model))

    def sparsities(self, model: str) -> list[float]:
        return sorted({place.sparsity for place in self.places_of(model)})


def score_of(cell: Cell) -> float:
    assert cell.score is not None
    return cell.score


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


class GridCells(NamedTuple):
    """The cells of the grid, which of them have figures, failed or are missing, and what is to be said of others."""

    grid: tuple[Cell, ...]
    done: tuple[Cell, ...]
    failed: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    notes: tuple[str, ...]


def count_cells(cells: Iterable[Cell], expected: Sequence[Cell] = ()) -> GridCells:
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
    return GridCells(
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
) -> tuple[dict[tuple[GridPlace, str], PlaceEntry], dict[tuple[GridPlace, str, str], Difference]]:
    by_entry: dict[tuple[GridPlace, str], list[Cell]] = {}
    for cell in cells:
        by_entry.setdefault((GridPlace(cell.model, cell.task, cell.metric, cell.sparsity), cell.pruner), []).append(
            cell
        )
    models = _unique(cell.model for cell in cells)

    def order(place: GridPlace) -> tuple[int, int, str, float]:
        return models.index(place.model), tasks.index(place.task), place.metric, place.sparsity

    entries: dict[tuple[GridPlace, str], PlaceEntry] = {}
    found: dict[tuple[GridPlace, str, str], Difference] = {}
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
    place: GridPlace, name: str, tier: str, cells: Sequence[Cell], pairs: Mapping[tuple[str, str], Difference]
) -> PlaceEntry:
    cells = tuple(sorted(cells, key=lambda cell: cell.seed))
    each = each_of(cells)
    mean = fmean(score_of(cell) for cell in cells)
    low, high = interval(each) if len(each) == len(cells) else (mean, mean)
    return PlaceEntry(place, name, tier, cells, low, high, to_dense=pairs.get((name, DENSE)))


def compare_overall(
    entries: Mapping[tuple[GridPlace, str], PlaceEntry], pruners: Sequence[str]
) -> tuple[dict[tuple[float, str], Overall], dict[tuple[float, str, str], Difference]]:
    """Return the share of the dense score at each sparsity, and the differences of every two pruners, both ways round.

    A share is the mean over seeds relative to the dense mean over the same seeds, the mean of that over the models and
    tasks that have the sparsity. Two pruners are compared on the seeds that both and the dense baseline have
    everywhere. Test items and seeds are drawn as for one place; the dense scores are taken as they are.
    """
    shares: dict[tuple[float, str], Overall] = {}
    found: dict[tuple[float, str, str], Difference] = {}
    places = list(dict.fromkeys(place for place, _ in entries if place.sparsity))
    for sparsity in sorted({place.sparsity for place in places}):
        here = [place for place in places if place.sparsity == sparsity]
        if all((place.dense, DENSE) in entries for place in here):
            dense = [each_of(entries[place.dense, DENSE].cells) for place in here]
            names = [name for name in pruners if name != DENSE and all((place, name) in entries for place in here)]
            own = {name: [each_of(entries[place, name].cells) for place in here] for name in names}
            made, pairs = _shares(sparsity, own, dense)
            shares |= {(sparsity, name): one for name, one in made.items()}
            found |= {(sparsity, a, b): difference for (a, b), difference in pairs.items()}
    return shares, found


def _shares(
    sparsity: float, own: Mapping[str, Sequence[Each]], dense: Sequence[Each]
) -> tuple[dict[str, Overall], dict[tuple[str, str], Difference]]:
    """The shares of one sparsity; ``own`` and ``dense`` hold the figures of the items, place by place."""
    seeds = {name: _seeds(each, dense) for name, each in own.items()}
    seeds = {name: these for name, these in seeds.items() if these and min(_means(dense, these)) > 0}

    @cache
    def drawn(name: str, seeds: tuple[int, ...]) -> tuple[float, np.ndarray]:
        whole = _means(dense, seeds)
        share = np.mean([mean / of for mean, of in zip(_means(own[name], seeds), whole, strict=True)])
        draws = [over_seeds(item_means({s: each[s] for s in seeds}), seeds) for each in own[name]]
        return 100 * float(share), 100 * np.mean([d / of for d, of in zip(draws, whole, strict=True)], axis=0)

    pairs = {}
    for a, b in combinations(seeds, 2):
        if both := tuple(seed for seed in seeds[a] if seed in seeds[b]):
            (share_a, draws_a), (share_b, draws_b) = drawn(a, both), drawn(b, both)
            pairs[a, b] = Difference(round(share_a - share_b, 9), *ends(draws_a - draws_b), both)
    pairs |= {(b, a): -difference for (a, b), difference in pairs.items()}
    shares = {name: drawn(name, these)[0] for name, these in seeds.items()}
    best = best_of(shares, pairs) if shares else ""
    made = {
        name: Overall(
            *(sparsity, name, share, *ends(drawn(name, seeds[name])[1]), seeds[name], len(dense)),
            to_best=pairs.get((name, best)),
            best=name == best,
        )
        for name, share in shares.items()
    }
    return made, pairs


def _seeds(each: Sequence[Each], dense: Sequence[Each]) -> tuple[int, ...]:
    common = [set(common_seeds(own, whole)) for own, whole in zip(each, dense, strict=True)]
    return tuple(sorted(set.intersection(*common)))


def _means(each: Sequence[Each], seeds: tuple[int, ...]) -> list[float]:
    return [float(np.mean([figures[seed].mean() for seed in seeds])) for figures in each]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _cells(number: int) -> str:
    return "1 cell" if number == 1 else f"{number} cells"
