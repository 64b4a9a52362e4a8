from __future__ import annotations

import pytest

from multiflow.report.bench.cost import costs, total_seconds
from multiflow.report.bench.gather import gather

from .conftest import make_cell, make_pruning


def test_costs_are_means_over_seeds_and_peaks():
    prunings = [make_pruning(seed=0), make_pruning(seed=1, calibration=6.0, peak_memory=10**9)]
    bench = gather([make_cell(seed=s) for s in (0, 1)], prunings)
    (found,) = costs(bench)
    assert (found.calibration, found.selection, found.seconds) == (5.0, 0.5, 5.5)
    assert (found.peak_memory, found.pairs, found.prunings) == (10**9, 512, 2)
    assert found.cell == pytest.approx(24.0)
    assert total_seconds(bench) == (48.0, 11.0)
