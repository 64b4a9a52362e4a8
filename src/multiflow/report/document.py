"""A report as a value: sections of texts, lists, tables and drawings, written as one HTML page and as Markdown.

What a report says is said once, in blocks; ``templates/page.html`` and `markdown` show them. Everything is escaped but
the drawings of ``charts.py``. The page is one file that loads nothing from anywhere, and well-formed XML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.report.charts import Look, join, pruner_name, tag
from multiflow.report.tables import BOLD, CLOSE, Markdown, Table, markdown_table, md
from multiflow.report.text import number

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
ELEMENTS = {"few": "sup", "code": "code", "best": "b", "strong": "b", "new": "u"}
"""Look of a piece of text -> its element; all others are a ``span``."""


@dataclass(frozen=True)
class Mark:
    """A piece of text with a look: ``best``, ``close``, ``few``, ``gone``, ``strong``, ``code`` or ``new``."""

    text: str
    look: str


Text: TypeAlias = "str | Mark | tuple[Text, ...]"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, or with ``look="h3"`` a heading inside a section."""

    kind: ClassVar[str] = "paragraph"
    text: Text
    look: str | None = None
    page_only: bool = False


@dataclass(frozen=True)
class Items:
    """A list, in which the names of pruners have their colours; with ``under`` one below a line that opens it."""

    kind: ClassVar[str] = "items"
    items: Sequence[Text]
    under: str | None = None
    open: bool = False


@dataclass(frozen=True)
class Pairs:
    """Names and values."""

    kind: ClassVar[str] = "pairs"
    pairs: Sequence[tuple[str, Text]]
    title: str | None = None
    folded: bool = False


@dataclass(frozen=True)
class Verdict:
    """A box with something that must be seen: ``good``, ``bad`` or ``mixed``."""

    kind: ClassVar[str] = "verdict"
    look: str
    title: str
    text: Text = ""
    items: Sequence[Text] = ()


@dataclass(frozen=True)
class Drawing:
    """A drawing and what it shows; a note stands beside the title."""

    drawing: Markup
    title: str | None = None
    note: Text = ""


@dataclass(frozen=True)
class Drawings:
    """Drawings side by side, which Markdown leaves out."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Drawing]  # the drawings
    look: str = "charts"  # class of the grid that they stand in
    pruner: str | None = None  # whose drawings they are


@dataclass(frozen=True)
class Group:
    """Blocks that belong together: side by side (``pair``), under a line that opens them, or as they are."""

    kind: ClassVar[str] = "group"
    blocks: Sequence[Block]
    look: str | None = None
    under: str | None = None


@dataclass(frozen=True)
class Markups:
    """Pieces of HTML, which Markdown leaves out."""

    kind: ClassVar[str] = "markups"
    pieces: Sequence[Markup]
    look: str | None = None


Block: TypeAlias = "Paragraph | Items | Pairs | Verdict | Drawings | Group | Markups | Table"


@dataclass(frozen=True)
class Section:
    """A section: its heading, how to read it, and what is in it.

    A long report folds its sections: ``folded`` is whether one is closed at first, None of one that is always open.
    """

    id: str
    heading: str
    blocks: Sequence[Block]
    lead: Text = ""
    folded: bool | None = None


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str  # of the page
    headline: str  # what was found, in a sentence or two
    lead: str  # what was done
    facts: Sequence[tuple[str, str]]  # a few large figures, each with what it is
    sections: Sequence[Section]  # in their order
    # name of a pruner -> its look; texts show the names in their colours
    looks: Mapping[str, Look] = field(default_factory=dict)
    first: Block | None = None  # what must be known before the figures
    tiers: Sequence[tuple[str, str]] = ()  # (number, text) of the buttons that choose the rows of tables

    @property
    def colours(self) -> dict[str, str]:
        """Name of a pruner -> its colour, but for the dense model."""
        return {pruner: look.colour for pruner, look in self.looks.items() if pruner != "dense"}


def page(document: Document) -> str:
    """Return a report as one HTML page."""
    return _environment().get_template("page.html").render(document=document)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("multiflow.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_control,
    )
    made.filters.update(inline=inline, number=number, pruner=pruner_name)
    return made


def _without_control(value: Any) -> Any:
    """Characters that no well-formed page may hold, such as those that colour a terminal, become a sign."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def inline(text: Text, colours: Mapping[str, str] | None = None) -> Markup:
    """Return text as markup, with some names in it in their colours.

    >>> str(inline(("a > b ", Mark("c", "best")), {"b": "blue"}))
    'a &gt; <span class="c-blue">b</span> <b class="best">c</b>'
    """
    if isinstance(text, tuple):
        return Markup("".join(inline(part, colours) for part in text))
    if isinstance(text, Mark):
        return tag(ELEMENTS.get(text.look.split()[0], "span"), _without_control(text.text), class_=text.look)
    said = str(_without_control(text))
    if not colours:
        return join(said)
    names = "|".join(re.escape(one) for one in sorted(colours, key=len, reverse=True))
    pieces = re.split(rf"(?<![\w+-])({names})(?![\w+-])", said)
    return join([tag("span", p, class_=f"c-{colours[p]}") if i % 2 else p for i, p in enumerate(pieces)])


def write_document(document: Document, path: Path) -> Path:
    """Write a report as HTML, or as Markdown where the name of the file ends in ``.md``; return its path."""
    if path.suffix not in (".html", ".htm", ".md"):
        raise MultiflowError(f"'{path}' is the name of no report; end it in .html or .md")
    return write_atomically(path, markdown(document) if path.suffix == ".md" else page(document))


def markdown(document: Document) -> str:
    """Return a report as Markdown: the same words and figures as the page, without its drawings."""
    parts: list[str] = [f"# {md(document.title)}"]
    if document.first is not None:
        parts += _markdown(document.first)
    parts += [md(document.headline), md(document.lead)]
    for section in document.sections:
        inside = [part for block in section.blocks for part in _markdown(block)]
        if any(inside):
            parts += [f"## {md(section.heading)}", _markdown_text(section.lead), *inside]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(block: Block) -> list[str]:
    match block:
        case Paragraph(text, look, page_only):
            return [] if page_only else [("### " if look == "h3" else "") + _markdown_text(text)]
        case Items(items, under):
            return [f"{md(under)}: {len(items)}" if under else "", _markdown_list(items)]
        case Pairs(pairs, title):
            title = f"**{md(title)}**" if title else ""
            return [title, _markdown_list([(Mark(key, "strong"), ": ", value) for key, value in pairs])]
        case Verdict(_, title, text, items):
            return [f"> **{md(title)}** {_markdown_text(text)}".rstrip(), _markdown_list(items)]
        case Group(blocks):
            return [part for one in blocks for part in _markdown(one)]
        case Table():
            return [] if block.page_only else [markdown_table(block)]
    return []


def _markdown_list(items: Sequence[Text]) -> str:
    return "\n".join(f"- {_markdown_text(item)}" for item in items)


def _markdown_text(text: Text) -> Markdown:
    if isinstance(text, tuple):
        return Markdown("".join(map(_markdown_text, text)))
    if not isinstance(text, Mark):
        return md(text)
    said, look = md(text.text), text.look.split()[0]
    marks = {"few": "[{}]", "strong": "**{}**", **dict.fromkeys(BOLD, "**{}**"), **dict.fromkeys(CLOSE, "_{}_")}
    return Markdown(marks.get(look, "{}").format(said))
