from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from multiflow.bench.records import DENSE
from multiflow.report.bench.cost import costs, total_seconds
from multiflow.report.bench.results import GridPlace, compare_overall, gather
from multiflow.report.zeros import spreads

from .conftest import bare, make_cell, make_grid, make_pruning

AT = GridPlace("xvlm-shapes", "vqa", "accuracy", 0.75)


def test_known_effects_are_found(grid):
    bench = gather(*grid)
    place = GridPlace("xvlm-shapes", "retrieval", "mean R@1", 0.75)
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
    assert bench.notes == ("1 cell of other settings left out: not in the grid of the config.",)
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


def test_prunings_are_left_out_where_the_grid_prunes_nothing():
    assert gather([make_cell(DENSE)], [make_pruning()]).prunings == ()


def test_a_renamed_model_and_pruner_take_their_masks_along():
    cells, prunings, expected = make_grid(models=("xvlm-shapes",))
    names = {"xvlm-shapes": "xvlm", "magnitude": "by-size"}
    renamed = [
        replace(c, model=names[c.model], pruner=names.get(c.pruner, c.pruner), tier=f"new {c.tier}") for c in expected
    ]
    bench = gather(cells, prunings, renamed)
    assert bench.notes == bench.missing == ()
    assert bench.models == ("xvlm",)
    assert {cell.model for cell in bench.cells} == {one.model for one in bench.prunings} == {"xvlm"}
    assert {one.pruner for one in bench.prunings} == set(bench.rivals) == {"multiflow", "by-size", "wanda", "snip"}
    assert bench.tiers == ("new 1", "new 2")
    assert [cell.pruner for cell in bench.cells] == [cell.pruner for cell in renamed]
    broken = [replace(bare(cell), error="killed") for cell in cells]
    assert {cell.model for cell in gather(broken, [], renamed).failed} == {"xvlm"}


def test_models_of_one_source_share_a_pruning_and_each_has_it():
    shared = make_pruning("magnitude", model="dino-cifar10")
    cells = [make_cell("magnitude", model=m, pruning=shared.id) for m in ("dino-cifar10", "dino-cifar100")]
    bench = gather(cells, [shared])
    assert [(one.model, one.id) for one in bench.prunings] == [(c.model, shared.id) for c in cells]
    assert (
        [spread.model for spread in spreads(bench.prunings, bench.models, bench.pruners)]
        == [cost.model for cost in costs(bench)]
        == [*bench.models]
    )
    assert total_seconds(bench)[1] == shared.calibration + shared.selection


def test_masks_of_sparsities_that_the_grid_does_not_have_are_left_out():
    bench = gather([make_cell(sparsity=0.75)], [make_pruning(sparsities=(0.5, 0.75, 0.9))])
    assert [list(one.zeros) for one in bench.prunings] == [[0.75]]


def test_a_pruner_is_in_every_tier_of_its_cells(grid):
    cells, prunings, expected = grid
    more = make_cell("multiflow", 0.95, tier="3")
    bench = gather(cells, prunings, [*expected, bare(more)])
    assert bench.tiers_of["multiflow"] == ("1", "3")
    assert bench.tiers_of["snip"] == ("2",)


def shares(cells, sparsity, pruner, seeds):
    """The mean over models and tasks of the mean over seeds relative to dense, written out."""

    def mean(track, name, zeros):
        key = (*track, name, zeros)
        return np.mean([c.score for c in cells if (c.model, c.task, c.pruner, c.sparsity) == key and c.seed in seeds])

    tracks = {(c.model, c.task) for c in cells}
    return 100 * np.mean([mean(track, pruner, sparsity) / mean(track, "dense", 0.0) for track in tracks])


def test_a_share_is_the_mean_over_models_and_tasks(grid):
    cells, *_ = grid
    bench = gather(*grid)
    for sparsity in (0.63, 0.9):
        for pruner, seeds in (("multiflow", (0, 1, 2)), ("snip", (0,))):
            one = bench.overall[sparsity, pruner]
            assert one.share == pytest.approx(shares(cells, sparsity, pruner, seeds))
            assert one.low < one.share < one.high
            assert (one.seeds, one.places) == (seeds, 4)


