from __future__ import annotations

from dataclasses import replace

import pytest

from multiflow.bench.records import DENSE
from multiflow.report.bench.cost import costs, kept, total_seconds
from multiflow.report.bench.results import gather

from .conftest import bare, make_cell, make_pruning


def test_costs_are_means_over_seeds_and_peaks():
    prunings = [make_pruning(seed=0), make_pruning(seed=1, calibration=6.0, peak_memory=10**9)]
    bench = gather([make_cell(seed=s) for s in (0, 1)], prunings)
    (found,) = costs(bench)
    assert (found.calibration, found.selection, found.seconds) == (5.0, 0.5, 5.5)
    assert (found.peak_memory, found.pairs, found.prunings) == (10**9, 512, 2)
    assert found.cell == pytest.approx(24.0)
    assert total_seconds(bench) == (48.0, 11.0)


def test_the_share_of_dense_needs_every_task(grid):
    cells, prunings, expected = grid
    found = kept(gather(*grid), "xvlm-shapes", 0.63)
    assert 80 < found["multiflow"].share < 95
    assert (found["multiflow"].seeds, found["multiflow"].few) == (3, None)
    assert (found["snip"].seeds, found["snip"].few) == (1, 1)
    fewer = [cell for cell in cells if (cell.task, cell.sparsity, cell.pruner) != ("vqa", 0.63, "multiflow")]
    assert "multiflow" not in kept(gather(fewer, prunings, expected), "xvlm-shapes", 0.63)


def test_a_task_of_the_grid_without_any_figures_is_not_passed_over(grid):
    cells, prunings, expected = grid
    begun = [cell for cell in cells if cell.task == "retrieval"]
    assert kept(gather(begun, prunings, expected), "xvlm-shapes", 0.63) == {}
    assert "multiflow" in kept(gather(begun, prunings), "xvlm-shapes", 0.63)  # the grid has no other task
    one = make_cell("multiflow", 0.5, task="retrieval")  # the grid has the sparsity for one task alone
    assert "multiflow" in kept(gather([*cells, one], prunings, [*expected, bare(one)]), "xvlm-shapes", 0.5)


def test_the_share_is_over_the_seeds_that_all_tasks_have():
    scores = {("vqa", 0): 40.0, ("vqa", 1): 80.0, ("retrieval", 0): 60.0}
    cells = [make_cell(task=task, seed=seed, score=score, each=()) for (task, seed), score in scores.items()]
    cells += [make_cell(DENSE, task=t, seed=s, score=80.0, each=()) for t in ("vqa", "retrieval") for s in (0, 1)]
    cells = [replace(cell, score=scores.get((cell.task, cell.seed), 0) if cell.sparsity else 80.0) for cell in cells]
    assert kept(gather(cells), "xvlm-shapes", 0.75)["multiflow"][:2] == (pytest.approx((50 + 75) / 2), 1)
