from __future__ import annotations

from multiflow.report.bench.results import gather
from multiflow.report.bench.statistics import Difference
from multiflow.report.bench.words import (
    Duel,
    difference_text,
    duel,
    entry_text,
    headline,
    leaders,
    losses,
    overall_sentences,
    overall_text,
    place_text,
    scope,
    seed_counts,
    standings,
    verdicts,
)

from .conftest import bare, make_cell


def test_duels_count_every_place_once(grid):
    bench = gather(*grid)
    assert duel(bench, "multiflow", "snip") == Duel(12, 0, 0)
    there, back = duel(bench, "magnitude", "multiflow"), duel(bench, "multiflow", "magnitude")
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert back.wins >= 10
    assert duel(bench, "multiflow", "wanda").ties >= 9


def test_standings_put_who_leads_first(grid):
    ranked = standings(gather(*grid))
    assert {ranked[0].pruner, ranked[1].pruner} == {"multiflow", "wanda"}
    assert ranked[-1].pruner == "snip"
    assert ranked[-1].leads == 0
    assert sum(s.best for s in ranked) == 12


def test_the_headline_and_the_verdicts_name_the_winner_whoever_it_is():
    cells = [make_cell(p, seed=s, score=score) for p, score in (("multiflow", 50), ("mine", 80)) for s in range(3)]
    bench = gather(cells)
    assert headline(bench) == "mine is the best pruner or within noise of it at 1 of 1 places, multiflow at 0 of 1."
    assert verdicts(bench) == ["multiflow is behind, beyond noise and at more than half of the places: mine (1 of 1)."]
    ((place, name, difference),) = losses(bench)
    assert (place.task, name) == ("vqa", "mine")
    assert difference.value > 25


def test_a_pruner_with_fewer_seeds_is_named_with_them():
    cells = [make_cell("multiflow", seed=s, score=50) for s in range(3)] + [make_cell("mine", score=80)]
    assert headline(gather(cells)).startswith("mine (one seed) is the best")


def test_the_headline_begins_with_who_leads_the_table_of_standings():
    cells = [make_cell(p, s, score=score) for p, score in (("multiflow", 50), ("wanda", 70)) for s in (0.63, 0.75)]
    cells.append(make_cell("mine", 0.75, score=90))
    assert headline(gather(cells)) == (
        "mine is the best pruner or within noise of it at 1 of 1 places, wanda at 1 of 2 and multiflow at 0 of 2. "
        "Of those compared at all 2 places, wanda leads most often."
    )
    assert standings(gather(cells))[0].pruner == "mine"


def test_a_first_pruner_that_stands_alone_is_no_reason_to_stop():
    cells = [make_cell("multiflow", task="retrieval"), make_cell("wanda"), make_cell("magnitude", score=40)]
    assert headline(gather(cells)) == (
        "wanda is the best pruner or within noise of it at 1 of 1 places, magnitude at 0 of 1."
    )


def test_sparsities_are_not_rounded():
    cells = [make_cell(p, s) for p in ("multiflow", "wanda") for s in (0.975, 0.98)]
    bench = gather(cells)
    assert [place.split(" at ")[1] for place in map(place_text, bench.places)] == [
        "97.5\N{NO-BREAK SPACE}%",
        "98\N{NO-BREAK SPACE}%",
    ]
    assert "at 97.5\N{NO-BREAK SPACE}% and 98\N{NO-BREAK SPACE}% zeros" in scope(bench)


def test_a_leader_over_fewer_seeds_is_told_with_them():
    cells = [make_cell("multiflow", seed=s, score=50) for s in range(3)] + [make_cell("mine", score=80)]
    ((_, said),) = leaders(gather([*cells, make_cell("dense", score=90)]))
    assert "(one seed; dense " in said
    assert said.count("one seed") == 1


def test_shares_over_a_part_of_the_grid_say_so():
    cells = [make_cell(p, score=score) for p, score in (("dense", 95), ("multiflow", 50))]
    (said,) = overall_sentences(gather(cells, expected=[*map(bare, cells), bare(make_cell(task="retrieval"))]))
    assert "one model and task of 2" in said


def test_shares_over_all_are_told_with_their_seeds():
    cells = [make_cell(p, seed=s, score=score) for p, score in (("dense", 95), ("multiflow", 50)) for s in range(3)]
    bench = gather([*cells, make_cell("mine", score=80), make_cell("near", score=80)])
    (said,) = overall_sentences(bench)
    assert said.startswith("At 75\N{NO-BREAK SPACE}% zeros, over one model and task, on the seeds that all share, ")
    assert said.count("one seed") == 2
    assert "within noise of it " in said
    text = overall_text(bench, bench.overall[0.75, "mine"])
    assert "to multiflow on seed 0 +" in text
    assert seed_counts(bench, "multiflow") == {3}


def test_a_hover_text_compares_with_the_first_pruner_on_common_seeds(grid):
    bench = gather(*grid)
    entry = bench.entries[bench.places[0], "snip"]
    assert "to multiflow on seed 0 \N{MINUS SIGN}" in entry_text(entry, bench)
    assert "to multiflow" not in entry_text(bench.entries[bench.places[0], "multiflow"], bench)


def test_little_is_said_of_little():
    assert headline(gather([], expected=[bare(make_cell())])) == "Nothing has been computed yet."
    assert headline(gather([make_cell()])) == "One cell computed; no two pruners can be compared yet."


def test_dense_is_matched_where_the_difference_may_be_luck():
    cells = [make_cell("dense", score=80), make_cell("multiflow", score=80), make_cell("multiflow", 0.9, score=40)]
    said = verdicts(gather(cells))[-1]
    assert (
        said == "multiflow is not below the dense model, beyond noise, in vqa on xvlm-shapes at 75\N{NO-BREAK SPACE}%."
    )


def test_leaders_tell_who_is_close_and_who_is_not(grid):
    found = dict(leaders(gather(*grid)))
    assert len(found) == 12
    for text in found.values():
        assert "within noise" in text
        assert "the nearest" in text
        assert "(dense " in text


def test_an_entry_says_what_is_known(grid):
    bench = gather(*grid)
    entry = bench.entries[bench.places[0], "snip"]
    said = entry_text(entry)
    assert said.startswith("snip, 63\N{NO-BREAK SPACE}% zeros, retrieval mean R@1: ")
    assert "seed 0: " in said
    assert "behind the best: \N{MINUS SIGN}" in said
    assert "best here" in entry_text(bench.best(bench.places[0]))


def test_the_scope_counts_the_grid(grid):
    said = scope(gather(*grid))
    assert said.startswith(
        "Four pruners at 63\N{NO-BREAK SPACE}%, 75\N{NO-BREAK SPACE}% and 90\N{NO-BREAK SPACE}% zeros"
    )
    assert "for retrieval and vqa" in said


def test_differences_have_signs():
    assert (
        difference_text(Difference(-0.01, -2, 1, (0,)))
        == "0.0 (95\N{NO-BREAK SPACE}% interval \N{MINUS SIGN}2.0 to +1.0)"
    )
