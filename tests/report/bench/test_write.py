from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.bench.records import DENSE
from multiflow.report.bench import write_report
from tests.report.conftest import read_page, section, text_of

from .conftest import bare, make_cell, make_pruning

FILES = ["report.html", "report.md", "tables.csv", "pairs.csv", "cells.csv", "tables.tex"]


@pytest.fixture(scope="module")
def partial(grid):
    """The grid without snip on one model, with a failed cell."""
    cells, prunings, expected = grid
    kept = [cell for cell in cells if (cell.pruner, cell.model) != ("snip", "blip-shapes")]
    kept[-1] = replace(bare(kept[-1]), error="<b>out of memory</b> | 2 GB")
    return kept, prunings, expected


@pytest.fixture(scope="module")
def folder(partial, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    assert [path.name for path in write_report(*partial, folder, "A & B", ["one line was broken"])] == FILES
    return folder


@pytest.fixture(scope="module")
def root(folder):
    return read_page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_says_nothing_of_what_is_no_number(folder):
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<b>out of memory</b>" not in html
    assert "nan" not in re.findall(r"\b\w+\b", html)


def test_the_page_says_on_top_what_is_missing_and_failed(root):
    (box,) = [e for e in root.iter("div") if e.get("class") == "first-of-all"]
    said = text_of(box)
    assert "125 of 132 cells" in said
    assert "tier 2, blip-shapes, snip: 6 of 6 cells, all of it" in said
    assert "<b>out of memory</b> | 2 GB" in said
    assert "one line was broken" in said
    body = next(root.iter("main"))
    assert [e.tag for e in body][:3] == ["button", "header", "div"]


def test_every_section_is_there(root):
    assert [s.get("id") for s in root.iter("section")] == [
        *("summary", "figures", "quality", "duels", "zeros", "cost", "payoff", "learning", "making", "reading"),
    ]


def test_all_sections_but_the_summary_are_folded_and_work_without_a_script(root):
    folds = {e.get("id"): e.find("details").get("open") for e in root.iter("section")}
    assert folds.pop("summary") == "open"
    assert set(folds.values()) == {None}
    inside = {e.get("id") for e in root.iter("div") if e.get("class") == "inside"}
    assert {a.get("href") for a in next(root.iter("nav")).iter("a")} == {f"#{one}" for one in inside}


def test_the_figures_carry_values_to_hover_and_marks(root):
    here = section(root, "figures")
    tables = list(here.iter("table"))
    assert len(tables) == 2
    lines = tables[0].findall("tbody/tr")
    assert [line.get("data-tiers") for line in lines] == [None, "1", "1", "1", "2"]
    assert len({len(line) for line in lines} | {len(tables[0].findall("thead/tr")[1])}) == 1
    tips = [cell.get("data-tip") for cell in lines[1] if cell.get("data-tip")]
    assert len(tips) == 6
    assert all("95\N{NO-BREAK SPACE}% interval" in tip for tip in tips)
    assert [text_of(e) for e in lines[4].iter("sup")] == ["1"] * 6
    assert len([e for line in lines for e in line.iter() if e.get("class") == "best"]) == 6
    assert sum(int(e.get("colspan")) for e in tables[0].findall("thead/tr")[0]) == len(lines[0])


def test_the_summary_has_standings_intervals_and_a_map(root):
    here = section(root, "summary")
    standings, leaders = list(here.iter("table"))
    names = [row.get("data-name") for row in standings.findall("tbody/tr")]
    assert set(names) == {"multiflow", "magnitude", "wanda", "snip"}
    assert names[-1] == "snip"
    columns = standings.findall("thead/tr")[1]
    assert len(columns) == 4 + 3
    assert [len(row) for row in leaders.findall("tbody/tr")] == [1 + 12] * 4
    best = [cell for cell in leaders.iter("span") if "best" in (cell.get("class") or "")]
    assert len(best) == 12
    svg = "{http://www.w3.org/2000/svg}"
    forests = [e for e in here.iter(f"{svg}svg") if "forest" in (e.get("class") or "")]
    lines = [e for f in forests for e in f.iter(f"{svg}g") if (e.get("class") or "").startswith("line")]
    assert len(forests) == 3
    assert {e.get("data-name") for e in lines} <= {"magnitude", "wanda", "snip"}
    hollow = {e.get("data-name") for e in lines if any("hollow" in (p.get("class") or "") for p in e.iter())}
    assert hollow == set()  # all have all seeds


def test_a_tier_without_rows_of_its_own_has_no_button(partial, tmp_path):
    cells, prunings, expected = partial
    long = make_cell(DENSE, task="vqa-long", tier="5")
    write_report([*cells, long], prunings, [*expected, bare(long)], tmp_path, "t")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'data-choose="(\d*)"', html) == ["", "1", "2"]


def test_collapse_is_flagged(root):
    here = section(root, "zeros")
    assert "all of text; one layer of 3 (text.layer.0.q)" in text_of(here)
    svg = "{http://www.w3.org/2000/svg}"
    assert [e for e in here.iter(f"{svg}g") if e.get("class") == "gone"]


def test_pruners_of_later_tiers_are_quiet_in_charts(root):
    here = section(root, "quality")
    lines = {e.get("data-name"): e.get("class") for e in here.iter() if "series" in (e.get("class") or "").split()}
    assert {name: "quiet" in look for name, look in lines.items()} == {
        "multiflow": False,
        "magnitude": False,
        "wanda": False,
        "snip": True,
    }