def test_two_pruners_are_compared_on_the_seeds_that_both_have(grid):
    cells, *_ = grid
    bench = gather(*grid)
    there, back = (bench.overall_differences[0.75, *pair] for pair in (("multiflow", "snip"), ("snip", "multiflow")))
    wanted = shares(cells, 0.75, "multiflow", (0,)) - shares(cells, 0.75, "snip", (0,))
    assert there.value == pytest.approx(wanted)
    assert there.seeds == (0,)
    assert there.low > 0
    assert back == -there


def test_the_best_is_marked_and_equal_ones_are_close(grid):
    bench = gather(*grid)
    for sparsity in (0.63, 0.75, 0.9):
        here = {name: one for (s, name), one in bench.overall.items() if s == sparsity}
        assert [one.best for one in here.values()].count(True) == 1
        assert {name for name, one in here.items() if one.best or one.close} == {"multiflow", "wanda"}


def test_an_interval_agrees_with_the_normal_one():
    dense = make_cell("dense", score=90)
    cells = [dense, make_cell(score=60, items=400, noise=1), make_cell("wanda", score=40, items=400, noise=2)]
    cells[0] = make_cell("dense", score=90, items=400)
    difference = gather(cells).overall_differences[0.75, "multiflow", "wanda"]
    items = 100 * (np.array(cells[1].each) - np.array(cells[2].each)) / cells[0].score
    half = 1.96 * items.std() / 20
    assert difference.value == pytest.approx(items.mean())
    assert (difference.high - difference.low) / 2 == pytest.approx(half, rel=0.08)


def test_who_lacks_a_task_or_a_baseline_has_no_share():
    cells = [make_cell(p, task=t, metric="accuracy") for p in ("dense", "multiflow", "wanda") for t in ("a", "b")]
    assert set(gather(cells).overall) == {(0.75, "multiflow"), (0.75, "wanda")}
    assert set(gather(cells[:-1]).overall) == {(0.75, "multiflow")}
    assert not gather(cells[1:]).overall
    assert not gather([make_cell(seed=1), make_cell("dense", seed=0)]).overall
    zero = make_cell("dense", score=0.0, each=(0.0,) * 200)
    assert not gather([zero, make_cell()]).overall
    assert compare_overall({}, []) == ({}, {})


def bench_of(scores, tier=lambda name: "1", seeds=(0,)):
    return gather([make_cell(p, seed=s, score=score, tier=tier(p)) for p, score in scores.items() for s in seeds])


def test_the_first_tier_is_loud_and_so_is_a_winner_of_another():
    scores = {"multiflow": 70, "wanda": 60, "snip": 20, "mine": 90}
    tier = {"multiflow": "1", "wanda": "1"}
    assert bench_of(scores, lambda name: tier.get(name, "2")).loud == ["multiflow", "wanda", "mine"]
    scores["mine"] = 30
    assert bench_of(scores, lambda name: tier.get(name, "2")).loud == ["multiflow", "wanda"]


def test_no_more_than_six_are_loud():
    scores = {f"p{i}": 50 + i for i in range(9)}
    assert bench_of(scores).loud == ["p0", "p1", "p2", "p3", "p4", "p8"]


def test_without_multiflow_the_first_of_the_grid_is_told_of():
    assert bench_of({"mine": 50, "wanda": 60}).first == "mine"
    assert bench_of({}).first is None


def test_std_is_that_of_a_sample():
    bench = bench_of({"multiflow": 70}, seeds=(0, 1, 2))
    (entry,) = bench.entries.values()
    mean = sum(entry.scores) / 3
    assert entry.std == pytest.approx((sum((score - mean) ** 2 for score in entry.scores) / 2) ** 0.5)
    (alone,) = bench_of({"multiflow": 70}).entries.values()
    assert alone.std is None
