from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from multiflow.base.files import plain
from multiflow.bench.demo import Demo, Example, Find, most_telling, too_close
from multiflow.report.charts import DENSE_LOOK, looks
from multiflow.report.demo import demo_document, demo_spreads, demo_values, example_card, headline, mark_changes, wilson
from multiflow.report.document import Mark, page

from .conftest import ROWS, make_demo, make_row, read_page, section, text_of

NBSP = "\N{NO-BREAK SPACE}"
SVG = "{http://www.w3.org/2000/svg}"


def report(demo: Demo) -> str:
    return page(demo_document(demo))


@pytest.fixture
def html():
    return report(make_demo())


@pytest.fixture
def root(html):
    return read_page(html)


def test_captions_cannot_break_out(html):
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_the_headline_stands_on_top(root):
    assert text_of(root.find(".//h1")) == " ".join(headline(make_demo()).split())
    assert [s.get("class") for s in root.find(".//h1")] == ["c-blue", "c-purple", "c-grey"]


def test_the_table_has_a_row_for_every_model(root):
    rows = section(root, "numbers").findall(".//tbody/tr")
    cells = [[text_of(cell) for cell in row] for row in rows]
    assert [row[0] for row in cells] == ["dense", *["multiflow", "magnitude", "random"] * 2]
    assert cells[0][2:4] == ["92.5", "90.5"]
    assert cells[4] == ["multiflow", "90.0 %", "40.0", "36.0", "90.0 %", "90.0 %", "90.0 %", "1.25", "2 kB"]
    keys = [cell.get("data-key") for cell in rows[4]]
    assert keys[:4] == ["multiflow", "0.9", "40", "36"]
    bold = [text_of(row[0]) for row in rows if row.find(".//span[@class='best']") is not None]
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
    assert "two layers of 5 (vision.layers.0.q, text.layer.0.q)" in text_of(zeros)
    panels = [svg for svg in zeros.iter(f"{SVG}svg") if svg.get("aria-label")]
    gone = {p.get("aria-label"): sum("gone" in g.get("class", "") for g in p.iter(f"{SVG}g")) for p in panels}
    assert len(gone) == 6
    assert {label.split(":")[0].replace(NBSP, " ") for label, n in gone.items() if n} == {
        "magnitude on xvlm-shapes at 90 %"
    }
    assert max(gone.values()) == 3  # two layers and the modality
    marked = section(root, "numbers").findall(".//span[@class='gone']")
    assert [text_of(cell) for cell in marked] == ["99.5 %"]


def test_no_collapse_is_said_too():
    calm = report(make_demo((make_row("multiflow", 0.9, 50, 50), make_row("random", 0.9, 1, 1)), examples=()))
    assert "Nothing collapsed" in calm
    assert " collapsed</title>" not in calm


def test_the_section_of_examples_goes_where_there_are_none(html):
    assert 'id="examples"' in html
    assert 'id="examples"' not in report(make_demo(examples=()))


def test_how_it_was_made(root):
    said = text_of(section(root, "making"))
    assert "multiflow demo --seed 5" in said
    assert "Time: 40 s" in said
    assert "load 1.0 s, calibrate 2.0 s, evaluate 37 s" in said
    assert "torch" in said
    assert "mask-0.63.safetensors, mask-0.9.safetensors: 5 kB" in said
    assert "demo.json" in said
    assert "Guessing scores 0.5 %." in text_of(section(root, "reading"))


def test_a_method_of_the_users_own_may_have_any_name():
    rows = (
        make_row("a<b> & 'c'", 0.9, 50, 50),
        make_row("magnitude", 0.9, 1, 1),
        make_row("magnitude-layer", 0.9, 2, 2),
    )
    root = read_page(report(make_demo(rows, examples=())))
    spans = [text_of(span) for span in root.find(".//h1")]
    assert spans == ["a<b> & 'c'", "magnitude-layer", "magnitude"]


def test_a_card_shows_what_every_model_finds():
    demo = make_demo()
    card = example_card(demo, demo.examples[0], {"dense": DENSE_LOOK, **looks(demo.methods)})
    root = ElementTree.fromstring(card)
    pictures, captions = root.findall("ul")
    assert [item.get("class") for item in pictures] == ["right", "right", "right", "wrong"]
    assert [item.get("class") for item in captions] == ["right", "right", "wrong", "wrong"]
    sources = [image.get("src") for image in pictures.iter("img")]
    red, blue = (f"data:image/png;base64,{b64encode(demo.pictures[i]).decode()}" for i in (3, 7))
    assert sources == [red, red, red, blue]
    assert all(image.get("alt") for image in root.iter("img"))
    assert [mark.get("aria-label") for mark in captions.iter("span") if mark.get("role")] == ["right"] * 2 + [
        "wrong"
    ] * 2


def test_only_words_that_the_right_caption_lacks_are_marked():
    assert mark_changes("A red star, left", "a blue star left") == ("A ", Mark("red", "new"), " star, left")
    assert mark_changes("<b>", "x") == ("<", Mark("b", "new"), ">")


def test_the_headline_says_what_was_measured():
    said = headline(make_demo())
    assert said == (
        f"At 90{NBSP}% zeros and without retraining, the model pruned by multiflow still puts the right answer first "
        "in 38 of 100 searches (dense model: 92); magnitude 8.0, random 0.5."
    )


def test_the_best_method_leads_whichever_it_is():
    rows = (make_row("multiflow", 0.9, 20, 20), make_row("mine", 0.9, 60, 50), make_row("random", 0.9, 1, 1))
    assert "pruned by mine still puts the right answer first in 55" in headline(make_demo(rows))
    assert headline(make_demo(rows)).endswith("multiflow 20, random 1.0.")


