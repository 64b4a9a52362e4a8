"""What pruning costs, what it leaves of the dense score, and what the whole grid took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.report.bench.quality import pruner_row
from multiflow.report.bench.results import Bench, GridPlace, PlaceEntry, score_of
from multiflow.report.charts import Look, Point, Reference, Series, chart, log_axis, round_axis
from multiflow.report.document import Block, Drawing, Drawings, Paragraph, Section
from multiflow.report.tables import Column, Table, TableCell
from multiflow.report.text import NBSP, count, nominal, number, seconds, size

LEAST = 0.01
"""Seconds that the logarithmic axis begins at."""


@dataclass(frozen=True)
class Cost:
    """What a pruner costs on one model, mean over the prunings of all seeds."""

    model: str  # name in the grid
    pruner: str  # name in the grid
    calibration: float  # seconds
    selection: float  # seconds
    pairs: int  # calibration pairs; the most
    peak_memory: int  # bytes; the most
    prunings: int  # how many, one a seed
    cell: float | None  # mean seconds of fine-tuning and evaluating one cell

    @property
    def seconds(self) -> float:
        return self.calibration + self.selection


class Kept(NamedTuple):
    """What a pruner keeps of the dense score of a model at one sparsity, mean over its tasks."""

    share: float  # in percent, over the seeds that the pruner and the dense baseline have of all tasks
    seeds: int  # their number
    few: int | None = None  # the same, where others have more; else None


def costs(bench: Bench) -> list[Cost]:
    found: dict[tuple[str, str], list[Pruning]] = {}
    for pruning in bench.prunings:
        found.setdefault((pruning.model, pruning.pruner), []).append(pruning)
    keys = [(model, pruner) for model in bench.models for pruner in bench.pruners if (model, pruner) in found]
    return [_cost(bench, *key, found[key]) for key in keys]


def total_seconds(bench: Bench) -> tuple[float, float]:
    prunings = {pruning.id: pruning for pruning in bench.prunings}.values()
    return sum(map(cell_seconds, bench.cells)), sum(one.calibration + one.selection for one in prunings)


def kept(bench: Bench, model: str, sparsity: float) -> dict[str, Kept]:
    """Return pruner -> what it keeps of the dense score; of those that have all tasks of the grid at the sparsity."""
    asked = [c for c in bench.expected if (c.model, c.sparsity) == (model, sparsity) and c.pruner != DENSE]
    tasks = {cell.task for cell in asked}
    tracks = [track for track in bench.tracks(model) if track.task in tasks]
    if {track.task for track in tracks} != tasks:
        return {}
    found = {name: share for name in bench.rivals if (share := _kept(bench, tracks, name, sparsity))}
    most = max((one.seeds for one in found.values()), default=0)
    return {name: one._replace(few=one.seeds if one.seeds < most else None) for name, one in found.items()}


def cell_seconds(cell: Cell) -> float:
    return sum(cell.seconds.values())


def _cost(bench: Bench, model: str, pruner: str, prunings: list[Pruning]) -> Cost:
    cells = [cell_seconds(cell) for cell in bench.cells if (cell.model, cell.pruner) == (model, pruner)]
    return Cost(
        model,
        pruner,
        fmean(p.calibration for p in prunings),
        fmean(p.selection for p in prunings),
        max(p.pairs for p in prunings),
        max(p.peak_memory for p in prunings),
        len(prunings),
        fmean(cells) if cells else None,
    )


def _kept(bench: Bench, tracks: Sequence[GridPlace], pruner: str, sparsity: float) -> Kept | None:
    sparse = [bench.entries.get((track._replace(sparsity=sparsity), pruner)) for track in tracks]
    dense = [bench.entries.get((track, DENSE)) for track in tracks]
    scores = [_scores(entry) for entry in (*sparse, *dense)]
    seeds = set.intersection(*map(set, scores)) if scores else set()
    wholes = [sum(of[seed] for seed in seeds) for of in scores[len(tracks) :]]
    if not seeds or not all(wholes):
        return None
    shares = [100 * sum(of[seed] for seed in seeds) / whole for of, whole in zip(scores, wholes, strict=False)]
    return Kept(fmean(shares), len(seeds))


def _scores(entry: PlaceEntry | None) -> dict[int, float]:
    return {cell.seed: score_of(cell) for cell in entry.cells} if entry else {}


def cost_section(bench: Bench, looks: Mapping[str, Look]) -> Section | None:
    found = costs(bench)
    if not found:
        return None
    charts: list[Drawing] = []
    tables: list[Block] = []
    for model in dict.fromkeys(item.model for item in found):
        here = [item for item in found if item.model == model]
        charts += [made for s in bench.sparsities(model) if (made := _scatter(bench, looks, here, s))]
        tables += [Paragraph(model, "h3"), _table(bench, looks, here)]
    lead = (
        "Does a dearer pruner give a better model? The seconds are those of calibration and selection, for the masks "
        "of all sparsities together; the height is the score relative to the dense baseline, mean over all tasks of "
        "the model. Above and to the left is better. Pruners that lack a task at a sparsity have no point there; "
        "hollow marks, and a small number in the table, are means over fewer seeds than others. The memory is the "
        "most that the whole process held, which may hold what it computed before."
    )
    return Section("cost", "Cost against quality", [Drawings(charts), *tables], lead)


def _scatter(bench: Bench, looks: Mapping[str, Look], found: Sequence[Cost], sparsity: float) -> Drawing | None:
    title = f"{found[0].model}, {nominal(sparsity)} zeros: share of the dense score"
    of, series = kept(bench, found[0].model, sparsity), []
    for item in found:
        if one := of.get(item.pruner):
            seeds = count(one.seeds, "seed")
            text = f"{item.pruner}: {one.share:.1f} % of dense after {seconds(item.seconds)} of pruning, {seeds}"
            point = Point(max(item.seconds, LEAST), one.share, one.share, one.share, text, hollow=bool(one.few))
            series.append(Series(item.pruner, looks[item.pruner], (point,), item.pruner not in bench.loud))
    if not series:
        return None
    points = [line.points[0] for line in series]
    x_axis = log_axis("seconds of pruning", min(p.x for p in points), max(p.x for p in points))
    y_axis = round_axis("", min(p.y for p in points), max(max(p.y for p in points), 100.0))
    drawing = chart(title, series, (Reference("dense", 100.0),), x_axis=x_axis, y_axis=y_axis, joined=False)
    return Drawing(drawing, title)


def _table(bench: Bench, looks: Mapping[str, Look], found: Sequence[Cost]) -> Table:
    model = found[0].model
    head, rows = [Column("pruner", class_="first")], []
    head += [Column(title, hint=hint, class_="number") for title, hint, *_ in AMOUNTS]
    over = "share of the dense score"
    sparsities = bench.sparsities(model)
    head += [Column(nominal(sparsity), over, class_="number", after="seeds") for sparsity in sparsities]
    shares = [kept(bench, model, sparsity) for sparsity in sparsities]
    for item in found:
        amounts = [(of(item), write) for *_, of, write in AMOUNTS]
        cells = [TableCell() if value is None else TableCell(write(value), value) for value, write in amounts]
        cells += [_share(of.get(item.pruner), item.pruner) for of in shares]
        rows.append(pruner_row(bench, item.pruner, cells, looks))
    return Table(head, rows, f"{model}: mean over the prunings of all seeds")


def _share(one: Kept | None, pruner: str) -> TableCell:
    if one is None:
        return TableCell(tip="not all tasks have figures")
    tip = f"{pruner}: over {count(one.seeds, 'seed')}"
    return TableCell(f"{one.share:.1f}{NBSP}%", one.share, seeds=one.few, tip=tip)


def _or_none(write: Callable[[float], str]) -> Callable[[float], str]:
    return lambda value: write(value) if value else "none"


AMOUNTS: Sequence[tuple[str, str, Callable[[Cost], float | None], Callable[[float], str]]] = (
    ("seeds", "prunings that the seconds are means over", lambda item: item.prunings, str),
    ("calibration", "seconds of the pass over the data", lambda item: item.calibration, _or_none(seconds)),
    ("selection", "seconds of scores, budgets and masks", lambda item: item.selection, seconds),
    ("pairs", "calibration pairs", lambda item: item.pairs, _or_none(number)),
    (
        "peak memory",
        "the most the whole process held, with what it kept of cells before",
        lambda item: item.peak_memory,
        size,
    ),
    ("a cell", "mean seconds of fine-tuning and evaluation", lambda item: item.cell, seconds),
)
"""Title and hint of a column of the table -> its value, and how it is written."""
