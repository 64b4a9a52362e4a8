from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from multiflow import list_pruners
from multiflow.base.types import Layer
from multiflow.report import document
from multiflow.report.bars import layer_bars
from multiflow.report.bench.quality import MOST_TINT
from multiflow.report.charts import (
    COLOURS,
    DENSE_LOOK,
    FOREST,
    HEIGHT,
    LOOKS,
    MARKERS,
    WIDTH,
    Look,
    Point,
    Reference,
    Series,
    forest,
    line_chart,
    log_axis,
    looks,
    marker,
    pruner_name,
    round_axis,
)

SVG = "{http://www.w3.org/2000/svg}"
BLUE = Look("blue", "circle")
LAYOUT = [Layer(f"{group}.layers.{i // 2}.l{i % 2}", (2, 2), group) for group in ("vision", "text") for i in range(4)]
CSS = (Path(document.__file__).parent / "templates" / "page.css").read_text()


def difference(value, low, high, seeds):
    return SimpleNamespace(value=value, low=low, high=high, seeds=seeds)


def point(x, y):
    return Point(x, y, max(y - 5, 0), min(y + 5, 100), f"at {x}: {y}")


def chart(*lines, references=()):
    series = [Series(f"m{i}", BLUE, tuple(point(x, y) for x, y in line)) for i, line in enumerate(lines)]
    return ElementTree.fromstring(line_chart("a <chart>", series, references, x_label="zeros"))


def test_points_stand_where_their_values_are():
    drawn = chart([(0.5, 0), (0.6, 50), (0.9, 100)])
    path = drawn.find(f".//{SVG}polyline").get("points")
    places = [tuple(map(float, pair.split(","))) for pair in path.split()]
    xs, ys = zip(*places, strict=True)
    assert (xs[1] - xs[0]) * 3 == pytest.approx(xs[2] - xs[1], abs=0.05)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.05)
    assert ys[0] > ys[2]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert [t.text for t in drawn.iter(f"{SVG}title")] == ["at 0.5: 0", "at 0.6: 50", "at 0.9: 100"]
    assert drawn.get("aria-label") == "a <chart>"


@pytest.mark.parametrize("ends", [(0.5, 0.5, 0.5, 0.5), (100, 100, 99), (50, 49, 48, 0), (3, 90, 2, 1, 0)])
def test_labels_of_lines_do_not_overlap(ends):
    drawn = chart(*([(0.5, 60), (0.9, end)] for end in ends))
    labels = [g.find(f"{SVG}text") for g in drawn.iter(f"{SVG}g") if "label" in g.get("class", "")]
    heights = sorted(float(label.get("y")) for label in labels)
    assert len(heights) == len(ends)
    assert all(low + 14.9 <= high for low, high in pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] < HEIGHT - 30
    order = [label.text for label in sorted(labels, key=lambda label: float(label.get("y")))]
    assert order == [f"m{i}" for i in sorted(range(len(ends)), key=lambda i: -ends[i])]  # best on top


def test_one_sparsity_is_enough():
    assert chart([(0.75, 40)]).find(f".//{SVG}polyline") is not None


def test_references_are_labelled():
    drawn = chart([(0.5, 40)], references=(Reference("dense", 92.5), Reference("chance", 0.5, dotted=True)))
    said = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "dense 92.5" in said
    assert "chance 0.5" in said


@pytest.mark.parametrize("shape", MARKERS)
def test_markers_lie_where_they_are_put(shape):
    drawn = ElementTree.fromstring(marker(Look("blue", shape), 10, 20, 5))
    numbers = [float(n) for value in drawn.attrib.values() for n in re.findall(r"-?[\d.]+", value)]
    assert all(-30 < n < 30 for n in numbers)
    assert drawn.tag == {"circle": "circle", "square": "rect"}.get(shape, "polygon")


def test_the_markers_differ():
    assert len({marker(Look("blue", shape)) for shape in MARKERS}) == len(MARKERS)


def test_a_name_is_escaped():
    assert "a&lt;b" in pruner_name("a<b", BLUE)


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [
        (12, 131, 0, 150),
        (0, 0, 0, 1),
        (90.2, 97.9, 90, 98),
        (3, 64, 0, 80),
        (0.001, 0.004, 0, 0.004),
        (50, 50, 50, 100),
    ],
)
def test_round_axes_hold_their_values(low, high, first, last):
    axis = round_axis("", low, high)
    values = [value for value, _ in axis.ticks]
    assert (values[0], values[-1]) == (pytest.approx(first), pytest.approx(last))
    assert (axis.low, axis.high) == (values[0], values[-1])
    assert 2 <= len(values) <= 7


def test_log_axes_are_even_in_factors():
    axis = log_axis("seconds", 0.4, 50)
    place = axis.scale(0, 100)
    assert place(1) - place(0.5) == pytest.approx(place(40) - place(20))
    assert 0 < place(0.4) < place(50) < 100
    assert [text for _, text in axis.ticks] == ["0.3", "1", "3", "10", "30", "100"]


