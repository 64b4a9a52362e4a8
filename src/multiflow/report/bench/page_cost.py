"""The section of the page about cost against quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multiflow.report.bench.cost import Cost, costs, kept
from multiflow.report.bench.parts import few_mark, in_tier, names_column
from multiflow.report.bench.values import Bench
from multiflow.report.html import Column, Content, Markup, nominal, number, seconds, section, size, table, tag
from multiflow.report.palette import Look
from multiflow.report.svg import Point, Reference, Series, chart, log_axis, round_axis
from multiflow.report.words import count

LEAST = 0.01
"""Seconds that the logarithmic axis begins at."""


def cost(bench: Bench, styles: Mapping[str, Look]) -> Markup | None:
    """Return the section: seconds against the share of the dense score, and the table."""
    found = costs(bench)
    if not found:
        return None
    charts, tables = [], []
    for model in dict.fromkeys(item.model for item in found):
        here = [item for item in found if item.model == model]
        charts += [_scatter(bench, styles, here, sparsity) for sparsity in bench.sparsities(model)]
        tables.append((tag("h3", model), _table(bench, styles, here)))
    lead = (
        "Does a dearer pruner give a better model? The seconds are those of calibration and selection, for the masks "
        "of all sparsities together; the height is the score relative to the dense baseline, mean over all tasks of "
        "the model. Above and to the left is better. Pruners that lack a task at a sparsity have no point there; "
        "hollow marks, and a small number in the table, are means over fewer seeds than others."
    )
    return section("Cost against quality", tag("div", charts, class_="charts"), tables, id="cost", lead=lead)


def _scatter(bench: Bench, styles: Mapping[str, Look], found: Sequence[Cost], sparsity: float) -> Markup | None:
    title = f"{found[0].model}, {nominal(sparsity)} zeros: share of the dense score"
    series = []
    of = kept(bench, found[0].model, sparsity)
    for item in found:
        if one := of.get(item.pruner):
            seeds = count(one.seeds, "seed")
            text = f"{item.pruner}: {one.share:.1f} % of dense after {seconds(item.seconds)} of pruning, {seeds}"
            quiet = item.pruner not in bench.loud
            point = Point(max(item.seconds, LEAST), one.share, one.share, one.share, text, hollow=bool(one.few))
            series.append(Series(item.pruner, styles[item.pruner], (point,), quiet))
    if not series:
        return None
    points = [line.points[0] for line in series]
    x_axis = log_axis("seconds of pruning", min(p.x for p in points), max(p.x for p in points))
    y_axis = round_axis("", min(p.y for p in points), max(max(p.y for p in points), 100.0))
    drawing = chart(title, series, (Reference("dense", 100.0),), x_axis=x_axis, y_axis=y_axis, joined=False)
    return tag("figure", tag("figcaption", title), drawing)


def _table(bench: Bench, styles: Mapping[str, Look], found: Sequence[Cost]) -> Markup:
    model = found[0].model

    def share(sparsity: float) -> Column:
        of = kept(bench, model, sparsity)

        def show(item: Cost) -> Content:
            one = of.get(item.pruner)
            return one and (f"{one.share:.1f}\N{NO-BREAK SPACE}%", tag("span", few_mark(one.few), class_="seeds"))

        def key(item: Cost) -> float | None:
            return of[item.pruner].share if item.pruner in of else None

        def tip(item: Cost) -> str:
            one = of.get(item.pruner)
            return f"{item.pruner}: over {count(one.seeds, 'seed')}" if one else "not all tasks have figures"

        over = "share of the dense score"
        return Column(nominal(sparsity), show, key, class_="number", over=over, tip=tip)

    columns = (
        names_column(styles),
        _amount("seeds", "prunings that the seconds are means over", lambda item: item.prunings, str),
        _amount("calibration", "seconds of the pass over the data", lambda item: item.calibration, _or_none),
        _amount("selection", "seconds of scores, budgets and masks", lambda item: item.selection, seconds),
        _amount(
            "pairs", "calibration pairs", lambda item: item.pairs, lambda value: number(value) if value else "none"
        ),
        _amount(
            "peak memory",
            "the most the whole process held, with what it kept of cells before",
            lambda item: item.peak_memory,
            size,
        ),
        _amount("a cell", "mean seconds of fine-tuning and evaluation", lambda item: item.cell, seconds),
        *map(share, bench.sparsities(model)),
    )
    caption = f"{model}: mean over the prunings of all seeds"
    return table(columns, found, caption=caption, attributes=lambda item: in_tier(bench, item.pruner))


def _or_none(value: float) -> str:
    return seconds(value) if value else "none"


def _amount(title: str, hint: str, value, show) -> Column:  # type: ignore[no-untyped-def]
    return Column(title, lambda item: None if value(item) is None else show(value(item)), value, hint, "number")
