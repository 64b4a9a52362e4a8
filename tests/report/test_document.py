from __future__ import annotations

import pytest

from multiflow.report.charts import Look, join, tag
from multiflow.report.document import (
    Document,
    Group,
    Items,
    Mark,
    Pairs,
    Paragraph,
    Section,
    Verdict,
    inline,
    markdown,
    page,
)
from multiflow.report.tables import Column, Row, Table, TableCell

from .conftest import read_page, text_of

HOSTILE = "<script>alert(1)</script> `x` *y* [z](javascript:0) & \x1b[31m </style>"


def test_text_and_attributes_are_escaped():
    made = tag("p", "a < b & c", title='say "hi" & <go>')
    assert made == '<p title="say &#34;hi&#34; &amp; &lt;go&gt;">a &lt; b &amp; c</p>'


def test_markup_is_not_escaped_again():
    assert tag("p", tag("b", "x"), "&") == "<p><b>x</b>&amp;</p>"
    assert join(["<", tag("i"), None, [tag("i", "y")]]) == "&lt;<i></i><i>y</i>"


def test_attributes_left_out_and_bare():
    assert tag("button", "go", hidden=True, id=None, disabled=False) == '<button hidden="hidden">go</button>'
    assert tag("line", x1=1.0, stroke_width=0.256, class_="a") == '<line x1="1" stroke-width="0.26" class="a"/>'


def test_names_have_their_colours_and_nothing_else():
    said = inline(("chita++ beats chita, not chitarra: ", Mark("a < b", "gone")), {"chita": "blue", "chita++": "teal"})
    assert said == (
        '<span class="c-teal">chita++</span> beats <span class="c-blue">chita</span>, not chitarra: '
        '<span class="gone">a &lt; b</span>'
    )


@pytest.fixture
def everything():
    """A document with every kind of block, and a hostile text at every place."""
    table = Table(
        [Column(HOSTILE, over=HOSTILE, hint=HOSTILE)],
        [Row([TableCell(HOSTILE, HOSTILE, tip=HOSTILE)], HOSTILE)],
        HOSTILE,
    )
    blocks = [
        Paragraph((HOSTILE, Mark(HOSTILE, "code"))),
        Paragraph(HOSTILE, "h3"),
        Items([HOSTILE], HOSTILE),
        Pairs([(HOSTILE, HOSTILE)], HOSTILE, folded=True),
        Verdict("bad", HOSTILE, HOSTILE, [HOSTILE]),
        Group([table], "pair"),
        Group([table], under=HOSTILE),
    ]
    sections = [Section("one", HOSTILE, blocks, HOSTILE)]
    looks = {HOSTILE: Look("blue", "circle")}
    return Document(HOSTILE, HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], sections, looks, blocks[4], [("1", HOSTILE)])


def test_nothing_hostile_gets_through_the_page(everything):
    html = page(everything)
    root = read_page(html)
    assert "<script>alert" not in html
    assert "\x1b" not in html
    assert "<script>alert(1)</script> `x`" in text_of(root)


def test_nothing_hostile_gets_through_markdown(everything):
    said = markdown(everything)
    assert "<" not in said
    assert "\x1b" not in said
    assert "](" not in said.replace("\\](", "")
    assert said.count("\\`x\\` \\*y\\*") == said.count("alert")
    assert not [line for line in said.splitlines() if line.startswith("|") and line.count("|") - line.count("\\|") != 2]
