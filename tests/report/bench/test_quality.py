from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from multiflow.report.bench.page import cells_csv, pairs_csv, tables_csv, tables_tex
from multiflow.report.bench.quality import columns, figures_table
from multiflow.report.bench.results import gather

from .conftest import bare, make_cell


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_table_has_dense_first_and_its_figure_at_every_sparsity(grid):
    bench = gather(*grid)
    made = figures_table(bench, "xvlm-shapes", "all")
    assert [row.name for row in made.rows] == ["dense", "multiflow", "magnitude", "wanda", "snip"]
    assert len(made.columns) == 1 + 6
    assert len(columns(bench, "xvlm-shapes")) == 6
    assert len({cell.key for cell in made.rows[0].cells[1:]}) == 2  # two tasks
    assert all(cell.text for row in made.rows for cell in row.cells)
    assert [row.tiers for row in made.rows] == [None, "1", "1", "1", "2"]


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
    looks = {row.name: [cell.look for cell in row.cells[1:]] for row in figures_table(bench, "xvlm-shapes", "").rows}
    assert looks == {"multiflow": ["best", "best"], "snip": ["pending", None], "chita": ["failed", None]}


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


def test_a_table_a_model(grid):
    made = tables_tex(gather(*grid))
    for rule in ("toprule", "bottomrule", "begin{table*}", "end{table*}", "begin{tabular}{lrrrrrr}"):
        assert made.count(f"\\{rule}") == 2, rule
    assert made.count(r"\textbf{") == 12
    assert made.count(r"\underline{") >= 9
    assert r"$^{(1)}$" in made
    assert "A superscript is the number of seeds" in made
    assert r"\cmidrule(lr){2-4} \cmidrule(lr){5-7}" in made


def test_every_line_has_as_many_columns(grid):
    for line in tables_tex(gather(*grid)).splitlines():
        if line.endswith(r"\\"):
            spans = [int(part[0]) - 1 for part in line.split(r"\multicolumn{")[1:]]
            assert line.count("&") - line.count(r"\&") + sum(spans) == 6, line


def test_names_are_escaped():
    made = tables_tex(gather([make_cell("mine_50%", model="a&b#1")]))
    assert r"mine\_50\%" in made
    assert r"\caption{a\&b\#1:" in made
