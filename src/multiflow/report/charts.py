"""Charts as inline SVG: lines with intervals, differences; and the fixed look of every pruner.

Colours come from the page (``currentColor`` and classes), so that the charts follow its light and dark theme. Every
mark carries its value in a ``<title>``: hover, keyboard and screen readers find it there. Nothing is stretched: a
drawing scales with its column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import NamedTuple, Protocol, TypeAlias

from markupsafe import Markup, escape

from multiflow.report.text import nominal, number, percent, signed

COLOURS = (
    "blue", "amber", "purple", "green", "teal", "brown", "indigo", "olive", "rose", "slate", "violet", "forest", "navy",
    "orchid", "copper", "cyan", "plum", "moss", "wine", "khaki", "steel", "sand", "ink", "grey",
)  # fmt: skip
MARKERS = ("circle", "square", "triangle", "diamond")
"""So many colours are told apart by nobody at a glance: a name stands at the end of every line, and neighbours in
this order have markers that differ. Red is not among them: it means collapse."""
COLLAPSED = 0.99
"""Share of zeros from which a layer or a group counts as collapsed: nothing much passes it."""
LEAVES = {"circle", "line", "path", "polygon", "polyline", "rect"}


class Look(NamedTuple):
    """How a pruner is drawn: names of a colour of ``page.css`` and of a marker."""

    colour: str
    marker: str


DENSE_LOOK = Look("ink", "circle")
LOOKS = {
    "multiflow": Look("blue", "circle"),
    "magnitude-modality": Look("amber", "square"),
    "magnitude": Look("purple", "triangle"),
    "random": Look("grey", "diamond"),
    "wanda": Look("green", "circle"),
    "ria": Look("teal", "square"),
    "lamp": Look("brown", "circle"),
    "l2": Look("copper", "diamond"),
    "magnitude-layer": Look("olive", "triangle"),
    "snip": Look("forest", "triangle"),
    "itersnip": Look("moss", "diamond"),
    "chita": Look("cyan", "circle"),
    "chita++": Look("slate", "diamond"),
    "tamt": Look("orchid", "square"),
    "lobs": Look("violet", "circle"),
    "multiflow-refit": Look("indigo", "square"),
    "sparsegpt": Look("navy", "square"),
    "alps": Look("rose", "circle"),
    "admm": Look("wine", "diamond"),
    "exchange": Look("plum", "diamond"),
    "dsnot": Look("khaki", "square"),
}


def looks(pruners: Iterable[str]) -> dict[str, Look]:
    """Return pruner -> look: each has a colour of its own on a page as long as there are colours, then a marker.

    A pruner keeps its fixed look unless another one before it on the page has the colour.

    >>> looks(["multiflow", "mine", "multiflow-refit"])["multiflow"]
    Look(colour='blue', marker='circle')
    >>> len({look.colour for look in looks(["wanda", "sparsegpt", "snip"]).values()})
    3
    """
    names = list(dict.fromkeys(pruners))
    found: dict[str, Look] = {}
    for name in names:
        if name in LOOKS and LOOKS[name].colour not in {look.colour for look in found.values()}:
            found[name] = LOOKS[name]
    kept = {look.colour for look in found.values()} | {DENSE_LOOK.colour, LOOKS["random"].colour}
    free = [colour for colour in COLOURS if colour not in kept]
    for name in names:
        if name in found:
            continue
        if free:
            marker = LOOKS[name].marker if name in LOOKS else MARKERS[len(found) % len(MARKERS)]
            found[name] = Look(free.pop(0), marker)
            continue
        used = {DENSE_LOOK, *found.values()}
        spare = (Look(c, m) for m in MARKERS for c in COLOURS)
        fixed = LOOKS.get(name)
        found[name] = fixed if fixed and fixed not in used else next((s for s in spare if s not in used), DENSE_LOOK)
    return {name: found[name] for name in names}


Content: TypeAlias = "str | Iterable[Content] | None"
"""What goes into an element: text (escaped), `Markup` (taken as it is), nothing, or several of these."""
Attribute: TypeAlias = str | int | float | bool | None


def tag(name: str, /, *content: Content, **attributes: Attribute) -> Markup:
    """Return an element of SVG or HTML.

    Args:
        name: such as ``text``.
        *content: what is inside.
        **attributes: ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``; None and False leave one out.

    >>> str(tag("text", "1 < 2", class_="note"))
    '<text class="note">1 &lt; 2</text>'
    """
    opened = name + "".join(_attribute(key, value) for key, value in attributes.items())
    inside = join(content)
    if not inside and name in LEAVES:
        return Markup(f"<{opened}/>")
    return Markup(f"<{opened}>{inside}</{name}>")


def join(content: Content) -> Markup:
    if content is None or isinstance(content, str):
        return escape(content or "")
    return Markup("".join(map(join, content)))


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    text = name if value is True else number(value) if isinstance(value, int | float) else value
    return f' {name}="{escape(text)}"'


WIDTH, HEIGHT = 550, 330  # of a line chart
LEFT, RIGHT, TOP, BOTTOM = 50, 158, 14, 46  # its margins; labels of lines stand on the right
LINE = 15  # height of a line of text

Scale: TypeAlias = Callable[[float], float]
"""Value -> place in the picture."""
PERCENTS = tuple((float(v), percent(v / 100)) for v in range(0, 101, 20))


class Interval(Protocol):
    """A difference with its 95 % interval, and the seeds that it rests on."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def seeds(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Axis:
    """An axis: what it measures, where it begins and ends, and its ticks with their texts."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def scale(self, start: float, end: float) -> Scale:
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
    """A line of a chart; a quiet one is thin, without whiskers until it is pointed at, and its name is not bold."""

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
    """Return a chart, as high as the names of its lines need; those that are quiet lie below the others.

    ``joined``: points make lines.
    """
    height = max(HEIGHT, TOP + LINE * (len(series) + 1) + BOTTOM)
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    x, y = x_axis.scale(LEFT, right), y_axis.scale(bottom, TOP)
    grid = [
        tag("g", segment(LEFT, right, y(v), class_="grid"), words(LEFT - 7, y(v) + 4, text, "end"))
        for v, text in y_axis.ticks
    ]
    axis = [words(x(v), bottom + 18, text, "middle") for v, text in x_axis.ticks]
    name = words((LEFT + right) / 2, height - 8, x_axis.label, "middle")
    marks = [_reference(reference, y(reference.y), right) for reference in references]
    lines = [_series(line, x, y, joined) for line in sorted(series, key=lambda line: not line.quiet)]
    labels = _labels(series, right + 12, bottom, y, x if not joined else None)
    return svg(title, WIDTH, height, grid, axis, name, marks, lines, labels, class_="chart")


def marker(look: Look, x: float = 0, y: float = 0, r: float = 5) -> Markup:
    if look.marker == "circle":
        return tag("circle", cx=x, cy=y, r=r)
    if look.marker == "square":
        return tag("rect", x=x - r * 0.9, y=y - r * 0.9, width=r * 1.8, height=r * 1.8)
    corners = {
        "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    }[look.marker]
    return tag("polygon", points=" ".join(f"{number(x + a * r)},{number(y + b * r)}" for a, b in corners))


def pruner_name(pruner: str, look: Look) -> Markup:
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


def _labels(series: Sequence[Series], at: float, bottom: float, y: Scale, x: Scale | None) -> list[Markup]:
    """Names of the lines in a column, moved apart where they would overlap; with ``x``, led to the points."""
    ends = sorted((y(line.points[-1].y), i) for i, line in enumerate(series))
    places: list[float] = []
    for end, _ in ends:
        places.append(max(end, places[-1] + LINE) if places else end)
    below = places[-1] - bottom if places else 0
    for i in range(len(places) - 1, -1, -1):  # push back up what fell below the axis
        limit = places[i + 1] - LINE if i + 1 < len(places) else places[i] - max(below, 0)
        places[i] = min(places[i], limit)
    made = []
    for place, (end, i) in zip(places, ends, strict=True):
        start = x(series[i].points[-1].x) + 7 if x else at - 9
        lead = tag("path", d=f"M{number(start)} {number(end)}L{number(at - 3)} {number(place)}", class_="lead")
        name = words(at, place + 4, series[i].name, "start")
        look = f"label{' quiet' if series[i].quiet else ''} c-{series[i].look.colour}"
        made.append(tag("g", name, lead, class_=look, data_name=series[i].name))
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
    return tag("line", x1=x1, x2=x2, y1=y, y2=y, **attributes)


def words(x: float, y: float, content: str, anchor: str, **attributes: str) -> Markup:
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


FOREST, NAMES, VALUES = 380.0, 142.0, 44.0  # names stand on the left, values on the right
ROW, ABOVE, BELOW = 17.0, 6.0, 24.0


def forest(
    title: str, found: Mapping[str, Interval], styles: Mapping[str, Look], first: str, tips: Mapping[str, str]
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
    x = axis.scale(NAMES, FOREST - VALUES)
    height = ABOVE + ROW * len(names)
    grid = [
        tag("g", _vertical(x(v), ABOVE, height, "grid"), words(x(v), height + 15, _tick(v), "middle"))
        for v, _ in axis.ticks
    ]
    lines = [
        _line(name, found[name], styles[name], ABOVE + ROW * (i + 0.5), x, (axis.low, axis.high), tips[name])
        for i, name in enumerate(names)
    ]
    zero = tag("g", _vertical(x(0.0), ABOVE - 4, height, None), class_="reference")
    return svg(f"{title}: difference to {first}", FOREST, height + BELOW, grid, zero, lines, class_="chart forest")


def _range(found: list[Interval]) -> tuple[float, float]:
    """What the axis holds: the intervals of the upper two thirds, and zero; the rest may be far off."""
    upper = found[: ceil(len(found) * 2 / 3)]
    low, high = min(0.0, *(d.low for d in upper)), max(0.0, *(d.high for d in upper))
    return (low, high) if low < high else (-1.0, 1.0)


def _line(name: str, found: Interval, look: Look, y: float, x: Scale, ends: tuple[float, float], tip: str) -> Markup:
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
        tag("rect", x=0, y=y - ROW / 2, width=FOREST, height=ROW, class_="hit"),
        words(NAMES - 10, y + 4, name, "end", class_="who"),
        tag("g", drawn, tag("g", mark, class_=f"point{alone}"), class_="series"),
        words(FOREST, y + 4, signed(found.value), "end", class_="value"),
        class_=f"line c-{look.colour}",
        data_name=name,
    )


def _tick(value: float) -> str:
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _vertical(x: float, top: float, bottom: float, class_: str | None) -> Markup:
    return tag("line", x1=x, x2=x, y1=top, y2=bottom, class_=class_)
