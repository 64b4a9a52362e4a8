from __future__ import annotations

import json
from dataclasses import replace

import pytest

from multiflow.report.values import Example, Find, most_telling, recall_at_1, too_close, wilson
from multiflow.tasks.retrieval.task import Recall


def test_collapse_begins_at_99_percent(make_row):
    assert make_row("m", 0.9, 1, 1, layer=0.99).collapsed_layers == ["vision.layers.0.q"]
    assert make_row("m", 0.9, 1, 1, layer=0.9899).collapsed_layers == []
    gone = make_row("m", 0.9, 1, 1, text=1.0)
    assert gone.collapsed_groups == ["text"]
    assert gone.collapsed_layers == ["text.layer.0.q"]


def test_rows_are_found_by_method_and_sparsity(make_demo):
    demo = make_demo()
    assert demo.methods == ("multiflow", "magnitude", "random")
    assert demo.sparsities == (0.63, 0.9)
    assert demo.row("magnitude", 0.9).quality.tr1 == 9.0
    assert list(demo.groups) == ["vision", "text", "fusion"]
    assert demo.chance == 0.5


def test_json_holds_every_number_and_no_picture(make_demo):
    demo = make_demo(dense=Recall(92.5, 98, 99, 90.5, 97, 98))
    read = json.loads(demo.to_json())
    assert "pictures" not in read
    assert read["dense"]["ir5"] == 97
    assert len(read["rows"]) == 6
    assert read["rows"][3]["layers"]["vision.layers.0.q"] == 0.9999
    assert read["examples"][0]["finds"][2] == {"method": "magnitude", "caption": 7, "picture": 3}
    assert read["layout"][3]["shape"] == [4, 8]


def test_an_example_knows_its_verdicts_and_scenes():
    example = Example(1, (Find("dense", 1, 1), Find("random", 4, 1)))
    assert example.verdicts == (True, True, False, True)
    assert example.scenes == {1, 4}


def test_the_headline_figure_is_the_mean_of_both_directions():
    assert recall_at_1(Recall(80, 0, 0, 60, 0, 0)) == 70


def test_the_most_telling_sparsity_is_where_the_methods_part(make_row):
    figures = {0.5: (90, 90, 1), 0.7: (80, 50, 1), 0.9: (12, 4, 1)}
    rows = [make_row(m, s, f[i], f[i]) for s, f in figures.items() for i, m in enumerate("abc")]
    assert most_telling(rows, chance=0.5) == 0.7


def test_where_all_is_lost_the_lowest_sparsity_is_the_most_telling(make_row):
    rows = [make_row(m, s, 1.4, 0.5) for s in (0.63, 0.9) for m in "ab"]
    assert most_telling(rows, chance=0.5) == 0.63
    assert most_telling([*rows, make_row("c", 0.9, 30, 30)], chance=0.5) == 0.9


@pytest.mark.parametrize("share", [0, 12.5, 50, 100])
def test_intervals_hold_the_share_and_shrink_with_the_count(share):
    low, high = wilson(share, 200)
    wide_low, wide_high = wilson(share, 20)
    assert 0 <= wide_low <= low <= share <= high <= wide_high <= 100
    assert high - low < wide_high - wide_low


def test_hits_are_compared_scene_by_scene():
    right, half = "2" * 100, "2" * 50 + "1" * 50
    assert too_close(right, right)
    assert not too_close(right, half)
    assert not too_close(half, right)
    assert too_close("2" * 99 + "0", "0" + "2" * 99)  # other scenes, but as many
    shifted = half[50:] + half[:50]
    assert too_close(half, shifted)
    assert not too_close(half, "2" * 40 + "1" * 60)  # a small difference that always goes one way


def test_leaders_are_the_best_and_those_too_close_to_it(make_demo, make_row):
    demo = make_demo()
    assert demo.leaders(0.63) == ["multiflow"]
    close = replace(make_row("mine", 0.9, 35.0, 35.0), hits="0" * 130 + "2" * 70)
    demo = make_demo((*demo.rows, close))
    assert demo.leaders(0.9) == ["multiflow", "mine"]
    between = make_row("between", 0.9, 36.0, 36.0)  # differs in few scenes, but always the same way
    assert not too_close(between.hits, demo.row("multiflow", 0.9).hits)
    assert make_demo((*demo.rows, between)).leaders(0.9) == ["multiflow", "between", "mine"]
    lost = make_demo((make_row("multiflow", 0.9, 1.0, 0.5), make_row("random", 0.9, 0.5, 0.5)))
    assert lost.leaders(0.9) == []
