"""Sections of the page about quality: tables, curves against sparsity, and who beats whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from multiflow.bench.records import DENSE
from multiflow.report.bench.parts import MOST_TINT, few_mark, in_tier, leads_column, names_column
from multiflow.report.bench.tables import Row, columns, rows, tiers_said
from multiflow.report.bench.values import Bench, Entry, Place
from multiflow.report.bench.words import Standing, duel, entry_said, standings
from multiflow.report.html import Column, Content, Markup, nominal, number, section, table, tag
from multiflow.report.palette import Look
from multiflow.report.svg import Point, Reference, Series, chart, round_axis, shares

STATES = {
    "failed": ("failed", "the cell failed; the error is said on top"),
    "pending": ("\N{MIDDLE DOT}", "not computed yet"),
    "": ("", None),
}


def figures(bench: Bench, styles: Mapping[str, Look]) -> Markup | None:
    """Return the section of all figures: a table a model."""
    made = [_model(bench, styles, model) for model in bench.models if columns(bench, model)]
    lead = (
        "Mean ± standard deviation over seeds on the test data. ",
        tag("b", "Bold", class_="best"),
        " is the best of a column, ",
        tag("span", "underlined", class_="close"),
        " what is within noise of it. A small ",
        tag("sup", "n", class_="few"),
        " is the number of seeds of a mean over fewer than others of its column. The headings sort; a figure that is "
        "pointed at says all that is known of it.",
    )
    return section("All figures", made, id="figures", lead=lead) if made else None


def quality(bench: Bench, styles: Mapping[str, Look]) -> Markup | None:
    """Return the section of curves: quality against sparsity, a chart a model and task."""
    tracks = dict.fromkeys(place.dense for place in bench.places)
    charts = [_curves(bench, styles, track) for track in tracks]
    lead = (
        "How much of the dense model is left as zeros are added. Whiskers are 95 % intervals over test items and "
        "seeds; those of two pruners may overlap where their paired difference is beyond noise, which the table says. "
        "Hollow marks are means over fewer seeds than others. Grey lines are the other pruners: point at one to see "
        "which. An axis may begin above 0."
    )
    made = tag("div", charts, class_="charts")
    return section("Quality against sparsity", made, id="quality", lead=lead) if charts else None


def duels(bench: Bench, styles: Mapping[str, Look]) -> Markup | None:
    """Return the section of the matrix: row against column."""
    ranked = standings(bench)
    names = [standing.pruner for standing in ranked]
    if len(names) < 2:
        return None

    def against(other: str) -> Column:
        def show(row: Standing) -> Content:
            if row.pruner == other:
                return None
            found = duel(bench, row.pruner, other)
            if not found.places:
                return "\N{MIDDLE DOT}"
            lean = found.lean or 0.0
            ground = f"--lean:{number(MOST_TINT * abs(lean))}%" if lean else None
            inside = tag("b", str(found.wins)), tag("small", f"\N{THIN SPACE}/\N{THIN SPACE}{found.losses}")
            return tag(
                "span", inside, class_="lean up" if lean > 0 else "lean down" if lean < 0 else "lean", style=ground
            )

        def tip(row: Standing) -> str | None:
            found = duel(bench, row.pruner, other)
            if row.pruner == other or not found.places:
                return None
            return (
                f"{row.pruner} against {other}: beyond noise ahead at {found.wins} of {found.places} places, behind at "
                f"{found.losses}, within noise at {found.ties}"
            )

        def key(row: Standing) -> float | None:
            return duel(bench, row.pruner, other).lean

        return Column(tag("span", other, class_="steep"), show, key, f"against {other}", "number duel", tip=tip)

    columns_ = (names_column(styles), leads_column(), *map(against, names))
    caption = "Places won / lost beyond noise, row against column, over all models, tasks and sparsities both have"
    made = table(columns_, ranked, caption=caption, attributes=lambda row: in_tier(bench, row.pruner), id="duel-table")
    lead = (
        "How often the pruner of a row is ahead of that of a column, and how often behind. Each pair is compared at "
        "every place that both have, on the seeds that both have. The rest up to the number "
        "of places is within noise. Blue: the row is ahead; amber: behind."
    )
    return section("Who beats whom", made, id="duels", lead=lead)


def _model(bench: Bench, styles: Mapping[str, Look], model: str) -> Markup:
    places = columns(bench, model)
    tier = Column("tier", tiers_said, lambda row: tiers_said(row) or None, class_="tier")
    made = table(
        (
            names_column(styles),
            *([tier] if len(bench.tiers) > 1 else []),
            *(_figure(bench, p, i) for i, p in enumerate(places)),
        ),
        rows(bench, model),
        caption=f"{model}: {', '.join(dict.fromkeys(f'{p.task} in {p.metric}' for p in places))}",
        attributes=lambda row: {**in_tier(bench, row.pruner), "class_": "dense" if row.pruner == DENSE else None},
    )
    return tag("div", tag("h3", model), made, class_="model")


def _figure(bench: Bench, place: Place, i: int) -> Column:
    def show(row: Row) -> Content:
        entry = row.entries[i]
        if entry is None:
            return tag("span", STATES[row.states[i]][0], class_=row.states[i] or None)
        mean = tag("span", f"{entry.mean:.1f}", class_="best" if entry.best else "close" if entry.close else None)
        std = tag("small", f" ±{entry.std:.1f}") if entry.std is not None else None
        return mean, tag("span", few_mark(bench.few(entry)), std, class_="rest")

    def tip(row: Row) -> str | None:
        entry = row.entries[i]
        return entry_said(entry, bench) if entry else STATES[row.states[i]][1]

    def key(row: Row) -> float | None:
        entry = row.entries[i]
        return entry.mean if entry else None

    over = f"{place.task} · {place.metric}"
    return Column(nominal(place.sparsity), show, key, class_="number figure", over=over, tip=tip)


def _curves(bench: Bench, styles: Mapping[str, Look], track: Place) -> Markup:
    places = [place for place in bench.places if place.dense == track]
    series = [
        Series(rival, styles[rival], tuple(_point(bench, entry) for entry in found), quiet=rival not in bench.loud)
        for rival in bench.rivals
        if (found := [bench.entries[place, rival] for place in places if (place, rival) in bench.entries])
    ]
    dense = bench.entries.get((track, DENSE))
    references = (Reference("dense", dense.mean),) if dense else ()
    return figure_of(
        f"{track.model}, {track.task}: {track.metric}", series, references, lambda: shares(series, "zeros")
    )


def figure_of(title: str, series: Sequence[Series], references: Sequence[Reference], axis: Callable) -> Markup:
    """Return a chart with its caption and a y axis that fits."""
    lows = [p.low for line in series for p in line.points] + [r.y for r in references]
    highs = [p.high for line in series for p in line.points] + [r.y for r in references]
    drawing = chart(title, series, references, x_axis=axis(), y_axis=round_axis("", min(lows), max(highs)))
    return tag("figure", tag("figcaption", title), drawing)


def _point(bench: Bench, entry: Entry) -> Point:
    text = entry_said(entry, bench)
    return Point(entry.place.sparsity, entry.mean, entry.low, entry.high, text, hollow=bool(bench.few(entry)))
