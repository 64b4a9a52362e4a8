"""Charts as inline SVG: lines and points with intervals.

Colours come from the page (``currentColor`` and classes), so that the charts follow its light and dark theme. Every
mark carries its value in a ``<title>``: hover, keyboard and screen readers find it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import TypeAlias

from multiflow.report.html import Content, Markup, nominal, number, percent, tag
from multiflow.report.palette import Look

WIDTH, HEIGHT = 550, 330  # of a line chart
LEFT, RIGHT, TOP, BOTTOM = 44, 158, 14, 46  # its margins; labels of lines stand on the right
LINE = 15  # height of a line of text

Scale: TypeAlias = Callable[[float], float]
"""Value -> place in the picture."""
PERCENTS = tuple((float(v), percent(v / 100)) for v in range(0, 101, 20))


@dataclass(frozen=True)
class Axis:
    """An axis: what it measures, where it begins and ends, and its ticks with their texts."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def scale(self, start: float, end: float) -> Scale:
        """Return value -> place between the places of the axis' ends."""
        bend = log10 if self.log else float
        low, high = bend(self.low), bend(self.high)
        return lambda value: start + (bend(value) - low) / (high - low) * (end - start)


@dataclass(frozen=True)
class Point:
    """A measured value with its interval, and what to say of it; a hollow mark rests on less than others."""

    x: float
    y: float
    low: float
    high: float
    text: str
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """A line of a chart; a quiet one is grey and has no label until it is pointed at."""

    name: str
    look: Look
    points: tuple[Point, ...]
    quiet: bool = False


@dataclass(frozen=True)
class Reference:
    """A horizontal line to compare with; its label stands above it or, if there is more room, below."""

    name: str
    y: float
    dotted: bool = False


def line_chart(title: str, series: Sequence[Series], references: Sequence[Reference], *, x_label: str) -> Markup:
    """Return a chart of percentages (y, 0 to 100) against shares in [0, 1] (x)."""
    return chart(title, series, references, x_axis=shares(series, x_label), y_axis=Axis("", 0, 100, PERCENTS))


def shares(series: Sequence[Series], label: str) -> Axis:
    """Return an x axis of shares in [0, 1], a tick at each one that occurs, with room for labels on the left."""
    ticks = sorted({point.x for line in series for point in line.points})
    span = ticks[-1] - ticks[0] or 0.1
    return Axis(label, ticks[0] - 0.38 * span, ticks[-1] + 0.06 * span, tuple((t, nominal(t)) for t in ticks))


def round_axis(label: str, low: float, high: float, count: int = 5) -> Axis:
    """Return an axis with about ``count`` round ticks that holds two values; it begins at 0 where both are above it,
    unless that is far off.

    >>> [text for _, text in round_axis("CIDEr", 12, 131).ticks]
    ['0', '50', '100', '150']
    """
    begin = 0.0 if 0 <= low < 0.6 * high else low
    high = high if high > begin else begin + (abs(high) or 1.0)
    rough = (high - begin) / count
    power = 10.0 ** floor(log10(rough))
    step = power * min((m for m in (1, 2, 5, 10) if m * power >= rough), default=10)
    ticks = [i * step for i in range(floor(begin / step), ceil(high / step - 1e-9) + 1)]
    return Axis(label, ticks[0], ticks[-1], tuple((t, number(t, 4)) for t in ticks))


def log_axis(label: str, low: float, high: float, text: Callable[[float], str] = number) -> Axis:
    """Return a logarithmic axis that holds two positive values, with a tick at each 1, 3, 10, 30."""
    decades = range(floor(log10(low)) - 1, ceil(log10(high)) + 1)
    ticks = [m * 10.0**d for d in decades for m in (1, 3) if low / 3.4 <= m * 10.0**d <= high * 3.4]
    return Axis(label, min(low / 1.3, ticks[0]), max(high * 1.3, ticks[-1]), tuple((t, text(t)) for t in ticks), True)