def test_a_mark_that_rests_on_less_is_hollow():
    points = (point(0.5, 40), Point(0.9, 20, 15, 25, "few", hollow=True))
    drawn = ElementTree.fromstring(line_chart("chart", [Series("a", BLUE, points)], [], x_label="zeros"))
    looks = [g.get("class") for g in drawn.iter(f"{SVG}g") if "point" in g.get("class", "")]
    assert looks == ["point", "point hollow"]


def test_quiet_lines_have_their_names_too_and_lie_below():
    loud = Series("loud", BLUE, (point(0.5, 40), point(0.9, 20)))
    quiet = Series("quiet", BLUE, (point(0.5, 30), point(0.9, 10)), quiet=True)
    drawn = ElementTree.fromstring(line_chart("chart", [loud, quiet], [], x_label="zeros"))
    lines = [g.get("data-name") for g in drawn.iter(f"{SVG}g") if g.get("class", "").startswith("series")]
    assert lines == ["quiet", "loud"]
    labels = {g.get("data-name"): g.get("class") for g in drawn.iter(f"{SVG}g") if "label" in g.get("class", "")}
    assert labels == {"loud": "label c-blue", "quiet": "label quiet c-blue"}


def test_a_chart_of_many_lines_is_as_high_as_their_names():
    drawn = chart(*([(0.5, 60), (0.9, i)] for i in range(30)))
    heights = sorted(
        float(g.find(f"{SVG}text").get("y")) for g in drawn.iter(f"{SVG}g") if "label" in g.get("class", "")
    )
    assert all(low + 14.9 <= high for low, high in pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] < float(drawn.get("viewBox").split()[3]) - 30


def bars(shares, groups):
    layers = {layer.name: share for layer, share in zip(LAYOUT, shares, strict=True)}
    return ElementTree.fromstring(layer_bars("where", LAYOUT, layers, groups, 0.5, BLUE))


def bars_of(drawn):
    """Title of each mark -> its bars as (x, y of the foot, height), and the width of all."""
    group = next(g for g in drawn.iter(f"{SVG}g") if g.get("class") == "bars")
    found = {}
    for mark in group:
        path = mark if mark.tag == f"{SVG}path" else mark.find(f"{SVG}path[@class='bar']")
        numbers = re.findall(r"M([\d.]+) ([\d.]+)v-([\d.]+)", path.get("d"))
        found[mark.find(f"{SVG}title").text] = [tuple(map(float, one)) for one in numbers]
    return found, float(group.get("stroke-width"))


def test_a_bar_is_as_high_as_its_share_of_zeros():
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    drawn = bars(shares, {"vision": 0.25, "text": 0.65})
    found, thick = bars_of(drawn)
    assert [title.split(":")[0] for title in found] == [layer.name for layer in LAYOUT]
    band = drawn.find(f".//{SVG}rect[@class='band']")
    foot = float(band.get("y")) + float(band.get("height"))
    places = [bar for (bar,) in found.values()]
    for share, (_, y, height) in zip(shares, places, strict=True):
        assert height == pytest.approx(share * float(band.get("height")), abs=0.02)
        assert y == pytest.approx(foot, abs=0.02)
    assert all(a[0] + thick <= b[0] for a, b in pairwise(places))
    assert places[0][0] - thick / 2 >= 0
    assert places[-1][0] + thick / 2 <= float(drawn.get("viewBox").split()[2])


def test_neighbours_of_one_group_with_one_share_are_one_mark():
    found, _ = bars_of(bars([0.5, 0.5, 0.5, 0.3, 0.3, 0.5, 0.5, 0.5], {"vision": 0.45, "text": 0.45}))
    assert [len(of) for of in found.values()] == [3, 1, 1, 3]
    assert next(iter(found)) == f"{LAYOUT[0].name} to {LAYOUT[2].name}, 3 layers: 50.0\N{NO-BREAK SPACE}% zeros"


def test_what_has_collapsed_is_flagged_and_nothing_else():
    drawn = bars([0.5, 0.995, 0.5, 0.5, 1.0, 1.0, 0.999, 1.0], {"vision": 0.62, "text": 1.0})
    gone = [g.find(f"{SVG}title").text for g in drawn.iter(f"{SVG}g") if "gone" in g.get("class", "")]
    names = [layer.name for layer in LAYOUT]
    alone = ["text", names[1], f"{names[4]} to {names[5]}", names[6], names[7]]
    assert [re.split(r"[:,]", text)[0] for text in gone] == alone
    assert all(text.endswith("collapsed") for text in gone)
    flags = [p.get("d").count("z") for p in drawn.iter(f"{SVG}path") if p.get("class") == "flag"]
    assert flags == [1, 2, 1, 1]
    even = bars([0.5] * 8, {"vision": 0.5, "text": 0.5})
    assert {p.get("class") for p in even.iter(f"{SVG}path")} == {"bar"}


