"""A benchmark in sentences, every figure computed from its results: who leads, by how much, and what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from multiflow.bench.records import DENSE, Cell
from multiflow.report.bench.results import Bench, GridPlace, Overall, PlaceEntry, score_of
from multiflow.report.bench.statistics import Difference
from multiflow.report.text import count, listed, nominal, seeds_text, signed


@dataclass(frozen=True)
class Standing:
    """How often a pruner leads: at how many of the places that compare it, alone and up to noise."""

    pruner: str
    best: int
    close: int
    places: int

    @property
    def leads(self) -> int:
        """Places where it is the best or within noise of it."""
        return self.best + self.close


@dataclass(frozen=True)
class Duel:
    """How two pruners stand to each other over all places that compare them."""

    wins: int
    ties: int
    losses: int

    @property
    def places(self) -> int:
        """Number of comparisons."""
        return self.wins + self.ties + self.losses

    @property
    def lean(self) -> float | None:
        """Share of places won minus that lost; None without a comparison."""
        return (self.wins - self.losses) / self.places if self.places else None

    def __str__(self) -> str:
        return f"{self.wins} / {self.ties} / {self.losses}" if self.places else ""


def standings(bench: Bench) -> list[Standing]:
    """Return every pruner's standing, the one that leads at the greatest share of its places first."""
    found = []
    for name in bench.rivals:
        places = [place for place in bench.places if len(bench.at(place)) > 1 and (place, name) in bench.entries]
        entries = [bench.entries[place, name] for place in places]
        entries = [entry for entry in entries if entry.best or entry.to_best]
        best, close = sum(entry.best for entry in entries), sum(entry.close for entry in entries)
        found.append(Standing(name, best, close, len(entries)))
    return sorted(found, key=lambda s: (-s.leads / max(s.places, 1), -s.best, -s.places))


def seed_counts(bench: Bench, pruner: str) -> set[int]:
    """Return over how many seeds the means of a pruner are, which may differ from place to place."""
    return {len(entry.cells) for (_, name), entry in bench.entries.items() if name == pruner}


def duel(bench: Bench, a: str, b: str, sparsity: float | None = None) -> Duel:
    """Return how often ``a`` is ahead of ``b`` beyond noise, within it, and behind; at one sparsity or at all."""
    places = [place for place in bench.places if sparsity in (None, place.sparsity)]
    found = [bench.differences[place, a, b] for place in places if (place, a, b) in bench.differences]
    wins, losses = sum(d.low > 0 for d in found), sum(d.high < 0 for d in found)
    return Duel(wins, len(found) - wins - losses, losses)


def headline(bench: Bench) -> str:
    """Return who leads the table of standings, who is next, and where the first pruner stands, in a sentence or two."""
    ranked = [standing for standing in standings(bench) if standing.places]
    if not bench.cells:
        return "Nothing has been computed yet."
    if len(ranked) < 2:
        return f"{count(len(bench.cells), 'cell').capitalize()} computed; no two pruners can be compared yet."
    seeds = {s.pruner: max(len(e.cells) for e in bench.entries.values() if e.pruner == s.pruner) for s in ranked}
    few = {name: f" ({count(n, 'seed')})" if n < max(seeds.values()) else "" for name, n in seeds.items()}
    said = {s.pruner: f"at {s.leads} of {s.places}" for s in ranked}
    top, whole = ranked[0], max(s.places for s in ranked)
    named = ranked[1:3]
    first = next((s for s in ranked if s.pruner == bench.first), top)
    rest = [f"{s.pruner}{few[s.pruner]} {said[s.pruner]}" for s in (*named, *[first] * (first not in (top, *named)))]
    begin = f"{top.pruner}{few[top.pruner]} is the best pruner or within noise of it {said[top.pruner]} places"
    everywhere = next((s for s in ranked if s.places == whole), top)
    more = f" Of those compared at all {whole} places, {everywhere.pruner}{few[everywhere.pruner]} leads most often."
    return f"{begin}, {listed(rest)}.{more * (top.places < whole)}"


