from __future__ import annotations

from dataclasses import replace

from multiflow.report.words import collapses, count, headline, millions, plain

NBSP = "\N{NO-BREAK SPACE}"


def test_the_headline_says_what_was_measured(make_demo):
    said = headline(make_demo())
    assert said == (
        f"At 90{NBSP}% zeros and without retraining, the model pruned by multiflow still puts the right answer first "
        "in 38 of 100 searches (dense model: 92); magnitude 8.0, random 0.5."
    )


def test_the_best_method_leads_whichever_it_is(make_demo, make_row):
    rows = (make_row("multiflow", 0.9, 20, 20), make_row("mine", 0.9, 60, 50), make_row("random", 0.9, 1, 1))
    assert "pruned by mine still puts the right answer first in 55" in headline(make_demo(rows))
    assert headline(make_demo(rows)).endswith("multiflow 20, random 1.0.")


def test_the_headline_admits_that_all_is_lost(make_demo, make_row):
    rows = (make_row("multiflow", 0.9, 1.0, 0.5), make_row("random", 0.9, 0.5, 0.5))
    assert "no method is far from chance: the best, multiflow, puts the right answer first in 0.8" in headline(
        make_demo(rows)
    )


def test_what_is_too_close_to_call_is_not_called(make_demo, make_row):
    rows = [make_row("multiflow", 0.9, 40, 40), make_row("wanda", 0.9, 39, 40), make_row("random", 0.9, 1, 1)]
    rows[1] = replace(rows[1], hits=rows[1].hits[::-1])
    assert headline(make_demo(tuple(rows))) == (
        f"At 90{NBSP}% zeros and without retraining, the models pruned by multiflow and wanda still put the right "
        "answer first in 40 and 40 of 100 searches, too close to call (dense model: 92); random 1.0."
    )


def test_a_single_method_stands_alone(make_demo, make_row):
    assert headline(make_demo((make_row("multiflow", 0.9, 50, 50),))).endswith("(dense model: 92).")


def test_collapses_name_modalities_and_count_layers(make_demo, make_row):
    assert list(collapses(make_demo())) == [("magnitude", f"all of text, 2 of 5 layers at 90{NBSP}%")]
    assert list(collapses(make_demo((make_row("random", 0.9, 1, 1),)))) == []


def test_small_words():
    assert count(1, "layer") == "one layer"
    assert count(0, "layer") == "no layers"
    assert count(13, "scene") == "13 scenes"
    assert millions(184_025_088) == "184.0 million"
    assert plain((0.63, 0.9)) == "0.63, 0.9"
