from __future__ import annotations

import numpy as np
import pytest

from multiflow.report.bench.gather import gather
from multiflow.report.bench.overall import compare_overall

from .conftest import make_cell


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
