"""Charts as inline SVG: lines with intervals, and shares of zeros layer by layer.

Colours come from the page (``currentColor`` and classes), so that the charts follow its light and dark theme. Every
mark carries its value in a ``<title>``: hover, keyboard and screen readers find it there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from multiflow.report.html import Content, Markup, number, percent, tag
from multiflow.report.palette import Look
from multiflow.report.values import COLLAPSED
from multiflow.types import Layer

WIDTH, HEIGHT = 550, 330  # of a line chart
LEFT, RIGHT, TOP, BOTTOM = 44, 158, 14, 46  # its margins; labels of lines stand on the right
LINE = 15  # height of a line of text

Scale: TypeAlias = Callable[[float], float]
"""Value -> place in the picture."""


@dataclass(frozen=True)
class Point:
    """A measured value with its interval, and what to say of it."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    look: Look
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Reference:
    """A horizontal line to compare with; its label stands above it or, if there is more room, below."""

    name: str
    y: float
    dotted: bool = False


def line_chart(title: str, series: Sequence[Series], references: Sequence[Reference], *, x_label: str) -> Markup:
    """Return a chart of percentages (y, 0 to 100) against shares in [0, 1] (x)."""
    ticks = sorted({point.x for line in series for point in line.points})
    span = ticks[-1] - ticks[0] or 0.1
    low, high = ticks[0] - 0.3 * span, ticks[-1] + 0.06 * span  # room for the labels of the references

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (1 - value / 100) * (HEIGHT - TOP - BOTTOM)

    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    grid = [
        tag("g", _line(LEFT, right, y(v), class_="grid"), _text(LEFT - 7, y(v) + 4, percent(v / 100), "end"))
        for v in range(0, 101, 20)
    ]
    axis = [_text(x(t), bottom + 18, percent(t), "middle") for t in ticks]
    name = _text((LEFT + right) / 2, HEIGHT - 8, x_label, "middle")
    marks = [_reference(reference, y(reference.y), right) for reference in references]
    lines = [_series(line, x, y) for line in series]
    labels = _labels(series, right + 12, y)
    return _svg(title, WIDTH, HEIGHT, grid, axis, name, marks, lines, labels, class_="chart")