def test_the_headline_admits_that_all_is_lost():
    rows = (make_row("multiflow", 0.9, 1.0, 0.5), make_row("random", 0.9, 0.5, 0.5))
    assert "no method is far from chance: the best, multiflow" in headline(make_demo(rows))


def test_what_is_too_close_to_call_is_not_called():
    rows = [make_row("multiflow", 0.9, 40, 40), make_row("wanda", 0.9, 39, 40), make_row("random", 0.9, 1, 1)]
    rows[1] = (replace(rows[1][0], each=rows[1][0].each[::-1]), rows[1][1])
    assert headline(make_demo(tuple(rows))) == (
        f"At 90{NBSP}% zeros and without retraining, the models pruned by multiflow and wanda still put the right "
        "answer first in 40 and 40 of 100 searches, too close to call (dense model: 92); random 1.0."
    )


def test_a_single_method_stands_alone():
    assert headline(make_demo((make_row("multiflow", 0.9, 50, 50),))).endswith("(dense model: 92).")


def test_collapse_begins_at_99_percent():
    def gone(**shares):
        (spread,) = demo_spreads(make_demo([make_row("m", 0.9, 1, 1, **shares)]))
        return spread.gone_groups, spread.gone_layers

    assert gone(layer=0.99) == ([], ["vision.layers.0.q"])
    assert gone(layer=0.9899) == ([], [])
    assert gone(text=1.0) == (["text"], ["text.layer.0.q"])


def test_cells_are_found_by_method_and_sparsity():
    demo = make_demo()
    assert demo.methods == ("multiflow", "magnitude", "random")
    assert demo.sparsities == (0.63, 0.9)
    assert demo.cell("magnitude", 0.9).figures["TR@1"] == 9.0
    assert demo.groups == ("vision", "text", "fusion")
    assert (demo.chance, demo.seconds("random")) == (0.5, 1.25)


def test_json_holds_every_number_and_no_picture():
    read = json.loads(json.dumps(demo_values(make_demo()), default=plain))
    assert "pictures" not in read
    assert read["dense"] == {"tr1": 92.5, "tr5": 92.5, "tr10": 92.5, "ir1": 90.5, "ir5": 90.5, "ir10": 90.5}
    assert len(read["rows"]) == 6
    row = read["rows"][3]
    assert row["layers"]["vision.layers.0.q"] == 0.9999
    assert (row["method"], row["prune_seconds"], row["mask_bytes"]) == ("magnitude", 1.25, 2345)
    assert row["hits"] == "2" * 14 + "1" * 4 + "0" * 182
    assert read["examples"][0]["finds"][2] == {"method": "magnitude", "caption": 7, "picture": 3}
    assert read["layout"][3]["shape"] == [4, 8]
    assert read["captions"]["7"] == "a blue star"


def test_an_example_knows_its_verdicts_and_scenes():
    example = Example(1, (Find("dense", 1, 1), Find("random", 4, 1)))
    assert example.verdicts == (True, True, False, True)
    assert example.scenes == {1, 4}


def test_the_most_telling_sparsity_is_where_the_methods_part():
    figures = {0.5: (90, 90, 1), 0.7: (80, 50, 1), 0.9: (12, 4, 1)}
    rows = [make_row(m, s, f[i], f[i])[0] for s, f in figures.items() for i, m in enumerate("abc")]
    assert most_telling(rows, chance=0.5) == 0.7


def test_where_all_is_lost_the_lowest_sparsity_is_the_most_telling():
    rows = [make_row(m, s, 1.4, 0.5)[0] for s in (0.63, 0.9) for m in "ab"]
    assert most_telling(rows, chance=0.5) == 0.63
    assert most_telling([*rows, make_row("c", 0.9, 30, 30)[0]], chance=0.5) == 0.9


@pytest.mark.parametrize("share", [0, 12.5, 50, 100])
def test_intervals_hold_the_share_and_shrink_with_the_count(share):
    low, high = wilson(share, 200)
    wide_low, wide_high = wilson(share, 20)
    assert 0 <= wide_low <= low <= share <= high <= wide_high <= 100
    assert high - low < wide_high - wide_low


def test_hits_are_compared_scene_by_scene():
    right, half = [100.0] * 100, [100.0] * 50 + [50.0] * 50
    assert too_close(right, right)
    assert not too_close(right, half)
    assert not too_close(half, right)
    assert too_close([100] * 99 + [0], [0] + [100] * 99)  # other scenes, but as many
    assert too_close(half, half[50:] + half[:50])
    assert not too_close(half, [100] * 40 + [50] * 60)  # a small difference that always goes one way


def test_leaders_are_the_best_and_those_too_close_to_it():
    assert make_demo().leaders(0.63) == ["multiflow"]
    cell, pruning = make_row("mine", 0.9, 35.0, 35.0)
    rows = [*ROWS, (replace(cell, each=[0.0] * 130 + [100.0] * 70), pruning)]
    assert make_demo(rows).leaders(0.9) == ["multiflow", "mine"]
    between = make_row("between", 0.9, 36.0, 36.0)  # differs in few scenes, but always the same way
    assert not too_close(between[0].each, make_demo().cell("multiflow", 0.9).each)
    assert make_demo([*rows, between]).leaders(0.9) == ["multiflow", "between", "mine"]
    lost = make_demo([make_row("multiflow", 0.9, 1.0, 0.5), make_row("random", 0.9, 0.5, 0.5)])
    assert lost.leaders(0.9) == []