def scope(bench: Bench) -> str:
    """Return what was compared."""
    tasks = list(dict.fromkeys(c.task for c in bench.expected if (c.model, c.task) not in bench.dense_alone))
    sparsities = sorted({cell.sparsity for cell in bench.expected if cell.pruner != DENSE})
    pruners = count(len([name for name in bench.pruners if name != DENSE]), "pruner")
    at = f" at {listed([nominal(s) for s in sparsities])} zeros" if sparsities else ""
    return (
        f"{pruners.capitalize()}{at} on {listed(list(bench.models))}: each pruned once without knowing the task, then "
        f"fine-tuned with its zeros fixed for {listed(tasks)}, and evaluated on test data. A place is one model, task "
        "and sparsity."
    )


def leaders(bench: Bench) -> Iterator[tuple[GridPlace, str]]:
    """Yield for each place who leads, by how much, and what the dense model reaches."""
    for place in bench.places:
        best = bench.best(place)
        close = [_mean_text(entry, bench) for entry in bench.at(place) if entry.close]
        behind = [entry for entry in bench.at(place) if entry.to_best and not entry.close]
        dense = bench.entries.get((place.dense, DENSE))
        parts = [_mean_text(best, bench, f"dense {dense.mean:.1f}" if dense else None)]
        if close:
            shown = close if len(close) <= 4 else [*close[:3], f"{len(close) - 3} more"]
            parts.append(f"within noise {listed(shown)}")
        if behind:
            second = max(behind, key=lambda entry: entry.to_best.value if entry.to_best else 0.0)
            parts.append(f"beyond noise behind: {count(len(behind), 'pruner')}, the nearest {_against(second)}")
        yield place, "; ".join(parts)


def verdicts(bench: Bench) -> list[str]:
    """Return where the first pruner wins and loses, and whom it stands level with, in a few sentences."""
    first = bench.first
    if first is None:
        return []
    said = list(overall_sentences(bench))
    duels = {name: duel(bench, first, name) for name in bench.rivals if name != first}
    ahead = [f"{name} ({d.wins} of {d.places})" for name, d in duels.items() if 2 * d.wins > d.places]
    behind = [f"{name} ({d.losses} of {d.places})" for name, d in duels.items() if 2 * d.losses > d.places]
    level = [
        f"{name} ({d.wins} won, {d.losses} lost of {d.places})"
        for name, d in duels.items()
        if d.places and 2 * max(d.wins, d.losses) <= d.places
    ]
    if ahead:
        said.append(f"{first} is ahead beyond noise, at more than half of the places, of {listed(ahead)}.")
    if behind:
        said.append(f"{first} is behind, beyond noise and at more than half of the places: {listed(behind)}.")
    if level:
        said.append(f"Neither is ahead beyond noise at more than half of the places: {first} and {listed(level)}.")
    matched = []
    for model in bench.models:
        for sparsity in bench.sparsities(model):
            places = [p for p in bench.places_of(model) if p.sparsity == sparsity and (p, first) in bench.entries]
            same = [p.task for p in places if (d := bench.entries[p, first].to_dense) and d.high >= 0]
            matched += [f"{listed(same)} on {model} at {nominal(sparsity)}"] * bool(same)
    if matched:
        said.append(f"{first} is not below the dense model, beyond noise, in {listed(matched)}.")
    return said


def overall_sentences(bench: Bench) -> Iterator[str]:
    """Yield for each sparsity who keeps the most of the dense score over all models and tasks, and who as much."""
    for sparsity in bench.overall_sparsities:
        here = [one for (s, _), one in bench.overall.items() if s == sparsity]
        best = next(one for one in here if one.best)

        def write(one: Overall) -> str:
            seeds = f", {count(fewer, 'seed')}" if (fewer := bench.fewer_seeds(one)) else ""
            return f"{one.pruner} ({one.share:.1f}\N{NO-BREAK SPACE}%{seeds})"

        close = [write(one) for one in sorted(here, key=lambda one: -one.share) if one.close]
        level = f"; within noise of it {listed(close)}" if close else ", beyond noise" * (len(here) > 1)
        ground = count(best.places, "model and task", "models and tasks")
        if best.places < (whole := bench.ground(sparsity)):
            ground += f" of {whole} in the grid"
        shared = " on the seeds that all share," if bench.fewer_seeds(best) else ""
        begin = f"At {nominal(sparsity)} zeros, over {ground},{shared}"
        yield f"{begin} {write(best)} keeps the most of the dense score{level}."


