"""The section of the page about cost against quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multiflow.report.bench.cost import Cost, costs
from multiflow.report.bench.page_quality import NONE, in_tier
from multiflow.report.bench.values import Bench
from multiflow.report.html import Column, Markup, number, percent, seconds, section, size, table, tag
from multiflow.report.palette import Look
from multiflow.report.svg import Point, Reference, Series, chart, log_axis, name, round_axis
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
        "the model. Above and to the left is better. Pruners that lack a task at a sparsity have no point there."
    )
    return section("Cost against quality", tag("div", charts, class_="charts"), tables, id="cost", lead=lead)


def _scatter(bench: Bench, styles: Mapping[str, Look], found: Sequence[Cost], sparsity: float) -> Markup | None:
    title = f"{found[0].model}, {percent(sparsity)} zeros: share of the dense score"
    series = []
    for item in found:
        kept = bench.kept(item.model, item.pruner, sparsity)
        if kept:
            seeds = f"{count(kept[1], 'seed')}" if kept[1] else ""
            text = f"{item.pruner}: {kept[0]:.1f} % of dense after {seconds(item.seconds)} of pruning, {seeds}"
            at = max(item.seconds, LEAST)
            quiet = item.pruner not in bench.loud
            point = Point(at, kept[0], kept[0], kept[0], text)
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

    def kept(sparsity: float) -> Column:
        def value(item: Cost) -> float | None:
            share = bench.kept(model, item.pruner, sparsity)
            return share[0] if share else None

        def tip(item: Cost) -> str:
            share = bench.kept(model, item.pruner, sparsity)
            return f"{item.pruner}: over {count(share[1], 'seed')}" if share else "not all tasks have figures"

        return Column(
            percent(sparsity),
            lambda item: "" if value(item) is None else f"{value(item):.1f}\N{NO-BREAK SPACE}%",
            lambda item: NONE if value(item) is None else value(item) or 0.0,
            class_="number",
            over="share of the dense score",
            tip=tip,
        )

    columns = (
        Column("pruner", lambda item: name(item.pruner, styles[item.pruner]), lambda item: item.pruner, class_="first"),
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
        _amount("a cell", "mean seconds of fine-tuning and evaluation", lambda item: item.cell or 0.0, seconds),
        *map(kept, bench.sparsities(model)),
    )
    caption = f"{model}: mean over the prunings of all seeds"
    return table(columns, found, caption=caption, attributes=lambda item: in_tier(bench, item.pruner))


def _or_none(value: float) -> str:
    return seconds(value) if value else "none"


def _amount(title: str, hint: str, value, show) -> Column:  # type: ignore[no-untyped-def]
    return Column(title, lambda item: show(value(item)), value, hint, "number")
