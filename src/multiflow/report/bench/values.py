"""What a benchmark found, as frozen values: places of comparison, and what each pruner reaches there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import NamedTuple

from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.report.bench.bootstrap import Difference

FIRST = "multiflow"
"""The pruner whose standing the words tell, where the grid has it."""


class Place(NamedTuple):
    """Where pruners are compared; the dense baselines stand at sparsity 0."""

    model: str
    task: str
    metric: str
    sparsity: float

    @property
    def dense(self) -> Place:
        """Where the dense baseline of this place stands."""
        return self._replace(sparsity=0.0)


@dataclass(frozen=True)
class Entry:
    """What one pruner reaches at one place.

    Args:
        place: where.
        pruner: name in the grid.
        tier: the first tier of the grid that the pruner is in.
        cells: those with figures, one a seed, by seed.
        low: 95 % interval of the mean over seeds and items; equal to `mean` where there are no items.
        high: its other end.
        to_dense: this minus the dense baseline; None where they have no seed in common, and for the baseline.
        to_best: this minus the best pruner of the place; None for the best, and where there is no seed in common.
        best: whether it is the best pruner of its place.
    """

    place: Place
    pruner: str
    tier: str
    cells: tuple[Cell, ...]
    low: float
    high: float
    to_dense: Difference | None = None
    to_best: Difference | None = None
    best: bool = False

    @property
    def scores(self) -> list[float]:
        """The main figure, seed by seed."""
        return [score_of(cell) for cell in self.cells]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.scores)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return stdev(self.scores) if len(self.cells) > 1 else None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds it has figures of."""
        return tuple(cell.seed for cell in self.cells)

    @property
    def close(self) -> bool:
        """Whether it is not the best of its place, but the difference may be luck."""
        return self.to_best is not None and self.to_best.high >= 0


@dataclass(frozen=True)
class Overall:
    """What one pruner keeps of the dense score at one sparsity, mean over all models and tasks.

    Args:
        sparsity: asked for.
        pruner: name in the grid.
        share: percent of the dense score, each model and task counting alike.
        low: its 95 % interval over seeds and items.
        high: its other end.
        seeds: those that it and the dense baseline have of all models and tasks.
        places: number of models and tasks.
        to_best: this minus the best of the sparsity, in points; None for the best, and without a seed in common.
        best: whether it is the best.
    """

    sparsity: float
    pruner: str
    share: float
    low: float
    high: float
    seeds: tuple[int, ...]
    places: int
    to_best: Difference | None = None
    best: bool = False

    @property
    def close(self) -> bool:
        """Whether it is not the best, but the difference may be luck."""
        return self.to_best is not None and self.to_best.high >= 0


