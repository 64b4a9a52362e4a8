"""Quality against bytes and milliseconds, from the records of a grid; what they do not carry is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from multiflow.bench.records import DENSE
from multiflow.report.bench.page import bench_document, write_report
from multiflow.report.bench.payoff import payoffs
from multiflow.report.bench.results import gather
from multiflow.report.document import markdown, page

COST = {"forward": 0.02, "dense_forward": 0.05, "memory": 3e6, "dense_memory": 1e7}


def test_bytes_come_from_the_masks(grid):
    found = {(one.pruner, one.sparsity): one for one in payoffs(gather(*grid), "xvlm-shapes")}
    for (pruner, sparsity), one in found.items():
        if pruner != "magnitude":  # its text layer loses more
            assert one.share == pytest.approx(1 / 16 + 1 - sparsity, abs=1e-3)
        assert one.faster is None
        assert one.kept is not None
    assert len(found) == 12


def test_old_records_say_that_they_carry_no_times(grid, tmp_path):
    document = bench_document(gather(*grid))
    assert "these records carry none" in markdown(document)
    assert "share of the dense score against packed megabytes" in page(document)
    assert "against milliseconds" not in page(document)
    write_report(*grid, tmp_path, "a grid")
    assert ",forward,dense_forward," in (tmp_path / "cells.csv").read_text().splitlines()[0]


def test_times_are_medians_over_the_cells_that_have_them(grid):
    cells, prunings, expected = grid
    timed = [
        replace(cell, cost=COST if cell.seed else {**COST, "forward": 0.5})
        if (cell.pruner, cell.sparsity) == ("multiflow", 0.75)
        else cell
        for cell in cells
    ]
    bench = gather(timed, prunings, expected)
    (one,) = [p for p in payoffs(bench, "xvlm-shapes") if (p.pruner, p.sparsity) == ("multiflow", 0.75)]
    assert (one.milliseconds, one.faster, one.memory) == (pytest.approx(20), pytest.approx(2.5), 3e6)
    assert "one that is missing was not measured" in markdown(bench_document(bench))
    assert "against milliseconds" in page(bench_document(bench))


def test_without_masks_and_cells_there_is_no_section():
    assert payoffs(gather([]), "xvlm-shapes") == []
    assert DENSE not in {one.pruner for one in payoffs(gather([]), "xvlm-shapes")}
