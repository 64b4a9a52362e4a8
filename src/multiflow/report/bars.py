"""Bars as inline SVG: the share of zeros in every layer, side by side by group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from multiflow.base.types import Layer
from multiflow.report.html import Markup, number, percent, tag
from multiflow.report.palette import Look
from multiflow.report.svg import segment, svg, words
from multiflow.report.values import COLLAPSED


def layer_bars(
    title: str,
    layout: Sequence[Layer],
    layers: Mapping[str, float],
    groups: Mapping[str, float],
    target: float,
    look: Look,
) -> Markup:
    """Return one bar a layer, side by side by group: its share of zeros. What has collapsed is red and flagged."""
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
    goal = segment(0, width, top + height * (1 - target), class_="target")
    return svg(title, width, top + height + 34, grounds, bars, means, goal, class_=f"layers c-{look.colour}")


def _band(
    group: str, share: float, places: Sequence[float], step: float, top: float, height: float
) -> tuple[Markup, Markup]:
    """A group: the ground under its bars with its name and share of zeros, and the line at this share."""
    left, right = places[0] - 2, places[-1] + step + 2
    middle, level = (left + right) / 2, top + height * (1 - share)
    gone = share >= COLLAPSED
    ground = tag(
        "g",
        tag("title", f"{group}: {percent(share, 1)} zeros{', collapsed' if gone else ''}"),
        tag("rect", x=left, y=top, width=right - left, height=height, class_="band"),
        words(middle, top + height + 14, group, "middle", class_="group"),
        words(middle, top + height + 28, f"{percent(share, 1)}{' gone' if gone else ''}", "middle", class_="share"),
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
