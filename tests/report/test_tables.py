from __future__ import annotations

import csv
import io

import pytest

from multiflow.report.document import Document, Section, page
from multiflow.report.tables import (
    Column,
    Row,
    Table,
    TableCell,
    csv_text,
    latex_table,
    markdown_table,
    md,
    plain_table,
    tex,
)

from .conftest import read_page, text_of

NAMES = [
    "a|b",
    "<script>x</script>",
    "# one",
    "- two",
    "1. three",
    "*b* _i_",
    "`c`",
    "[l](u)",
    "&lt;",
    "a_b",
    "\\|",
    "x\ny",
]


@pytest.fixture
def table():
    head = [
        Column("pruner", class_="first"),
        *(Column(t, "vqa (accuracy)", class_="number figure", after="rest") for t in ("63 %", "90 %")),
    ]
    rows = [
        Row([TableCell("dense", "dense"), *[TableCell("90.0", 90.0, small="±1.5")] * 2], class_="dense"),
        Row(
            [
                TableCell("mine_1", "mine_1"),
                TableCell("80.0", 80.0, "best", "±0.5"),
                TableCell("50.5", 50.5, "close", seeds=1),
            ],
            "mine_1",
            "1 2",
        ),
        Row([TableCell("other", "other"), TableCell("failed", look="failed"), TableCell("10.0", 10.0, tip="a < b")]),
    ]
    return Table(head, rows, "x & y", "figures")


def test_as_markdown(table):
    assert markdown_table(table).splitlines() == [
        "| pruner | vqa (accuracy) 63 % | vqa (accuracy) 90 % |",
        "| --- | ---: | ---: |",
        "| dense | 90.0 ± 1.5 | 90.0 ± 1.5 |",
        "| mine_1 | **80.0** ± 0.5 | _50.5_ [1] |",
        "| other | failed | 10.0 |",
    ]
    assert markdown_table(Table([Column("a")], [])) == ""


def test_as_latex(table):
    lines = latex_table(table).splitlines()
    assert r"\caption{x \& y}" in lines
    assert r"\begin{tabular}{lrr}" in lines
    assert r" & \multicolumn{2}{c}{vqa (accuracy)} \\" in lines
    assert r"\cmidrule(lr){2-3}" in lines
    assert r"dense & \multicolumn{2}{c}{90.0{\scriptsize$\,\pm\,$1.5}} \\" in lines
    assert r"mine\_1 & \textbf{80.0}{\scriptsize$\,\pm\,$0.5} & \underline{50.5}$^{(1)}$ \\" in lines
    assert r"other & -- & 10.0 \\" in lines


def test_as_csv(table):
    assert csv_text(table).splitlines() == ["pruner,63 %,90 %", "dense,90,90", "mine_1,80,50.5", "other,,10"]


def test_as_html(table):
    root = read_page(page(Document("t", "h", "l", [], [Section("s", "S", [table])])))
    (made,) = root.iter("table")
    over, heads = made.findall("thead/tr")
    assert [(e.get("colspan"), text_of(e)) for e in over] == [("1", ""), ("2", "vqa (accuracy)")]
    assert [e.find("button") is not None for e in heads] == [True] * 3
    dense, mine, other = made.findall("tbody/tr")
    assert (mine.get("data-name"), mine.get("data-tiers"), dense.get("class")) == ("mine_1", "1 2", "dense")
    assert [(e.tag, e.get("data-key")) for e in mine] == [("th", "mine_1"), ("td", "80"), ("td", "50.5")]
    assert [text_of(e) for e in mine.iter("sup")] == ["1"]
    assert [e.get("class") for e in mine.iter("span")] == ["best", "rest", "close", "rest"]
    assert [e.get("data-key") for e in other] == ["other", None, "10"]  # without a key: stands last
    assert other[2].get("data-tip") == "a < b"


def test_a_column_without_keys_does_not_sort():
    table = Table([Column("a"), Column("b")], [Row([TableCell("x", "x"), TableCell("y")])])
    assert table.sorts == [True, False]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_through_every_output(name):
    table = Table([Column("name"), Column("over", "over")], [Row([TableCell(name, name), TableCell(name, name)])])
    root = read_page(page(Document("t", "h", "l", [], [Section("s", "S", [table])])))
    (row,) = root.findall(".//tbody/tr")
    assert [text_of(e) for e in row] == [" ".join(name.split())] * 2
    _, _, line = markdown_table(table).splitlines()
    assert "<" not in line
    assert line.count("|") - line.count("\\|") == 3
    assert list(csv.reader(io.StringIO(csv_text(table)))) == [["name", "over"], [name, name]]
    made = latex_table(table)
    assert made.count("\n") == latex_table(plain_table(["name"], [["x"]])).count("\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("e_f g", "e_f g"),
        ("_f_", r"\_f\_"),
        ("AT&T &copy;", "AT&T &amp;copy;"),
        ("# x", r"\# x"),
        ("-0.5", "-0.5"),
        ("--", r"\--"),
        ("12. x", r"12\. x"),
        ("a\nb", "a b"),
        ("~x~", r"\~x\~"),
    ],
)
def test_markdown_shows_text_as_it_is(text, said):
    assert md(text) == said
    assert md(md(text)) == said


def test_latex_prints_text_as_it_is():
    assert (
        tex("\\~^{}$<|>")
        == r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\$\textless{}\textbar{}\textgreater{}"
    )
