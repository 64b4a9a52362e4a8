from __future__ import annotations

import json
import re
import shutil
from html import unescape

import pytest

from multiflow.report.charts import Look, Point, Series, line_chart
from multiflow.report.document import Document, Drawing, Drawings, Section, page
from multiflow.report.tables import Column, Row, Table, TableCell
from tests import processes

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser")

ROWS = (("none", None, "1"), ("b", 1.0, "1 2"), ("c", 3.0, "2"), ("also none", None, None))
PROBE = """
const all = (selector) => [...document.querySelectorAll(selector)];
const text = (mark) => mark.dataset.tip ?? mark.textContent;
const rows = (selector) => all("#s tbody tr" + selector).map((row) => row.cells[0].textContent);
const stops = (box) => all(box + " [tabindex='0']").map(text);
const press = (key) => {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Arrow" + key, bubbles: true }));
  return text(document.activeElement);
};
const found = { stops: [stops("table"), stops("svg")] };
const value = all("thead button")[1];
value.focus();
found.walk = ["Down", "Down", "Down", "Up", "Left", "Right", "Up"].map(press);
press("Down");
found.moved = stops("table");
const sort = () => { value.click(); return [value.parentNode.ariaSort, rows("")]; };
found.sorted = [sort(), sort()];
const choose = (tier) => { all(`[data-choose="${tier}"]`)[0].click(); return rows(":not([hidden])").sort(); };
found.chosen = ["1", "2", ""].map(choose);
found.again = stops("table");
all("svg [tabindex='0']")[0].focus();
found.marks = ["Right", "Down", "Left", "Left"].map(press);
const foldable = all("details.folds");
const state = () => foldable.map((fold) => fold.open);
found.folds = [state()];
location.hash = "#t-inside";
dispatchEvent(new HashChangeEvent("hashchange"));
found.folds.push(state());
document.getElementById("folds").click();
found.folds.push(state());
document.getElementById("folds").click();
found.folds.push(state());
dispatchEvent(new Event("beforeprint"));
found.folds.push(all("details").map((fold) => fold.open));
dispatchEvent(new Event("afterprint"));
found.folds.push(state());
found.wide = all(".scroll").map((box) => box.classList.contains("wide"));
found.said = all("td[data-tip]")[0].getAttribute("aria-description");
found.mark = all("svg [data-tip]")[0].getAttribute("aria-label");
document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(found) }));
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a browser makes of a page with a table, a chart and buttons for tiers."""
    columns = (Column("name"), Column("value", class_="number"))
    rows = [
        Row([TableCell(name, name), TableCell("-", value, tip=f"tip {name}" if value else None)], name, tiers)
        for name, value, tiers in ROWS
    ]
    lines = {"x": (1, 2), "y": (3, 4)}
    series = [
        Series(name, Look("blue", "circle"), tuple(Point(0.1 * y, y, y, y, f"{name}{y}") for y in ys))
        for name, ys in lines.items()
    ]
    drawing = Drawings([Drawing(line_chart("c", series, [], x_label="zeros"))])
    wide = Table([Column(f"a long heading {i}") for i in range(30)], [Row([TableCell("x")] * 30)], "w")
    sections = [Section("s", "S", [Table(columns, rows, "t"), drawing])]
    sections += [
        Section(name, name, [wide], folded=folded) for name, folded in (("o", False), ("t", True), ("u", True))
    ]
    tiers = [("", "all"), ("1", "tier 1"), ("2", "tier 2")]
    text = page(Document("t", "", "", [], sections, tiers=tiers))
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    flags += (f"--user-data-dir={folder / 'profile'}",)
    ran = processes.run(BROWSER, *flags, "--dump-dom", (folder / "page.html").as_uri(), check=True)
    return json.loads(unescape(re.search(r"<pre>(.*)</pre>", ran.stdout)[1]))


def test_a_table_and_a_chart_are_one_tab_stop_each(found):
    assert found["stops"] == [["name"], ["x1"]]
    assert found["moved"] == ["tip b"]


def test_arrow_keys_go_from_value_to_value(found):
    assert found["walk"] == ["tip b", "tip c", "tip c", "tip b", "tip b", "tip b", "value"]
    assert found["marks"] == ["x2", "y4", "y3", "y3"]


def test_rows_without_a_figure_stand_last_whichever_way_a_table_is_sorted(found):
    assert found["sorted"] == [
        ["descending", ["c", "b", "none", "also none"]],
        ["ascending", ["b", "c", "none", "also none"]],
    ]


def test_a_tier_shows_the_rows_of_all_pruners_that_it_has(found):
    assert found["chosen"] == [["also none", "b", "none"], ["also none", "b", "c"], ["also none", "b", "c", "none"]]
    assert found["again"] == ["name"]  # the table can be reached whatever row had the focus


def test_sections_fold_and_open_by_a_link_a_button_and_for_paper(found):
    first, linked, opened, shut, printed, after = found["folds"]
    assert (first, linked) == ([True, False, False], [True, True, False])
    assert (opened, shut) == ([True] * 3, [False] * 3)
    assert all(printed)
    assert after == [False] * 3


def test_a_table_that_is_wider_than_its_column_says_that_it_scrolls(found):
    assert found["wide"][:2] == [False, True]


def test_what_a_value_says_is_said_to_screen_readers(found):
    assert found["said"] == "tip b"
    assert found["mark"] == "x1"