def test_the_markdown_tells_the_same(folder):
    said = (folder / "report.md").read_text(encoding="utf-8")
    assert said.startswith("# A & B\n\n> **Incomplete.** 125 of 132 cells")
    assert "&lt;b&gt;out of memory&lt;/b&gt; \\| 2 GB" in said
    assert "- tier 2, blip-shapes, **snip**: 6 of 6 cells, all of it" in said
    tables = re.findall(r"(?:^\|.*\n)+", said, flags=re.M)
    assert len(tables) >= 8
    assert "| pruner | seeds | leads | against multiflow | share of the dense score at 63" in said
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert " [1] |" in said
    assert re.search(r"^\| snip \| 1 \| 0 of 6 \| 0 / 0 / 6 \|", said, flags=re.M)
    assert "\n\n\n" not in said


def test_the_report_is_a_function_of_the_records(partial, folder, tmp_path):
    write_report(*partial, tmp_path, "A & B", ["one line was broken"])
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_grid_whose_first_pruner_stands_alone_has_a_report(tmp_path):
    cells = [make_cell("multiflow", task="retrieval"), make_cell("wanda"), make_cell("magnitude", score=40)]
    prunings = [make_pruning(name) for name in ("multiflow", "wanda", "magnitude")]
    for given in (cells, [*cells, make_cell(DENSE), make_cell(DENSE, task="retrieval")]):
        assert len(write_report(given, prunings, [], tmp_path, "t")) == len(FILES)


def test_renamed_and_with_blanks_and_bars_in_its_names_a_grid_reports_the_same(partial, tmp_path):
    cells, prunings, expected = partial
    names = {"magnitude": "by size | abs", "xvlm-shapes": "x | vlm", "1": "one or two", "2": "the rest"}
    renamed = [
        replace(c, model=names.get(c.model, c.model), pruner=names.get(c.pruner, c.pruner), tier=names[c.tier])
        for c in expected
    ]
    write_report(cells, prunings, expected, tmp_path / "old", "t")
    write_report(cells, prunings, renamed, tmp_path / "new", "t")
    old, new = ((tmp_path / name / "report.md").read_text(encoding="utf-8") for name in ("old", "new"))
    for table in re.findall(r"(?:^\|.*\n)+", new, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    back = new.replace("by size \\| abs", "magnitude").replace("x \\| vlm", "xvlm-shapes")
    back = back.replace("tier the rest", "tier 2").replace("| one or two |", "| 1 |").replace("| the rest |", "| 2 |")
    assert back == old
    html = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'data-choose="(\d*)"', html) == ["", "1", "2"]
    assert set(re.findall(r'data-tiers="([^"]*)"', html)) == {"1", "2"}


def test_hostile_names_and_errors_come_through_every_file(tmp_path):
    name = "<script>alert('x')</script>|[y](z)\n# `w` =1+1, \"q\""
    cells = [make_cell(p, s, model=name, pruning=None) for p in (name, "multiflow", DENSE) for s in (0.5, 0.75)]
    failed = replace(bare(make_cell("wanda", model=name)), error=f"{name} \x1b[31m")
    pruning = replace(make_pruning(), model=name, pruner=name)
    write_report([*cells, failed], [pruning], [*map(bare, cells), failed], tmp_path, name, [name])
    html, said, tables, *_, tex = ((tmp_path / file).read_text(encoding="utf-8") for file in FILES)
    assert " ".join(name.split()) in text_of(read_page(html))
    assert "<" not in said
    assert "\x1b" not in said + html
    assert "\n# `" not in said
    assert "](z)" not in said.replace("\\](z)", "")
    assert {line["pruner"] for line in csv.DictReader(io.StringIO(tables))} == {name, "multiflow", DENSE}
    assert not [line for line in tex.splitlines() if line.startswith("#")]


def test_a_pruner_of_several_tiers_has_them_all(partial, tmp_path):
    cells, prunings, expected = partial
    more = make_cell("multiflow", 0.95, task="vqa", tier="2")
    write_report([*cells, more], prunings, [*expected, bare(more)], tmp_path, "t")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-tiers="([^"]*)" data-name="multiflow"', html)) == {"1 2"}
    assert '<td class="tier" data-key="1, 2">1, 2</td>' in html
    assert "| multiflow | 1, 2 |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_shares_over_fewer_seeds_are_marked_everywhere(folder, root):
    def marks(rows):
        return [[text_of(e) for e in row.iter("sup")] for row in rows if row.get("data-name") in ("snip", "wanda")]

    cost = section(root, "cost")
    assert marks(next(cost.iter("table")).findall("tbody/tr")) == [[], ["1"] * 3]
    summary = section(root, "summary")
    the_map = next(t for t in summary.iter("table") if t.get("id") == "map-table")
    assert sorted(marks(the_map.findall("tbody/tr"))) == [["1"] * 6, ["2"]]  # a cell of wanda has failed
    points = [e for e in cost.iter() if "hollow" in (e.get("class") or "")]
    assert len(points) == 4
    said = (folder / "report.md").read_text(encoding="utf-8")
    costs = said[said.index("## Cost") : said.index("## How long")]
    assert re.search(r"^\| snip \| 1 \|.*(\[1\] \|.*){3}$", costs, flags=re.M)
    assert "[3]" not in costs


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [make_cell(DENSE)],
        [make_cell(each=())],
        [replace(bare(make_cell()), error="x")],
        [make_cell(DENSE, score=0.0, each=(0.0,) * 9), make_cell(score=0.0, each=(0.0,) * 9)],
        [replace(make_cell(metric="CIDEr"), score=140.0, each=(130.0, 150.0)), make_cell(DENSE)],
    ],
)
def test_little_or_odd_data_make_a_report_too(cells, tmp_path):
    for known in ([bare(make_cell()), *map(bare, cells)], []):
        assert len(write_report(cells, [], known, tmp_path, "t")) == len(FILES)
        read_page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MultiflowError, match="cannot write"):
        write_report([], [], [], tmp_path / "file", "t")
