from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from multiflow.report.bench.gather import gather
from multiflow.report.bench.tables import cells_csv, columns, pairs_csv, rows, tables_csv

from .conftest import bare, make_cell


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_table_has_dense_first_and_its_figure_at_every_sparsity(grid):
    bench = gather(*grid)
    made = rows(bench, "xvlm-shapes")
    assert [row.pruner for row in made] == ["dense", "multiflow", "magnitude", "wanda", "snip"]
    assert len(columns(bench, "xvlm-shapes")) == 6
    assert len({entry.mean for entry in made[0].entries}) == 2  # two tasks
    assert all(row.states == ("",) * 6 for row in made)


def test_a_mean_over_fewer_seeds_is_marked(grid):
    bench = gather(*grid)
    place = bench.places[0]
    assert bench.few(bench.entries[place, "snip"]) == 1
    assert bench.few(bench.entries[place, "multiflow"]) is None
    alone = gather([make_cell(), make_cell("snip")])
    assert all(alone.few(entry) is None for entry in alone.entries.values())


def test_what_is_not_there_says_why():
    cells = [make_cell(), make_cell("snip"), make_cell("chita"), make_cell("multiflow", 0.9)]
    broken = replace(bare(cells[2]), error="x")
    bench = gather([cells[0], broken, cells[3]], expected=[bare(c) for c in cells])
    assert {row.pruner: row.states for row in rows(bench, "xvlm-shapes")} == {
        "multiflow": ("", ""),
        "snip": ("pending", ""),
        "chita": ("failed", ""),
    }


def test_the_tidy_csv_holds_figures_differences_and_flags(grid):
    bench = gather(*grid)
    lines = read(tables_csv(bench))
    assert len(lines) == len(bench.entries) == 4 + 2 * 2 * 3 * 4
    (line,) = [
        line
        for line in lines
        if (line["model"], line["task"], line["sparsity"], line["pruner"]) == ("xvlm-shapes", "vqa", "0.9", "snip")
    ]
    entry = bench.entries[bench.places[5], "snip"]
    assert float(line["mean"]) == pytest.approx(entry.mean, rel=1e-5)
    assert (line["seeds"], line["seed_list"], line["std"], line["tier"]) == ("1", "0", "", "2")
    assert float(line["to_dense"]) == pytest.approx(entry.to_dense.value, rel=1e-5)
    assert (line["within_noise_of_dense"], line["best"], line["within_noise_of_best"]) == ("0", "0", "0")
    assert line["common_seeds_with_best"] == "0"
    dense = next(line for line in lines if line["pruner"] == "dense")
    assert dense["best"] == dense["to_dense"] == dense["within_noise_of_best"] == ""
    assert sum(line["best"] == "1" for line in lines) == 12
    assert all(line["within_noise_of_best"] == "1" for line in lines if line["best"] == "1")


def test_the_cells_csv_has_a_line_a_cell_of_the_grid():
    cells = [make_cell(), make_cell("snip"), make_cell("chita")]
    broken = replace(bare(cells[1]), error="a, b\nc")
    bench = gather([cells[0], broken], expected=[bare(c) for c in cells])
    lines = read(cells_csv(bench))
    assert [line["state"] for line in lines] == ["done", "failed", "missing"]
    assert lines[1]["error"] == "a, b\nc"
    assert float(lines[0]["accuracy"]) == pytest.approx(cells[0].score)
    assert (lines[0]["items"], lines[0]["finetune"], lines[2]["score"]) == ("200", "20", "")


def test_the_csv_of_pairs_counts_places_and_holds_the_overall_difference(grid):
    bench = gather(*grid)
    lines = read(pairs_csv(bench))
    assert len(lines) == 3 * 6
    for line in lines:
        assert int(line["wins"]) + int(line["ties"]) + int(line["losses"]) == int(line["places"]) == 4
    line = next(one for one in lines if (one["sparsity"], one["a"], one["b"]) == ("0.75", "multiflow", "snip"))
    assert (line["wins"], line["seeds"]) == ("4", "0")
    assert float(line["share"]) == pytest.approx(bench.overall_differences[0.75, "multiflow", "snip"].value, rel=1e-5)
