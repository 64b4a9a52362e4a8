"""What a reader must know before the figures: what is missing or failed, and what does not fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from multiflow.bench.records import DENSE, Cell
from multiflow.report.bench.results import Bench, score_of
from multiflow.report.text import count, listed, nominal, seeds_text

FEW = 6
"""So many missing cells of a pruner are named one by one."""


@dataclass(frozen=True)
class Gap:
    """Cells of one tier, model and pruner that have no figures."""

    tier: str
    model: str
    pruner: str
    number: int
    of: int
    what: str


def gaps(bench: Bench) -> list[Gap]:
    """Return what is missing, in the order of the grid; failed cells are not missing."""
    wanted = Counter((cell.tier, cell.model, cell.pruner) for cell in bench.expected)
    missing: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in bench.missing:
        missing.setdefault((cell.tier, cell.model, cell.pruner), []).append(cell)
    return [
        Gap(*key, number=len(cells), of=wanted[key], what=_what(cells) if len(cells) < wanted[key] else "all of it")
        for key, cells in sorted(missing.items(), key=lambda item: bench.tiers.index(item[0][0]))
    ]


def incomplete(bench: Bench) -> str | None:
    """Return in one sentence how much of the grid has figures; None if all of it has."""
    lacking = len(bench.missing) + len(bench.failed)
    if not lacking:
        return None
    parts = []
    if bench.missing:
        by_tier = Counter(cell.tier for cell in bench.missing)
        tiers = ", ".join(f"{by_tier[tier]} of tier {tier}" for tier in bench.tiers if by_tier[tier])
        parts.append(f"{len(bench.missing)} not computed yet ({tiers})")
    if bench.failed:
        parts.append(f"{len(bench.failed)} failed")
    return f"{len(bench.cells)} of {len(bench.cells) + lacking} cells of the grid have figures: {listed(parts)}."


def failures(bench: Bench) -> list[tuple[str, list[Cell]]]:
    found: dict[str, list[Cell]] = {}
    for cell in bench.failed:
        found.setdefault(cell.error or "no error was recorded", []).append(cell)
    return list(found.items())


def cell_text(cell: Cell) -> str:
    sparsity = "" if cell.pruner == DENSE else f" at {nominal(cell.sparsity)}"
    return f"{cell.model}, {cell.pruner}{sparsity}, {cell.task}, seed {cell.seed}"


def doubts(bench: Bench) -> list[str]:
    return [*bench.notes, *_mixed(bench), *_seeds(bench), *_items(bench)]


def _what(cells: Sequence[Cell]) -> str:
    if len(cells) <= FEW:
        return "; ".join(cell_text(cell).split(", ", 1)[1].removeprefix(cell.pruner).strip(", ") for cell in cells)
    tasks = listed(list(dict.fromkeys(cell.task for cell in cells)))
    sparsities = [nominal(s) for s in sorted({cell.sparsity for cell in cells if cell.sparsity})]
    where = f" at {listed(sparsities)}" if sparsities else ""
    return f"of {tasks}{where}, {seeds_text(sorted({cell.seed for cell in cells}))}"


def _mixed(bench: Bench) -> Iterator[str]:
    def kinds(values: list[str]) -> str | None:
        found = Counter(values).most_common()
        return ", ".join(f"{value or 'unknown'} ({number})" for value, number in found) if len(found) > 1 else None

    found = bench.records
    one, many = ("cell", "cells") if len(found) == len(bench.cells) else ("cell or pruning", "cells and prunings")
    for name in dict.fromkeys(name for record in found for name in record.versions):
        if said := kinds([record.versions.get(name, "") for record in found]):
            yield f"Results of different versions of {name} are mixed: {said} {many}."
    if said := kinds([record.git or "no git" for record in found]):
        yield f"Results of different git revisions are mixed: {said} {many}."
    if dirty := sum((record.git or "").endswith("+") for record in found):
        yield f"{count(dirty, one, many).capitalize()} computed with changes that no git revision has."
    if said := kinds([record.machine for record in found]):
        yield f"Results of different machines are mixed: {said} {many}. Seconds and memory do not compare between them."
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in bench.cells):
        metrics = list(dict.fromkeys(c.metric for c in bench.cells if (c.model, c.task) == (model, task)))
        if len(metrics) > 1:
            yield f"{task} on {model} has figures of {listed(metrics)}; they stand apart and are not compared."


def _seeds(bench: Bench) -> Iterator[str]:
    entries = [e for e in bench.entries.values() if (e.place.model, e.place.task) not in bench.dense_alone]
    numbers = Counter(len(entry.cells) for entry in entries)
    if len(numbers) > 1:
        most = max(numbers)
        fewer = [
            f"{numbers[n]} over {count(n, 'seed')} ({listed(_names(e.pruner for e in entries if len(e.cells) == n))})"
            for n in sorted(numbers)
            if n < most
        ]
        yield (
            f"Not all means are over {count(most, 'seed')}: {listed(fewer)}. They are marked, and two pruners are "
            "always compared on the seeds that both have, so that the best of a column need not be its highest mean. "
            "One seed says nothing of the luck of a training."
        )
    lonely = [
        (place, name)
        for place in bench.places
        for name in (entry.pruner for entry in bench.at(place) if not entry.best and entry.to_best is None)
    ]
    if lonely:
        names = listed(_names(name for _, name in lonely))
        yield (
            f"{count(len(lonely), 'figure').capitalize()} of {names} cannot be compared with the best: no common seed "
            "with the same test items."
        )


def _names(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _items(bench: Bench) -> Iterator[str]:
    silent = sum(not len(cell.each) for cell in bench.cells)
    if silent:
        yield f"{count(silent, 'cell').capitalize()} without figures of single test items: not compared."
    for track in [track for model in bench.models for track in bench.tracks(model)]:
        here = [cell for cell in bench.cells if (cell.model, cell.task, cell.metric) == track[:3] and len(cell.each)]
        sizes = Counter(len(cell.each) for cell in here)
        if len(sizes) > 1:
            said = ", ".join(f"{size} ({number} cells)" for size, number in sizes.most_common())
            yield (
                f"{track.task} on {track.model} was evaluated on test sets of different sizes: {said} items. "
                "Cells of different sizes are not compared."
            )
        if off := sum(abs(fmean(cell.each) - score_of(cell)) > 0.05 for cell in here):
            yield (
                f"In {count(off, 'cell')} of {track.task} on {track.model} the mean over test items is not the main "
                "figure: tables show the figure, intervals and comparisons the items."
            )
