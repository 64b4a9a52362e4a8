"""The results of a benchmark in sentences, every figure computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multiflow.bench.records import DENSE
from multiflow.report.bench.results import Bench, GridPlace, Overall, PlaceEntry
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
    """Return the result in one or two sentences."""
    ranked = [standing for standing in standings(bench) if standing.places]
    if not bench.cells:
        return "Nothing has been computed yet."
    if len(ranked) < 2:
        return f"{count(len(bench.cells), 'cell').capitalize()} computed; no two pruners can be compared yet."
    seeds = {s.pruner: max(len(e.cells) for e in bench.entries.values() if e.pruner == s.pruner) for s in ranked}
    few = {name: f" ({count(n, 'seed')})" if n < max(seeds.values()) else "" for name, n in seeds.items()}
    said = {s.pruner: f"at {s.leads} of {s.places}" for s in ranked}
    whole = max(s.places for s in ranked)
    top = next((s for s in ranked if s.places == whole), ranked[0])
    first = next((s for s in ranked if s.pruner == bench.first), None)
    begin = f"{top.pruner}{few[top.pruner]} is the best pruner or within noise of it {said[top.pruner]} places"
    next_ = [s for s in ranked if s.places == whole and s is not top][:2]
    rest = [f"{s.pruner}{few[s.pruner]} {said[s.pruner]}" for s in next_]
    if first and first not in (top, *next_):
        rest.append(f"{first.pruner}{few[first.pruner]} {said[first.pruner]}")
    partly = [s for s in ranked if s.places < whole and s.leads * top.places > top.leads * s.places][:2]
    named = [f"{s.pruner}{few[s.pruner]} {said[s.pruner]}" for s in partly if s is not first]
    more = f" Of those compared at fewer places, {listed(named)}." if named else ""
    return f"{begin}{', ' * bool(rest)}{listed(rest) if rest else ''}.{more}"


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