def marker(look: Look, x: float = 0, y: float = 0, r: float = 5) -> Markup:
    """Return the marker of a method at a place."""
    if look.marker == "circle":
        return tag("circle", cx=x, cy=y, r=r)
    if look.marker == "square":
        return tag("rect", x=x - r * 0.9, y=y - r * 0.9, width=r * 1.8, height=r * 1.8)
    corners = {
        "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    }[look.marker]
    return tag("polygon", points=" ".join(f"{number(x + a * r)},{number(y + b * r)}" for a, b in corners))


def name(method: str, look: Look) -> Markup:
    """Return the name of a method with its marker, for tables and legends."""
    mark = tag("svg", marker(look, 7, 7), viewBox="0 0 14 14", class_=f"mark c-{look.colour}", aria_hidden="true")
    return tag("span", mark, method, class_="name")


def layer_bars(
    title: str,
    layout: Sequence[Layer],
    layers: Mapping[str, float],
    groups: Mapping[str, float],
    target: float,
    look: Look,
) -> Markup:
    """Return one bar a layer, side by side by modality: its share of zeros. What has collapsed is red and flagged."""
    width, top, height = 340.0, 16.0, 92.0
    blocks = [(layer.group, _block(layer.name)) for layer in layout]
    gaps = [0.0] + [14.0 if a[0] != b[0] else 2.0 * (a != b) for a, b in pairwise(blocks)]
    step = (width - 6 - sum(gaps)) / len(layout)
    place: dict[str, float] = {}
    at = 3.0
    for layer, gap in zip(layout, gaps, strict=True):
        at += gap
        place[layer.name] = at
        at += step
    grounds, means = zip(
        *(
            _band(group, share, [place[m.name] for m in layout if m.group == group], step, top, height)
            for group, share in groups.items()
        ),
        strict=True,
    )
    bars = [_bar(name, place[name], step, share, top, height) for name, share in layers.items()]
    line = _line(0, width, top + height * (1 - target), class_="target")
    return _svg(title, width, top + height + 34, grounds, bars, means, line, class_=f"layers c-{look.colour}")


def _band(
    group: str, share: float, places: Sequence[float], step: float, top: float, height: float
) -> tuple[Markup, Markup]:
    """A modality: the ground under its bars with its name and share of zeros, and the line at this share."""
    left, right = places[0] - 2, places[-1] + step + 2
    middle, level = (left + right) / 2, top + height * (1 - share)
    gone = share >= COLLAPSED
    ground = tag(
        "g",
        tag("title", f"{group}: {percent(share, 1)} zeros{', collapsed' if gone else ''}"),
        tag("rect", x=left, y=top, width=right - left, height=height, class_="band"),
        _text(middle, top + height + 14, group, "middle", class_="group"),
        _text(middle, top + height + 28, f"{percent(share, 1)}{' gone' if gone else ''}", "middle", class_="share"),
        class_="gone" if gone else None,
    )
    return ground, tag("line", x1=left, x2=right, y1=level, y2=level, class_="mean")


def _bar(name: str, x: float, step: float, share: float, top: float, height: float) -> Markup:
    gone = share >= COLLAPSED
    thick = max(step * 0.82, 0.6)
    length = height * share
    flag = tag("path", d=f"M{number(x + thick / 2)} {number(top - 3)}l-4 -8h8z") if gone else None
    return tag(
        "g",
        tag("title", f"{name}: {percent(share, 1)} zeros{', collapsed' if gone else ''}"),
        tag("rect", x=x, y=top, width=step, height=height, class_="hit"),
        tag("rect", x=x, y=top + height - length, width=thick, height=length),
        flag,
        class_="bar gone" if gone else "bar",
    )


def _block(name: str) -> str:
    """The block of a layer: its name up to the first number."""
    match = re.match(r".*?\.\d+\.", name)
    return match[0] if match else ""


def _series(line: Series, x: Scale, y: Scale) -> Markup:
    path = " ".join(f"{number(x(p.x))},{number(y(p.y))}" for p in line.points)
    points = [
        tag(
            "g",
            tag("title", p.text),
            tag("line", x1=x(p.x), x2=x(p.x), y1=y(p.low), y2=y(p.high), class_="whisker"),
            marker(line.look, x(p.x), y(p.y)),
            tag("circle", cx=x(p.x), cy=y(p.y), r=12, class_="hit"),
            class_="point",
            tabindex="0",
        )
        for p in line.points
    ]
    return tag("g", tag("polyline", points=path), points, class_=f"series c-{line.look.colour}")


def _labels(series: Sequence[Series], x: float, y: Scale) -> list[Markup]:
    """Names of the lines at their right ends, moved apart where they would overlap."""
    ends = sorted((y(line.points[-1].y), i) for i, line in enumerate(series))
    places: list[float] = []
    for end, _ in ends:
        places.append(max(end, places[-1] + LINE) if places else end)
    below = places[-1] - (HEIGHT - BOTTOM) if places else 0
    for i in range(len(places) - 1, -1, -1):  # push back up what fell below the axis
        limit = places[i + 1] - LINE if i + 1 < len(places) else places[i] - max(below, 0)
        places[i] = min(places[i], limit)
    return [
        tag(
            "g",
            _text(x, place + 4, series[i].name, "start"),
            tag("path", d=f"M{number(x - 9)} {number(end)}L{number(x - 3)} {number(place)}", class_="lead"),
            class_=f"label c-{series[i].look.colour}",
        )
        for place, (end, i) in zip(places, ends, strict=True)
    ]


def _reference(reference: Reference, y: float, right: float) -> Markup:
    label = f"{reference.name} {number(reference.y, 1)}"
    above = y - 5 if y > TOP + LINE else y + LINE - 2
    return tag(
        "g",
        _line(LEFT, right, y),
        _text(LEFT + 4, above, label, "start"),
        class_="reference dotted" if reference.dotted else "reference",
    )


def _line(x1: float, x2: float, y: float, **attributes: str) -> Markup:
    return tag("line", x1=x1, x2=x2, y1=y, y2=y, **attributes)


def _text(x: float, y: float, content: str, anchor: str, **attributes: str) -> Markup:
    return tag("text", content, x=x, y=y, text_anchor=anchor, **attributes)


def _svg(title: str, width: float, height: float, *content: Content, class_: str) -> Markup:
    return tag(
        "svg",
        content,
        viewBox=f"0 0 {number(width)} {number(height)}",
        xmlns="http://www.w3.org/2000/svg",
        role="group",
        aria_label=title,
        class_=class_,
    )