def overall_text(bench: Bench, one: Overall) -> str:
    """Write all that is known of an overall share, for hover texts."""
    parts = [
        f"{one.pruner}, {nominal(one.sparsity)} zeros: {one.share:.1f}\N{NO-BREAK SPACE}% of the dense score "
        f"(95\N{NO-BREAK SPACE}% interval {one.low:.1f} to {one.high:.1f}), mean over "
        f"{count(one.places, 'model and task', 'models and tasks')}, {seeds_text(one.seeds)}"
    ]
    if one.best:
        parts.append("best here")
    elif one.to_best:
        parts.append(f"{'within noise of' if one.close else 'behind'} the best: {difference_text(one.to_best)}")
    if difference := bench.overall_differences.get((one.sparsity, one.pruner, bench.first or "")):
        parts.append(f"to {bench.first} on {seeds_text(difference.seeds)} {difference_text(difference)}")
    return "; ".join(parts)


def losses(bench: Bench) -> list[tuple[GridPlace, str, Difference]]:
    """Return every place where the first pruner is behind another beyond noise: place, the other, by how much."""
    first = bench.first
    return [
        (place, entry.pruner, difference)
        for place in bench.places
        for entry in sorted(bench.at(place), key=lambda entry: -entry.mean)
        if (difference := bench.differences.get((place, entry.pruner, first or ""))) and difference.low > 0
    ]


def place_text(place: GridPlace) -> str:
    return f"{place.model}, {place.task} at {nominal(place.sparsity)}"


def difference_text(difference: Difference) -> str:
    """Write a difference with its interval.

    >>> difference_text(Difference(4.1, 1.0, 7.25, (0,)))
    '+4.1 (95\\xa0% interval +1.0 to +7.2)'
    """
    value, low, high = map(signed, (difference.value, difference.low, difference.high))
    return f"{value} (95\N{NO-BREAK SPACE}% interval {low} to {high})"


def entry_text(entry: PlaceEntry, bench: Bench | None = None) -> str:
    """Write all that is known of an entry, for hover texts; with the benchmark, against its first pruner too."""
    place = entry.place
    where = f"{entry.pruner}, {nominal(place.sparsity)} zeros" if entry.pruner != DENSE else DENSE
    end = f" to {entry.high:.1f}" if entry.low < entry.high else ""
    interval = f" (95\N{NO-BREAK SPACE}% interval {entry.low:.1f}{end})" if end else ""
    parts = [f"{where}, {place.task} {place.metric}: {entry.mean:.1f}{interval}"]
    parts.append(", ".join(f"seed {cell.seed}: {cell.score:.1f}" for cell in entry.cells))
    if entry.to_dense:
        parts.append(f"to dense {difference_text(entry.to_dense)}")
    if entry.best:
        parts.append("best here")
    elif entry.to_best:
        noise = "within noise of the best" if entry.close else "behind the best"
        parts.append(f"{noise}: {difference_text(entry.to_best)}")
    if bench and (difference := bench.differences.get((place, entry.pruner, bench.first or ""))):
        parts.append(f"to {bench.first} on {seeds_text(difference.seeds)} {difference_text(difference)}")
    return "; ".join(parts)


def _mean_text(entry: PlaceEntry, bench: Bench, more: str | None = None) -> str:
    few = bench.few(entry)
    beside = [text for text in (count(few, "seed") if few else None, more) if text]
    return f"{entry.pruner} {entry.mean:.1f}" + (f" ({'; '.join(beside)})" if beside else "")


def _against(entry: PlaceEntry) -> str:
    assert entry.to_best is not None
    return f"{entry.pruner} {difference_text(entry.to_best)}"


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
