from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from multiflow.report.demo import demo_page
from multiflow.report.html import SVG_LEAVES, VOID
from multiflow.report.words import headline

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def html(make_demo):
    return demo_page(make_demo())


@pytest.fixture
def root(html):
    return ElementTree.fromstring(html.removeprefix("<!doctype html>"))


def text_of(element):
    return re.sub(r"\s+", " ", "".join(element.itertext())).strip()


def section(root, name):
    return next(s for s in root.iter("section") if s.get("id") == name)


def test_the_page_is_well_formed_and_its_ids_are_unique(root):
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert all(s.get("aria-labelledby") in ids for s in root.iter("section"))
    assert root.get("lang") == "en"


def test_only_elements_that_may_close_themselves_do(html):
    assert set(re.findall(r"<(\w+)[^<>]*/>", html)) <= VOID | SVG_LEAVES


def test_the_page_loads_nothing(html, root):
    assert set(re.findall(r"\w+://[^\s\"'<>]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|<link|<iframe|import\(|fetch\(|XMLHttpRequest|srcset", html)
    for element in root.iter():
        assert element.get("src", "data:").startswith("data:image/png;base64,") or element.tag != "img"
        assert element.get("href") is None


def test_captions_cannot_break_out(html):
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert html.count("<script>") == 1


def test_the_headline_stands_on_top(make_demo, root):
    assert text_of(root.find(".//h1")) == text_of(ElementTree.fromstring(f"<p>{headline(make_demo())}</p>"))
    assert [s.get("class") for s in root.find(".//h1")] == ["c-blue", "c-purple", "c-grey"]


def test_the_table_has_a_row_for_every_model(root):
    rows = section(root, "numbers").findall(".//tbody/tr")
    cells = [[text_of(cell) for cell in row] for row in rows]
    assert [row[0] for row in cells] == ["dense", *["multiflow", "magnitude", "random"] * 2]
    assert cells[0][2:4] == ["92.5", "90.5"]
    assert cells[4] == ["multiflow", "90.0 %", "40.0", "36.0", "90.0 %", "90.0 %", "90.0 %", "1.25", "2 kB"]
    keys = [cell.get("data-key") for cell in rows[4]]
    assert keys[:4] == ["multiflow", "0.9", "40", "36"]
    bold = [text_of(row[0]) for row in rows if row.find(".//b") is not None]
    assert bold == ["multiflow", "multiflow"]


def test_the_curves_have_all_methods_the_dense_model_and_chance(root):
    charts = section(root, "quality").findall(f".//{SVG}svg")
    assert len(charts) == 2
    for chart in charts:
        said = {text.text for text in chart.iter(f"{SVG}text")}
        assert {"multiflow", "magnitude", "random", "chance 0.5"} <= said
        assert any(text.startswith("dense 9") for text in said)
    points = [[title.text for title in chart.iter(f"{SVG}title")] for chart in charts]
    assert [len(texts) for texts in points] == [6, 6]
    for texts, value, interval in zip(points, ("9.0", "7.0"), ("5.8 to 13.8", "4.2 to 11.4"), strict=True):
        assert f"magnitude, 90\N{NO-BREAK SPACE}% zeros: {value} (95 % interval {interval})" in texts


def test_a_collapse_is_said_in_words_and_marked_in_table_and_picture(root):
    zeros = section(root, "zeros")
    assert "magnitude: all of text, 2 of 5 layers at 90 %" in text_of(zeros)
    panels = [svg for svg in zeros.iter(f"{SVG}svg") if svg.get("aria-label")]
    gone = {p.get("aria-label"): sum("gone" in g.get("class", "") for g in p.iter(f"{SVG}g")) for p in panels}
    assert len(gone) == 6
    assert {label.split(":")[0].replace("\N{NO-BREAK SPACE}", " ") for label, n in gone.items() if n} == {
        "magnitude at 90 %"
    }
    assert max(gone.values()) == 3  # two layers and the modality
    marked = section(root, "numbers").findall(".//span[@class='gone']")
    assert [text_of(cell) for cell in marked] == ["99.5 %"]


def test_no_collapse_is_said_too(make_demo, make_row):
    calm = demo_page(make_demo((make_row("multiflow", 0.9, 50, 50), make_row("random", 0.9, 1, 1)), examples=()))
    assert "Nothing collapsed" in calm
    assert " collapsed</title>" not in calm


def test_the_section_of_examples_goes_where_there_are_none(make_demo, html):
    assert 'id="examples"' in html
    assert 'id="examples"' not in demo_page(make_demo(examples=()))


def test_how_it_was_made(make_demo, root):
    said = text_of(section(root, "making"))
    assert "multiflow demo --seed 5" in said
    assert "Time: 40 s" in said
    assert "load 1.0 s, calibrate 2.0 s, evaluate 37 s" in said
    assert "torch" in said
    assert "mask-0.63.safetensors, mask-0.9.safetensors: 5 kB" in said
    assert "demo.json" in said
    assert "Guessing scores 0.5 %." in text_of(section(root, "reading"))


def test_a_method_of_the_users_own_may_have_any_name(make_demo, make_row):
    rows = (
        make_row("a<b> & 'c'", 0.9, 50, 50),
        make_row("magnitude", 0.9, 1, 1),
        make_row("magnitude-layer", 0.9, 2, 2),
    )
    page = demo_page(make_demo(rows, examples=()))
    root = ElementTree.fromstring(page.removeprefix("<!doctype html>"))
    spans = [text_of(span) for span in root.find(".//h1")]
    assert spans == ["a<b> & 'c'", "magnitude-layer", "magnitude"]
