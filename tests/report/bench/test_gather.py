from __future__ import annotations

from dataclasses import replace

import pytest

from multiflow.report.bench.gather import gather
from multiflow.report.bench.values import Place
from multiflow.report.records import DENSE

from .conftest import bare, make_cell, make_grid

AT = Place("xvlm-shapes", "vqa", "accuracy", 0.75)


def test_known_effects_are_found(grid):
    bench = gather(*grid)
    place = Place("xvlm-shapes", "retrieval", "mean R@1", 0.75)
    assert bench.differences[place, "multiflow", "magnitude"].value == pytest.approx(10, abs=4)
    assert bench.differences[place, "multiflow", "magnitude"].low > 0
    assert bench.differences[place, "magnitude", "multiflow"].high < 0
    assert bench.differences[place, "multiflow", "wanda"].noise
    assert bench.entries[place, "multiflow"].to_dense.high < 0
    assert bench.best(place).pruner in ("multiflow", "wanda")
    assert {entry.pruner for entry in bench.at(place) if entry.close or entry.best} == {"multiflow", "wanda"}


def test_order_is_that_of_the_grid_with_dense_first(grid):
    cells, prunings, expected = grid
    bench = gather(cells[::-1], prunings, expected)
    assert bench.pruners == (DENSE, "multiflow", "magnitude", "wanda", "snip")
    assert bench.models == ("xvlm-shapes", "blip-shapes")
    assert [p[1::2] for p in bench.places_of("blip-shapes")[:2]] == [("retrieval", 0.63), ("retrieval", 0.75)]
    assert bench.tiers == ("1", "2")
    assert bench.first == "multiflow"


def test_means_keep_their_own_seeds_and_comparisons_the_common_ones():
    cells = [make_cell("multiflow", seed=s) for s in (0, 1, 2)] + [make_cell("snip", seed=s, score=60) for s in (1, 5)]
    bench = gather(cells)
    assert bench.entries[AT, "snip"].seeds == (1, 5)
    assert bench.entries[AT, "snip"].mean == pytest.approx(sum(c.score for c in cells[3:]) / 2)
    found = bench.differences[AT, "multiflow", "snip"]
    assert found.seeds == (1,)
    assert found.value == pytest.approx(cells[1].score - cells[3].score)


def test_a_lucky_seed_alone_does_not_make_the_best():
    easy = {0: 90.0, 1: 70.0, 2: 70.0}
    cells = [make_cell("multiflow", seed=s, score=score, noise=s) for s, score in easy.items()]
    cells.append(make_cell("snip", seed=0, score=85.0, noise=0))
    bench = gather(cells)
    assert bench.entries[AT, "snip"].mean > bench.entries[AT, "multiflow"].mean
    assert bench.best(AT).pruner == "multiflow"


def test_without_a_common_seed_nothing_is_compared():
    bench = gather([make_cell("multiflow", seed=0), make_cell("snip", seed=1, score=60)])
    assert (AT, "multiflow", "snip") not in bench.differences
    assert bench.entries[AT, "snip"].to_best is None
    assert not bench.entries[AT, "snip"].close


def test_a_cell_that_failed_and_was_computed_later_is_computed():
    cell = make_cell()
    broken = replace(bare(cell), error="killed")
    for lines in ([broken, cell], [cell, broken]):
        bench = gather(lines, expected=[bare(cell)])
        assert bench.cells == (cell,)
        assert bench.failed == bench.missing == ()
    assert gather([broken], expected=[bare(cell)]).failed == (broken,)


def test_what_nobody_computed_is_missing():
    cells = [make_cell(seed=s) for s in (0, 1)]
    assert gather(cells[:1], expected=[bare(c) for c in cells]).missing == (bare(cells[1]),)


def test_cells_of_another_config_are_left_out_and_said():
    old, new = make_cell(id="old"), make_cell(id="new")
    bench = gather([old, new], expected=[bare(new)])
    assert bench.cells == (new,)
    assert "not in the grid" in bench.notes[0]
    bench = gather([old, new])
    assert bench.cells == (new,)
    assert "other settings" in bench.notes[0]


def test_other_metrics_are_other_places():
    cells = [make_cell(task="captioning", metric="CIDEr"), make_cell("snip", task="captioning", metric="CIDEr (words)")]
    assert [place.metric for place in gather(cells).places] == ["CIDEr", "CIDEr (words)"]


def test_figures_without_items_have_no_interval():
    bench = gather([make_cell(each=()), make_cell("snip")])
    entry = bench.entries[AT, "multiflow"]
    assert entry.low == entry.high == entry.mean
    assert not any(key[1:] == ("multiflow", "snip") for key in bench.differences)


def test_test_sets_of_other_sizes_are_not_compared():
    bench = gather([make_cell(), make_cell("snip", items=150)])
    assert (AT, "multiflow", "snip") not in bench.differences


def test_prunings_of_other_grids_are_left_out():
    cells, prunings, _ = make_grid(models=("xvlm-shapes",))
    others = make_grid(models=("blip-shapes",))[1]
    assert gather(cells, [*prunings, *others]).prunings == tuple(prunings)


def test_the_share_of_dense_needs_every_task(grid):
    cells, prunings, expected = grid
    share, seeds = gather(*grid).kept("xvlm-shapes", "multiflow", 0.63)
    assert 80 < share < 95
    assert seeds == 3
    assert gather(*grid).kept("xvlm-shapes", "snip", 0.63)[1] == 1
    fewer = [cell for cell in cells if (cell.task, cell.sparsity, cell.pruner) != ("vqa", 0.63, "multiflow")]
    assert gather(fewer, prunings, expected).kept("xvlm-shapes", "multiflow", 0.63) is None
