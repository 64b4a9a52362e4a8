"""The first section of the page: who is ahead over all, how sure that is, and who leads where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from multiflow.bench.records import DENSE
from multiflow.report.bench.forest import forest
from multiflow.report.bench.parts import few_mark, folded, in_colours, in_tier, leads_column, names_column
from multiflow.report.bench.values import Bench, Overall, Place
from multiflow.report.bench.words import (
    Standing,
    difference_said,
    duel,
    entry_said,
    leaders,
    losses,
    overall_text,
    place_said,
    seeds_of,
    standings,
    verdicts,
)
from multiflow.report.html import Column, Content, Markup, join, nominal, section, table, tag
from multiflow.report.palette import Look


def summary(bench: Bench, styles: Mapping[str, Look]) -> Markup | None:
    """Return the section: the standings, the overall differences, sentences, and a map of who leads where."""
    if not bench.places:
        return None
    first = bench.first or ""
    behind = [
        in_colours(f"{place_said(place)}: {name} {difference_said(d)}", styles) for place, name, d in losses(bench)
    ]
    sentences = [in_colours(f"{place_said(place)}: {text}", styles) for place, text in leaders(bench)]
    lead = (
        "From the pruner that leads most often down. To lead is to be the best of a place or within noise of it: the "
        "95 % interval of the difference includes zero. The share of the dense score is the mean over all models and "
        "tasks; ",
        tag("b", "bold", class_="best"),
        " is the best, ",
        tag("span", "underlined", class_="close"),
        " what is within noise of it; a small ",
        tag("sup", "n", class_="few"),
        " the number of seeds, where others have more.",
    )
    return section(
        "Summary",
        _standings(bench, styles),
        _forests(bench, styles, first),
        tag("h3", "In words"),
        tag("ul", [tag("li", in_colours(text, styles)) for text in verdicts(bench)], class_="said-list"),
        _map(bench, styles),
        folded(sentences, "place by place, in words"),
        folded(behind, f"where {first} is behind another pruner beyond noise")
        or tag("p", f"{first} is nowhere behind another pruner beyond noise.", class_="lead"),
        id="summary",
        lead=lead,
    )


def _standings(bench: Bench, styles: Mapping[str, Look]) -> Markup:
    first = bench.first or ""

    def against(row: Standing) -> Content:
        return str(duel(bench, row.pruner, first)) or None

    def lean(row: Standing) -> float | None:
        return duel(bench, row.pruner, first).lean

    columns = (
        names_column(styles),
        Column("seeds", lambda row: seeds_of(bench, row.pruner), lambda row: max(_seeds(bench, row)), class_="number"),
        leads_column(),
        Column(
            f"against {first}",
            against,
            lean,
            f"places won beyond noise / within noise / lost beyond noise against {first}, on the seeds both have",
            "number",
        ),
        *(_share(bench, sparsity) for sparsity in bench.overall_sparsities),
    )
    return table(
        columns,
        standings(bench),
        caption=f"The standings of the pruners; won / level / lost against {first}; share of the dense score",
        attributes=lambda row: in_tier(bench, row.pruner),
        id="standings-table",
    )


def _share(bench: Bench, sparsity: float) -> Column:
    def of(row: Standing) -> Overall | None:
        return bench.overall.get((sparsity, row.pruner))

    def show(row: Standing) -> Content:
        if not (one := of(row)):
            return None
        text = f"{one.share:.1f}\N{NO-BREAK SPACE}%"
        look = "best" if one.best else "close" if one.close else None
        return tag("span", text, class_=look), tag("span", few_mark(bench.fewer_seeds(one)), class_="seeds")

    def tip(row: Standing) -> str:
        one = of(row)
        return overall_text(bench, one) if one else f"{row.pruner} lacks a model or task at {nominal(sparsity)}"

    def key(row: Standing) -> float | None:
        one = of(row)
        return one.share if one else None

    return Column(nominal(sparsity), show, key, class_="number figure", over="share of the dense score at", tip=tip)


def _forests(bench: Bench, styles: Mapping[str, Look], first: str) -> Markup | None:
    made = []
    for sparsity in bench.overall_sparsities:
        found = {
            name: d for (s, name, other), d in bench.overall_differences.items() if (s, other) == (sparsity, first)
        }
        if found:
            title = f"{nominal(sparsity)} zeros"
            tips = {name: overall_text(bench, bench.overall[sparsity, name]) for name in found}
            made.append(tag("figure", tag("figcaption", title), forest(title, found, styles, first, tips)))
    if not made:
        return None
    lead = (
        f"Share of the dense score minus that of {first}, in points, mean over all models and tasks, with its 95 % "
        f"interval. Right of the line is better than {first}; an interval that crosses it is within noise. Hollow "
        "marks rest on one seed, whose intervals are too narrow; an arrow points to what is off the scale."
    )
    return join(
        (
            tag("h3", f"How sure: against {first}, over everything"),
            tag("p", lead, class_="lead"),
            tag("div", made, class_="forests"),
        )
    )


def _map(bench: Bench, styles: Mapping[str, Look]) -> Markup:
    def at(place: Place) -> Column:
        dense = bench.entries.get((place.dense, DENSE))

        def value(row: Standing) -> float | None:
            entry = bench.entries.get((place, row.pruner))
            if entry is None:
                return None
            return 100 * entry.mean / dense.mean if dense and dense.mean else entry.mean

        def show(row: Standing) -> Content:
            entry = bench.entries.get((place, row.pruner))
            if entry is None:
                return None
            seeds = bench.few(entry)
            alone = " alone" if seeds else ""
            look = f"spot best{alone}" if entry.best else "spot near" if entry.close else "spot"
            return tag("span", f"{value(row):.0f}", few_mark(seeds), class_=look)

        def tip(row: Standing) -> str | None:
            entry = bench.entries.get((place, row.pruner))
            return entry_said(entry, bench) if entry else None

        over = Markup(f"{tag('small', place.model)}<br/>{join(place.task)}")
        return Column(
            f"{100 * place.sparsity:.4g}",
            show,
            value,
            place_said(place),
            "number",
            over,
            tip,
        )

    caption = (
        "Score in percent of the dense one (each mean over its own seeds), at each model, task and percent of zeros"
    )
    made = table(
        (names_column(styles), *map(at, bench.places)),
        standings(bench),
        caption=caption,
        attributes=lambda row: in_tier(bench, row.pruner),
        id="map-table",
    )
    lead = (
        "Each column is a place. ",
        tag("span", "Filled", class_="spot best"),
        " is the best pruner there (",
        tag("span", "framed", class_="spot best alone"),
        ": over fewer seeds than others), ",
        tag("span", "tinted", class_="spot near"),
        " what is within noise of it. A small ",
        tag("sup", "n", class_="few"),
        " is the number of seeds, where others have more; point at a number for its figures, seeds and intervals.",
    )
    return join((tag("h3", "Who leads where"), tag("p", lead, class_="lead"), made))


def _seeds(bench: Bench, row: Standing) -> Iterable[int]:
    return chain((0,), (len(entry.cells) for (_, name), entry in bench.entries.items() if name == row.pruner))
