"""Differences to one pruner with their intervals, a line a pruner, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from multiflow.report.bench.bootstrap import Difference
from multiflow.report.bench.words import signed
from multiflow.report.html import Markup, number, tag
from multiflow.report.palette import Look
from multiflow.report.svg import Scale, marker, round_axis, svg, words

WIDTH, LEFT, RIGHT = 380.0, 142.0, 44.0  # names stand on the left, values on the right
LINE, TOP, BOTTOM = 17.0, 6.0, 24.0


def forest(
    title: str, found: Mapping[str, Difference], styles: Mapping[str, Look], first: str, tips: Mapping[str, str]
) -> Markup:
    """Return one line a pruner, the highest difference on top, and a line at zero for the pruner they are taken to.

    Args:
        title: of the drawing.
        found: pruner -> difference.
        styles: of the pruners.
        first: the pruner that differences are taken to.
        tips: pruner -> what its mark says.
    """
    names = sorted(found, key=lambda name: -found[name].value)
    low, high = _range([found[name] for name in names])
    axis = round_axis("", low, high, 4)
    x = axis.scale(LEFT, WIDTH - RIGHT)
    height = TOP + LINE * len(names)
    grid = [
        tag("g", _vertical(x(v), TOP, height, "grid"), words(x(v), height + 15, _tick(v), "middle"))
        for v, _ in axis.ticks
    ]
    lines = [
        _line(name, found[name], styles[name], TOP + LINE * (i + 0.5), x, (axis.low, axis.high), tips[name])
        for i, name in enumerate(names)
    ]
    zero = tag("g", _vertical(x(0.0), TOP - 4, height, None), class_="reference")
    return svg(f"{title}: difference to {first}", WIDTH, height + BOTTOM, grid, zero, lines, class_="chart forest")


def _range(found: list[Difference]) -> tuple[float, float]:
    """What the axis holds: the intervals of the upper two thirds, and zero; the rest may be far off."""
    upper = found[: ceil(len(found) * 2 / 3)]
    low, high = min(0.0, *(d.low for d in upper)), max(0.0, *(d.high for d in upper))
    return (low, high) if low < high else (-1.0, 1.0)


def _line(name: str, found: Difference, look: Look, y: float, x: Scale, ends: tuple[float, float], tip: str) -> Markup:
    low, high = (min(max(end, ends[0]), ends[1]) for end in (found.low, found.high))
    inside = ends[0] <= found.value <= ends[1]
    at = x(ends[0]) + 3
    mark = (
        marker(look, x(found.value), y, 4.2)
        if inside
        else tag("path", d=f"M{number(at - 5)} {number(y)}l7 -4v8z", class_="off")
    )
    drawn = tag("line", x1=x(low), x2=x(high), y1=y, y2=y, class_="whisker") if low < high else None
    alone = " hollow" if len(found.seeds) == 1 else ""
    return tag(
        "g",
        tag("title", tip),
        tag("rect", x=0, y=y - LINE / 2, width=WIDTH, height=LINE, class_="hit"),
        words(LEFT - 10, y + 4, name, "end", class_="who"),
        tag("g", drawn, tag("g", mark, class_=f"point{alone}"), class_="series"),
        words(WIDTH, y + 4, signed(found.value), "end", class_="value"),
        class_=f"line c-{look.colour}",
        data_name=name,
    )


def _tick(value: float) -> str:
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _vertical(x: float, top: float, bottom: float, class_: str | None) -> Markup:
    return tag("line", x1=x, x2=x, y1=top, y2=bottom, class_=class_)