def chart(
    title: str,
    series: Sequence[Series],
    references: Sequence[Reference] = (),
    *,
    x_axis: Axis,
    y_axis: Axis,
    joined: bool = True,
) -> Markup:
    """Return a chart; lines that are quiet come first, grey and without a label. ``joined``: points make lines."""
    x, y = x_axis.scale(LEFT, WIDTH - RIGHT), y_axis.scale(HEIGHT - BOTTOM, TOP)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    grid = [
        tag("g", segment(LEFT, right, y(v), class_="grid"), words(LEFT - 7, y(v) + 4, text, "end"))
        for v, text in y_axis.ticks
    ]
    axis = [words(x(v), bottom + 18, text, "middle") for v, text in x_axis.ticks]
    name = words((LEFT + right) / 2, HEIGHT - 8, x_axis.label, "middle")
    marks = [_reference(reference, y(reference.y), right) for reference in references]
    lines = [_series(line, x, y, joined) for line in sorted(series, key=lambda line: not line.quiet)]
    labels = _labels([line for line in series if not line.quiet], right + 12, y, x if not joined else None)
    return svg(title, WIDTH, HEIGHT, grid, axis, name, marks, lines, labels, class_="chart")


def marker(look: Look, x: float = 0, y: float = 0, r: float = 5) -> Markup:
    """Return the marker of a pruner at a place."""
    if look.marker == "circle":
        return tag("circle", cx=x, cy=y, r=r)
    if look.marker == "square":
        return tag("rect", x=x - r * 0.9, y=y - r * 0.9, width=r * 1.8, height=r * 1.8)
    corners = {
        "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    }[look.marker]
    return tag("polygon", points=" ".join(f"{number(x + a * r)},{number(y + b * r)}" for a, b in corners))


def name(pruner: str, look: Look) -> Markup:
    """Return the name of a pruner with its marker, for tables and legends."""
    mark = tag("svg", marker(look, 7, 7), viewBox="0 0 14 14", class_=f"mark c-{look.colour}", aria_hidden="true")
    return tag("span", mark, pruner, class_="name")


def _series(line: Series, x: Scale, y: Scale, joined: bool) -> Markup:
    path = " ".join(f"{number(x(p.x))},{number(y(p.y))}" for p in line.points)
    points = [
        tag(
            "g",
            tag("title", p.text),
            tag("line", x1=x(p.x), x2=x(p.x), y1=y(p.low), y2=y(p.high), class_="whisker") if p.low < p.high else None,
            marker(line.look, x(p.x), y(p.y)),
            tag("circle", cx=x(p.x), cy=y(p.y), r=12, class_="hit"),
            class_="point hollow" if p.hollow else "point",
        )
        for p in line.points
    ]
    drawn = tag("polyline", points=path) if joined else None
    quiet = " quiet" if line.quiet else ""
    return tag("g", drawn, points, class_=f"series{quiet} c-{line.look.colour}", data_name=line.name)


def _labels(series: Sequence[Series], at: float, y: Scale, x: Scale | None) -> list[Markup]:
    """Names of the lines in a column, moved apart where they would overlap; with ``x``, led to the points."""
    ends = sorted((y(line.points[-1].y), i) for i, line in enumerate(series))
    places: list[float] = []
    for end, _ in ends:
        places.append(max(end, places[-1] + LINE) if places else end)
    below = places[-1] - (HEIGHT - BOTTOM) if places else 0
    for i in range(len(places) - 1, -1, -1):  # push back up what fell below the axis
        limit = places[i + 1] - LINE if i + 1 < len(places) else places[i] - max(below, 0)
        places[i] = min(places[i], limit)
    made = []
    for place, (end, i) in zip(places, ends, strict=True):
        start = x(series[i].points[-1].x) + 7 if x else at - 9
        lead = tag("path", d=f"M{number(start)} {number(end)}L{number(at - 3)} {number(place)}", class_="lead")
        name = words(at, place + 4, series[i].name, "start")
        made.append(tag("g", name, lead, class_=f"label c-{series[i].look.colour}", data_name=series[i].name))
    return made


def _reference(reference: Reference, y: float, right: float) -> Markup:
    label = f"{reference.name} {number(reference.y, 1)}"
    above = y - 5 if y > TOP + LINE else y + LINE - 2
    return tag(
        "g",
        segment(LEFT, right, y),
        words(LEFT + 4, above, label, "start"),
        class_="reference dotted" if reference.dotted else "reference",
    )


def segment(x1: float, x2: float, y: float, **attributes: str) -> Markup:
    """Return a horizontal line."""
    return tag("line", x1=x1, x2=x2, y1=y, y2=y, **attributes)


def words(x: float, y: float, content: str, anchor: str, **attributes: str) -> Markup:
    """Return a text at a place."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, **attributes)


def svg(title: str, width: float, height: float, *content: Content, class_: str) -> Markup:
    """Return a drawing that scales with its column."""
    return tag(
        "svg",
        content,
        viewBox=f"0 0 {number(width)} {number(height)}",
        xmlns="http://www.w3.org/2000/svg",
        role="group",
        aria_label=title,
        class_=class_,
    )