@dataclass(frozen=True)
class Bench:
    """Everything a benchmark found so far.

    Args:
        title: what it is called.
        notes: what else is to be said on top, such as lines that could not be read.
        expected: all cells of the grid, without figures; those computed where no grid is known.
        cells: those with figures, one for each place, pruner and seed, under the names of the grid.
        failed: the cells that have an error and no figures.
        missing: the cells of the grid that nobody computed yet.
        prunings: those of the grid's cells, under its names and with its sparsities alone. Models of one source share
            a pruning without data: it stands here for each of them, under one id.
        models: in the order of the grid.
        pruners: the same, the dense baseline first.
        tiers: the same.
        tiers_of: pruner -> the tiers that its cells belong to, in the order of the grid.
        entries: (place, pruner) -> what it reaches, in the order of the grid.
        differences: (place, a, b) -> a minus b, both ways round.
        overall: (sparsity, pruner) -> what it keeps of the dense score; of pruners that have every model and task.
        overall_differences: (sparsity, a, b) -> a minus b of that, both ways round.
        dense_alone: (model, task) that the grid has dense cells of and no others, on a model that it prunes elsewhere:
            trainings to look at, such as a longer one, and no places.
    """

    title: str
    notes: tuple[str, ...]
    expected: tuple[Cell, ...] = field(repr=False)
    cells: tuple[Cell, ...] = field(repr=False)
    failed: tuple[Cell, ...] = field(repr=False)
    missing: tuple[Cell, ...] = field(repr=False)
    prunings: tuple[Pruning, ...] = field(repr=False)
    models: tuple[str, ...]
    pruners: tuple[str, ...]
    tiers: tuple[str, ...]
    tiers_of: Mapping[str, tuple[str, ...]]
    entries: Mapping[tuple[Place, str], Entry] = field(repr=False)
    differences: Mapping[tuple[Place, str, str], Difference] = field(repr=False)
    overall: Mapping[tuple[float, str], Overall] = field(repr=False, default_factory=dict)
    overall_differences: Mapping[tuple[float, str, str], Difference] = field(repr=False, default_factory=dict)
    dense_alone: frozenset[tuple[str, str]] = frozenset()

    @property
    def places(self) -> list[Place]:
        """Where sparse models stand: by model, task and sparsity."""
        return [place for place in dict.fromkeys(place for place, _ in self.entries) if place.sparsity]

    @property
    def rivals(self) -> list[str]:
        """The pruners that have figures, without the dense baseline."""
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
        """Return at how many models and tasks the grid has a sparsity."""
        return len({(c.model, c.task) for c in self.expected if c.sparsity == sparsity and c.pruner != DENSE})

    @property
    def records(self) -> list[Cell | Pruning]:
        """The cells that have figures, and each pruning once that says where it was computed."""
        prunings = {one.id: one for one in self.prunings if one.versions or one.git or one.machine}
        return [*self.cells, *prunings.values()]

    def few(self, entry: Entry) -> int | None:
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
        """The few pruners that charts draw in colour: the first, its tier, and whoever is best most often."""
        tier = self.tiers_of[self.first][0] if self.first else ""
        ranked = sorted(self.rivals, key=lambda name: (name != self.first, self.tiers_of[name][0] != tier))
        best = [entry.pruner for entry in self.entries.values() if entry.best]
        often = max(ranked, key=best.count, default=None)
        shown = [name for name in ranked if self.tiers_of[name][0] == tier][:6]
        return shown if often in shown or often is None else [*shown[:5], often]

    def at(self, place: Place) -> list[Entry]:
        """Return what the pruners reach at a place, in the order of the grid."""
        return [self.entries[place, p] for p in self.pruners if (place, p) in self.entries]

    def best(self, place: Place) -> Entry:
        """Return the best entry of a place."""
        return next(entry for entry in self.at(place) if entry.best)

    def places_of(self, model: str) -> list[Place]:
        """Return the places of a model."""
        return [place for place in self.places if place.model == model]

    def tracks(self, model: str) -> list[Place]:
        """Return the tasks of a model, each with its metric, as the places of their dense baselines."""
        return [track for track in self.trainings(model) if (model, track.task) not in self.dense_alone]

    def trainings(self, model: str) -> list[Place]:
        """Return the tasks of a model, those that only the dense model does included."""
        return list(dict.fromkeys(place.dense for place, _ in self.entries if place.model == model))

    def sparsities(self, model: str) -> list[float]:
        """Return the sparsities of a model, ascending."""
        return sorted({place.sparsity for place in self.places_of(model)})


def score_of(cell: Cell) -> float:
    """Return the main figure of a cell that has figures."""
    assert cell.score is not None
    return cell.score


def seeds_said(seeds: Sequence[int]) -> str:
    """Write seeds.

    >>> seeds_said([0, 1, 2]), seeds_said([7])
    ('seeds 0, 1, 2', 'seed 7')
    """
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def span(numbers: Collection[int]) -> str:
    """Write the lowest and the highest of some numbers, or the one that they all are.

    >>> span([1, 3]), span([3, 3]), span([])
    ('1 to 3', '3', '')
    """
    ends = sorted({min(numbers), max(numbers)}) if numbers else []
    return " to ".join(map(str, ends))
