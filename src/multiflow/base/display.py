"""How values show themselves where a person looks: one short line in a console, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

BAR = 120  # pixels of a bar that says 100 %


def percent(share: float, digits: int = 1, *, short: bool = True, space: str = " ") -> str:
    """Write a share in [0, 1] as percent: the one writer of all. What is not everything never reads 100, what is
    something never 0.

    Args:
        share: from 0 to 1.
        digits: behind the point.
        short: whether digits that are all zero are left out.
        space: before the sign; pages take one that does not break.

    >>> percent(0.75), percent(0.63004), percent(0.99999), percent(1.0), percent(0.63, 2, short=False)
    ('75 %', '63 %', '99.9 %', '100 %', '63.00 %')
    """
    step = 10.0**-digits
    value = min(max(100 * share, step), 100 - step) if 0 < share < 1 else 100 * share
    text = f"{value:.{digits}f}"
    return f"{text.removesuffix('.' + '0' * digits) if short else text}{space}%"


def shares(values: Mapping[str, float]) -> str:
    """Write named shares in one line.

    >>> shares({"vision": 0.75, "text": 0.5})
    'vision 75 %, text 50 %'
    """
    return ", ".join(f"{name} {percent(value)}" for name, value in values.items())


def bar(value: float) -> Markup:
    """Draw a share as a bar with its number, in the text's own colour: it suits light and dark pages."""
    width = round(BAR * min(max(value, 0.0), 1.0))
    return Markup(
        '<span style="display:inline-block;width:{}px;height:.7em;border:1px solid;border-radius:2px;opacity:.75">'
        '<span style="display:block;width:{}px;height:100%;background:currentColor;opacity:.6"></span></span> {}'
    ).format(BAR, width, percent(value))


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str | Markup]], note: str = "") -> str:
    """Write a table as HTML that needs no style sheet; text is escaped, `Markup` taken as it is."""
    cells = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(escape(cell)) for cell in row))
        for row in rows
    )
    headings = Markup("").join(Markup("<th>{}</th>").format(name) for name in head)
    below = Markup("<div><small>{}</small></div>").format(note) if note else ""
    return Markup("<div><b>{}</b><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>{}</div>").format(
        title, headings, cells, below
    )
