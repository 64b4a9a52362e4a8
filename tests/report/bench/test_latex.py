from __future__ import annotations

from multiflow.report.bench.gather import gather
from multiflow.report.bench.latex import escape, tables_tex

from .conftest import make_cell


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
    assert escape("\\~^{}$<|>") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\$\textless{}\textbar{}\textgreater{}"
    )
