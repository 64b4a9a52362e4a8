"""How values show themselves where a person looks: one short line in a console, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

BAR = 120  # pixels of a bar that says 100 %


def share(value: float) -> str:
    """Write a share in percent, and never as all or nothing where it is not.

    >>> share(0.75), share(0.63004), share(0.99999), share(1.0)
    ('75 %', '63 %', '99.9 %', '100 %')
    """
    percent = 100 * value
    if 0 < percent < 0.1 or 99.9 < percent < 100:
        return "0.1 %" if percent < 1 else "99.9 %"
    return f"{percent:.1f}".removesuffix(".0") + " %"


def shares(values: Mapping[str, float]) -> str:
    """Write named shares in one line.

    >>> shares({"vision": 0.75, "text": 0.5})
    'vision 75 %, text 50 %'
    """
    return ", ".join(f"{name} {share(value)}" for name, value in values.items())


def bar(value: float) -> Markup:
    """Draw a share as a bar with its number, in the text's own colour: it suits light and dark pages."""
    width = round(BAR * min(max(value, 0.0), 1.0))
    return Markup(
        '<span style="display:inline-block;width:{}px;height:.7em;border:1px solid;border-radius:2px;opacity:.75">'
        '<span style="display:block;width:{}px;height:100%;background:currentColor;opacity:.6"></span></span> {}'
    ).format(BAR, width, share(value))


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
