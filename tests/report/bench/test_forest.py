from __future__ import annotations

from xml.etree import ElementTree

from multiflow.report.bench.bootstrap import Difference
from multiflow.report.bench.forest import WIDTH, forest
from multiflow.report.palette import looks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(**found):
    tips = {name: f"all of {name}" for name in found}
    return ElementTree.fromstring(forest("75", found, looks(found), "multiflow", tips))


def lines(root):
    return {e.get("data-name"): e for e in root.iter(f"{SVG}g") if (e.get("class") or "").startswith("line")}


def test_the_highest_difference_is_on_top_with_its_interval_and_its_value():
    root = drawn(
        wanda=Difference(-1.0, -3.0, 1.0, (0, 1)), lobs=Difference(4.0, 2.0, 6.0, (0,)), l2=Difference(0, -2, 2, (0, 1))
    )
    found = lines(root)
    assert list(found) == ["lobs", "l2", "wanda"]
    points = [e.find(f".//{SVG}g[@class='series']/{SVG}g").get("class") for e in found.values()]
    assert points == ["point hollow", "point", "point"]
    texts = [[t.text for t in e.iter(f"{SVG}text")] for e in found.values()]
    assert texts == [["lobs", "+4.0"], ["l2", "0.0"], ["wanda", "\N{MINUS SIGN}1.0"]]
    assert found["lobs"].find(f"{SVG}title").text == "all of lobs"
    ends = [float(line.get(x)) for line in root.iter(f"{SVG}line") for x in ("x1", "x2")]
    assert 0 <= min(ends) < max(ends) <= WIDTH


def test_what_is_far_off_is_an_arrow_at_the_edge():
    near = {f"p{i}": Difference(-i, -i - 1.0, -i + 1.0, (0,)) for i in range(4)}
    root = drawn(**near, random=Difference(-400.0, -410.0, -390.0, (0,)))
    arrows = [e.get("data-name") for e in lines(root).values() for p in e.iter(f"{SVG}path") if p.get("class") == "off"]
    assert arrows == ["random"]
    assert all(not e.findall(f".//{SVG}line") for e in [lines(root)["random"]])


def test_one_pruner_that_is_equal_makes_a_drawing_too():
    assert len(lines(drawn(wanda=Difference(0.0, 0.0, 0.0, (0,))))) == 1
