from __future__ import annotations

from multiflow.report.bench.gather import gather
from multiflow.report.bench.learning import curves, verdict
from multiflow.report.records import DENSE

from .conftest import make_cell


def test_the_curve_is_the_mean_at_steps_that_all_seeds_have():
    cells = [make_cell(DENSE, seed=s) for s in (0, 1)]
    cells.append(make_cell(DENSE, seed=2, curve=[(100, 90.0), (150, 72.0), (200, 99.0)]))
    (curve,) = curves(gather([*cells, make_cell()]))
    assert curve.seeds == 3
    assert curve.points == ((100, 70.0, 60.0, 90.0), (150, 71.0, 70.0, 72.0))
    assert verdict(curve).endswith("accuracy 71.0 after 150 steps; the last third of them adds +1.0 points.")


def test_without_curves_nothing_is_drawn():
    assert curves(gather([make_cell(DENSE, curve=()), make_cell()])) == []