def drawn(**found):
    tips = {name: f"all of {name}" for name in found}
    return ElementTree.fromstring(forest("75", found, looks(found), "multiflow", tips))


def lines(root):
    return {e.get("data-name"): e for e in root.iter(f"{SVG}g") if (e.get("class") or "").startswith("line")}


def test_the_highest_difference_is_on_top_with_its_interval_and_its_value():
    root = drawn(
        wanda=difference(-1.0, -3.0, 1.0, (0, 1)), lobs=difference(4.0, 2.0, 6.0, (0,)), l2=difference(0, -2, 2, (0, 1))
    )
    found = lines(root)
    assert list(found) == ["lobs", "l2", "wanda"]
    points = [e.find(f".//{SVG}g[@class='series']/{SVG}g").get("class") for e in found.values()]
    assert points == ["point hollow", "point", "point"]
    texts = [[t.text for t in e.iter(f"{SVG}text")] for e in found.values()]
    assert texts == [["lobs", "+4.0"], ["l2", "0.0"], ["wanda", "\N{MINUS SIGN}1.0"]]
    assert found["lobs"].find(f"{SVG}title").text == "all of lobs"
    ends = [float(line.get(x)) for line in root.iter(f"{SVG}line") for x in ("x1", "x2")]
    assert 0 <= min(ends) < max(ends) <= FOREST


def test_what_is_far_off_is_an_arrow_at_the_edge():
    near = {f"p{i}": difference(-i, -i - 1.0, -i + 1.0, (0,)) for i in range(4)}
    root = drawn(**near, random=difference(-400.0, -410.0, -390.0, (0,)))
    arrows = [e.get("data-name") for e in lines(root).values() for p in e.iter(f"{SVG}path") if p.get("class") == "off"]
    assert arrows == ["random"]
    assert all(not e.findall(f".//{SVG}line") for e in [lines(root)["random"]])


def test_one_pruner_that_is_equal_makes_a_drawing_too():
    assert len(lines(drawn(wanda=difference(0.0, 0.0, 0.0, (0,))))) == 1


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def mixed(colour: str, share: float, ground: str) -> str:
    """The colour over a ground, as ``color-mix`` and ``opacity`` do it."""
    pairs = [(int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def themes(name: str) -> tuple[str, str]:
    match = re.search(rf"--{name}: light-dark\((#\w+), (#\w+)\)", CSS)
    assert match, name
    return match[1], match[2]


def test_every_pruner_has_a_look_of_its_own():
    assert set(list_pruners()) <= set(LOOKS)
    assert len({look.colour for look in LOOKS.values()}) == len(LOOKS)
    assert all(look.colour in COLOURS and look.marker in MARKERS for look in LOOKS.values())


def test_looks_do_not_depend_on_the_company():
    assert looks(["random", "multiflow"])["multiflow"] == looks(["multiflow", "mine"])["multiflow"]


def test_other_methods_get_looks_that_nobody_has():
    names = [*LOOKS, *(f"mine-{i}" for i in range(10))]
    found = looks(names)
    assert list(found) == names
    assert len({*found.values(), DENSE_LOOK}) == len(names) + 1


def test_colours_can_be_read_in_both_themes():
    papers, cards = themes("paper"), themes("raised")
    bands = themes("band")
    for name in (*COLOURS, "red", "soft"):  # all are colours of text: of names in sentences and of lines in charts
        for colour, *grounds in zip(themes(name), papers, cards, bands, strict=True):
            assert min(contrast(colour, ground) for ground in grounds) >= 4.5, (name, colour)
    for red, wash in zip(themes("red"), themes("red-wash"), strict=True):
        assert contrast(red, wash) >= 4.5


def test_figures_can_be_read_on_the_most_colour_of_a_cell():
    for name in ("blue", "amber"):
        for colour, band, ink in zip(themes(name), themes("band"), themes("ink"), strict=True):
            assert contrast(ink, mixed(colour, MOST_TINT / 100, band)) >= 4.5
    for blue, paper, ink in zip(themes("blue"), themes("paper"), themes("ink"), strict=True):
        assert contrast(paper, blue) >= 4.5  # the best of the map
        assert contrast(ink, mixed(blue, 0.17, paper)) >= 4.5  # what is near it


def test_small_marks_have_the_colour_of_text():
    assert re.search(r"^\.few \{[^}]*color: var\(--ink\)", CSS, re.M)
    assert not re.search(r"^\.lean small \{[^}]*color", CSS, re.M)


def test_pruners_on_one_page_have_colours_of_their_own():
    for names in (["snip", "wanda", "sparsegpt"], ["mine", "yours", "multiflow"], [*LOOKS, "mine"]):
        assert len({look.colour for look in looks(names).values()}) == len(names)
    everyone = looks([*LOOKS, *(f"mine {i}" for i in range(9))])
    assert len(set(everyone.values())) == len(everyone)
    assert looks(["multiflow", "mine"])["multiflow"] == LOOKS["multiflow"]
