"""Bars of layers as inline SVG: where the zeros of one pruning went, one bar a layer, side by side by group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

from markupsafe import Markup

from multiflow.base.types import Layer
from multiflow.report.charts import COLLAPSED, Look, segment, svg, tag, words
from multiflow.report.text import number, percent


def layer_bars(
    title: str,
    layout: Sequence[Layer],
    layers: Mapping[str, float],
    groups: Mapping[str, float],
    target: float,
    look: Look,
) -> Markup:
    """Return one bar a layer, side by side by group: its share of zeros. What has collapsed is red and flagged.

    Neighbours in a group with the same share share a mark, which keeps pages of many drawings small.
    """
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
    runs = groupby(layout, lambda layer: (layer.group, percent(layers[layer.name], 1), layers[layer.name] >= COLLAPSED))
    bars = [
        _bars([layer.name for layer in run], place, step, layers, top + height, height)
        for run in (list(r) for _, r in runs)
    ]
    drawn = tag("g", bars, class_="bars", stroke_width=max(step * 0.82, 0.6))
    goal = segment(0, width, top + height * (1 - target), class_="target")
    return svg(title, width, top + height + 34, grounds, drawn, means, goal, class_=f"layers c-{look.colour}")


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


def _bars(
    names: Sequence[str],
    place: Mapping[str, float],
    step: float,
    layers: Mapping[str, float],
    foot: float,
    height: float,
) -> Markup:
    """The bars of neighbours whose share of zeros reads the same."""
    gone = layers[names[0]] >= COLLAPSED
    middles = [place[name] + step / 2 for name in names]
    path = "".join(
        f"M{number(x)} {number(foot)}v{number(-height * layers[name])}" for x, name in zip(middles, names, strict=True)
    )
    which = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} layers"
    said = f"{which}: {percent(layers[names[0]], 1)} zeros{', collapsed' if gone else ''}"
    flags = "".join(f"M{number(x)} {number(foot - height - 3)}l-4 -8h8z" for x in middles)
    bar = tag("path", tag("title", said) if not gone else None, d=path, class_="bar")
    return tag("g", tag("title", said), bar, tag("path", d=flags, class_="flag"), class_="gone") if gone else bar


def _block(name: str) -> str:
    """The block of a layer: its name up to the first number."""
    match = re.match(r".*?\.\d+\.", name)
    return match[0] if match else ""
