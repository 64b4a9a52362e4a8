"""HTML and SVG as values: escaped by default, well-formed XML, one file that loads nothing from anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

VOID = {"br", "hr", "img", "input", "link", "meta"}
SVG_LEAVES = {"circle", "line", "path", "polygon", "polyline", "rect"}


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


Content: TypeAlias = "str | Iterable[Content] | None"
"""What goes into an element: text (escaped), `Markup` (taken as it is), nothing, or several of these."""
Attribute: TypeAlias = str | int | float | bool | None


def tag(name: str, /, *content: Content, **attributes: Attribute) -> Markup:
    """Return an element.

    Args:
        name: such as ``p``.
        *content: what is inside.
        **attributes: ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``; None and False leave one out.

    >>> tag("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    opened = name + "".join(_attribute(key, value) for key, value in attributes.items())
    inside = join(content)
    if not inside and (name in VOID or name in SVG_LEAVES):
        return Markup(f"<{opened}/>")
    return Markup(f"<{opened}>{inside}</{name}>")


def join(content: Content) -> Markup:
    """Return content as one piece of markup."""
    if content is None or isinstance(content, Markup):
        return content or Markup()
    if isinstance(content, str):
        return Markup(escape(content))
    return Markup("".join(map(join, content)))


def number(value: float, digits: int = 2) -> str:
    """Write a number without trailing zeros: coordinates, sizes.

    >>> number(3.0), number(2.456), number(10.4, 0)
    ('3', '2.46', '10')
    """
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float, digits: int = 0) -> str:
    """Write a share in [0, 1] as percent; what is not everything never reads 100, what is something never 0.

    >>> percent(0.63), percent(0.9996, 1), percent(1.0)
    ('63\\xa0%', '99.9\\xa0%', '100\\xa0%')
    """
    step = 10.0**-digits
    value = share * 100
    if 0 < share < 1:
        value = min(max(value, step), 100 - step)
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}%"


def nominal(sparsity: float) -> str:
    """Write a sparsity as it was asked for, which keeps 97.5 and 98 % apart; measured shares take `percent`.

    >>> nominal(0.63), nominal(0.975)
    ('63\\xa0%', '97.5\\xa0%')
    """
    return f"{100 * sparsity:.4g}\N{NO-BREAK SPACE}%"


def seconds(value: float) -> str:
    """Write a duration.

    >>> seconds(0.123), seconds(61.2)
    ('0.12\\xa0s', '61\\xa0s')
    """
    return f"{value:.{0 if value >= 9.95 else 1 if value >= 0.95 else 2}f}\N{NO-BREAK SPACE}s"


def size(count: float) -> str:
    """Write a number of bytes.

    >>> size(482_113), size(23_100_000)
    ('482\\xa0kB', '23.1\\xa0MB')
    """
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            digits = 1 if unit == "MB" and count < 100 * scale else 0
            return f"{count / scale:.{digits}f}\N{NO-BREAK SPACE}{unit}"
    return f"{count:.0f}\N{NO-BREAK SPACE}B"


def section(heading: str, *content: Content, id: str, lead: Content = None) -> Markup:
    """Return a section with a heading and a line on how to read it."""
    intro = tag("p", lead, class_="lead") if lead else None
    return tag("section", tag("h2", heading, id=f"{id}-title"), intro, content, id=id, aria_labelledby=f"{id}-title")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: the heading.
        show: row -> what the cell shows.
        key: row -> what the cell sorts by, None to stand last always; without it the column does not sort.
        hint: what the column means.
        class_: class of its cells; ``number`` is right-aligned.
        over: a heading above, which neighbours share.
        tip: row -> what a cell says when it is pointed at.
    """

    title: Content
    show: Callable[..., Content]
    key: Callable[..., str | float | None] | None = None
    hint: str | None = None
    class_: str | None = None
    over: str | None = None
    tip: Callable[..., str | None] | None = None


def table(
    columns: Sequence[Column],
    rows: Iterable[object],
    *,
    caption: str,
    id: str | None = None,
    attributes: Callable[..., Mapping[str, Attribute]] = lambda row: {},
) -> Markup:
    """Return a table whose headings sort it (where scripts run); the first cell of a row names the row.

    ``attributes``: row -> attributes of its element.
    """

    def head(column: Column) -> Markup:
        title = tag("button", column.title, type="button") if column.key else column.title
        return tag("th", title, scope="col", title=column.hint, class_=column.class_)

    def cell(column: Column, row: object, first: bool) -> Markup:
        key = column.key(row) if column.key else None
        return tag(
            "th" if first else "td",
            column.show(row),
            scope="row" if first else None,
            class_=column.class_,
            data_key=number(key, 6) if isinstance(key, int | float) else key,
            data_tip=column.tip(row) if column.tip else None,
        )

    body = [
        tag("tr", [cell(column, row, i == 0) for i, column in enumerate(columns)], **attributes(row)) for row in rows
    ]
    shared = [
        tag("th", over, colspan=len(list(run)), scope="colgroup", class_="over" if over else None)
        for over, run in groupby(columns, lambda column: column.over)
    ]
    inside = (
        tag("caption", caption),
        tag(
            "thead",
            tag("tr", shared) if any(column.over for column in columns) else None,
            tag("tr", map(head, columns)),
        ),
        tag("tbody", body),
    )
    return tag("div", tag("table", inside, id=id), class_="scroll", tabindex="0", role="region", aria_label=caption)


def coloured(text: str, colours: Mapping[str, str]) -> Markup:
    """Return a text with some names in it in their colours of the palette.

    >>> coloured("a > b", {"b": "blue"})
    'a &gt; <span class="c-blue">b</span>'
    """
    if not colours:
        return join(text)
    names = "|".join(re.escape(name) for name in sorted(colours, key=len, reverse=True))
    pieces = re.split(rf"(?<![\w+-])({names})(?![\w+-])", text)
    return join([tag("span", p, class_=f"c-{colours[p]}") if i % 2 else p for i, p in enumerate(pieces)])


def definitions(pairs: Iterable[tuple[Content, Content]]) -> Markup:
    """Return a list of names and values."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs])


def page(title: str, *content: Content, description: str = "", styles: Sequence[str] = ("page.css",)) -> str:
    """Return a whole page: style (files beside this one) and script inside, nothing outside.

    >>> page("Report", tag("p", "Hello"))[:15]
    '<!doctype html>'
    """
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="description", content=description),
        tag("title", title),
        tag("style", [Markup(_asset(name)) for name in styles]),
    )
    toggle = tag("button", "Light / dark", type="button", id="theme", hidden=True)
    body = (tag("main", toggle, content), tag("script", Markup(_asset("page.js"))))
    return "<!doctype html>\n" + tag("html", tag("head", head), tag("body", body), lang="en") + "\n"


@cache
def _asset(name: str) -> str:
    return "\n" + Path(__file__).with_name(name).read_text(encoding="utf-8")


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    text = name if value is True else number(value) if isinstance(value, int | float) else value
    return f' {name}="{escape(text)}"'
