from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from multiflow.report.palette import MARKERS, Look
from multiflow.report.svg import HEIGHT, WIDTH, Point, Reference, Series, layer_bars, line_chart, marker, name
from multiflow.types import Layer

SVG = "{http://www.w3.org/2000/svg}"
BLUE = Look("blue", "circle")


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


LAYOUT = [Layer(f"{group}.layers.{i // 2}.l{i % 2}", (2, 2), group) for group in ("vision", "text") for i in range(4)]


def bars(shares, groups):
    layers = {layer.name: share for layer, share in zip(LAYOUT, shares, strict=True)}
    return ElementTree.fromstring(layer_bars("where", LAYOUT, layers, groups, 0.5, BLUE))


def test_a_bar_is_as_high_as_its_share_of_zeros():
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    drawn = bars(shares, {"vision": 0.25, "text": 0.65})
    found = [g for g in drawn if g.get("class") == "bar"]
    assert [g.find(f"{SVG}title").text.split(":")[0] for g in found] == [layer.name for layer in LAYOUT]
    column, bar = zip(*(g.findall(f"{SVG}rect") for g in found), strict=True)
    for share, whole, part in zip(shares, column, bar, strict=True):
        assert float(part.get("height")) == pytest.approx(share * float(whole.get("height")), abs=0.02)
        bottom = [float(r.get("y")) + float(r.get("height")) for r in (whole, part)]
        assert bottom[0] == pytest.approx(bottom[1], abs=0.02)
    edges = [(float(r.get("x")), float(r.get("x")) + float(r.get("width"))) for r in bar]
    assert all(a[1] <= b[0] for a, b in pairwise(edges))
    assert edges[0][0] >= 0
    assert edges[-1][1] <= float(drawn.get("viewBox").split()[2])


def test_what_has_collapsed_is_flagged_and_nothing_else():
    drawn = bars([0.5, 0.995, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0], {"vision": 0.62, "text": 1.0})
    gone = [g.find(f"{SVG}title").text for g in drawn.iter(f"{SVG}g") if "gone" in g.get("class", "")]
    assert [re.split(r"[:,]", text)[0] for text in gone] == ["text", *(LAYOUT[i].name for i in (1, 4, 5, 6, 7))]
    assert all(text.endswith("collapsed") for text in gone)
    flags = [g for g in drawn.iter(f"{SVG}g") if g.find(f"{SVG}path") is not None]
    assert len(flags) == 5
    assert len(bars([0.5] * 8, {"vision": 0.5, "text": 0.5}).findall(f".//{SVG}path")) == 0


@pytest.mark.parametrize("shape", MARKERS)
def test_markers_lie_where_they_are_put(shape):
    drawn = ElementTree.fromstring(marker(Look("blue", shape), 10, 20, 5))
    numbers = [float(n) for value in drawn.attrib.values() for n in re.findall(r"-?[\d.]+", value)]
    assert all(-30 < n < 30 for n in numbers)
    assert drawn.tag == {"circle": "circle", "square": "rect"}.get(shape, "polygon")


def test_the_markers_differ():
    assert len({marker(Look("blue", shape)) for shape in MARKERS}) == len(MARKERS)


def test_a_name_is_escaped():
    assert "a&lt;b" in name("a<b", BLUE)
