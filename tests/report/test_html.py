from __future__ import annotations

import pytest

from multiflow.report.html import (
    Column,
    Markup,
    definitions,
    join,
    nominal,
    number,
    page,
    percent,
    seconds,
    size,
    table,
    tag,
)


def test_text_and_attributes_are_escaped():
    made = tag("p", "a < b & c", title='say "hi" & <go>')
    assert made == '<p title="say &quot;hi&quot; &amp; &lt;go&gt;">a &lt; b &amp; c</p>'


def test_markup_is_not_escaped_again():
    assert tag("p", tag("b", "x"), "&") == "<p><b>x</b>&amp;</p>"
    assert join(["<", Markup("<br/>"), None, [tag("i", "y")]]) == "&lt;<br/><i>y</i>"


def test_attributes_left_out_and_bare():
    assert tag("button", "go", hidden=True, id=None, disabled=False) == '<button hidden="hidden">go</button>'
    assert tag("line", x1=1.0, stroke_width=0.256, class_="a") == '<line x1="1" stroke-width="0.26" class="a"/>'


def test_only_void_elements_close_themselves():
    assert tag("span") == "<span></span>"
    assert tag("br") == "<br/>"


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [(0, 0, "0"), (1, 1, "100.0"), (0.996, 0, "99"), (0.00001, 1, "0.1"), (0.63, 0, "63"), (0.6349, 1, "63.5")],
)
def test_percent_never_rounds_to_nothing_or_to_everything(share, digits, text):
    assert percent(share, digits) == f"{text}\N{NO-BREAK SPACE}%"


def test_numbers_with_units():
    assert [number(v) for v in (0.5, 100, 1 / 3)] == ["0.5", "100", "0.33"]
    assert [number(v, 0) for v in (10.4, 0.3, 30.0)] == ["10", "0", "30"]
    assert [nominal(v) for v in (0.975, 0.98)] == ["97.5\N{NO-BREAK SPACE}%", "98\N{NO-BREAK SPACE}%"]
    assert [seconds(v).split("\N{NO-BREAK SPACE}")[0] for v in (0.05, 9.94, 9.96, 130)] == ["0.05", "9.9", "10", "130"]
    assert [size(v).replace("\N{NO-BREAK SPACE}", " ") for v in (12, 1_234, 22_900_000)] == ["12 B", "1 kB", "22.9 MB"]


def test_a_table_names_its_rows_and_sorts_by_keys():
    columns = (
        Column("name", lambda r: r[0], lambda r: r[0]),
        Column("value", lambda r: f"{r[1]:.0f}", lambda r: r[1], hint="how many", class_="number"),
        Column("note", lambda r: "-"),
        Column("sometimes", lambda r: "-", lambda r: r[1] if r[1] > 2 else None),
    )
    made = table(columns, [("a", 2.5), ("b", 1.0)], caption="things")
    assert made.count('<td data-key="2.5">-</td>') == 1
    assert made.count("<td>-</td>") == 3  # no key: stands last
    assert '<th scope="row" data-key="a">a</th>' in made
    assert '<td class="number" data-key="2.5">2</td>' in made
    assert made.count("<button") == 3  # a column without a key does not sort
    assert "<caption>things</caption>" in made


def test_definitions():
    assert definitions([("seed", "1 < 2")]) == "<dl><div><dt>seed</dt><dd>1 &lt; 2</dd></div></dl>"


def test_a_page_has_its_style_and_script_inside():
    made = page("A & B", tag("p", "hello"))
    assert made.startswith("<!doctype html>\n<html lang")
    assert "<title>A &amp; B</title>" in made
    assert "prefers-color-scheme" in made
    assert "--red:" in made
    assert "<link" not in made
