from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from multiflow.report.palette import MARKERS, Look
from multiflow.report.svg import HEIGHT, WIDTH, Point, Reference, Series, line_chart, log_axis, marker, name, round_axis

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


def test_quiet_lines_have_no_label_and_lie_below():
    loud = Series("loud", BLUE, (point(0.5, 40), point(0.9, 20)))
    quiet = Series("quiet", BLUE, (point(0.5, 30), point(0.9, 10)), quiet=True)
    drawn = ElementTree.fromstring(line_chart("chart", [loud, quiet], [], x_label="zeros"))
    lines = [g.get("data-name") for g in drawn.iter(f"{SVG}g") if g.get("class", "").startswith("series")]
    assert lines == ["quiet", "loud"]
    assert [g.get("data-name") for g in drawn.iter(f"{SVG}g") if g.get("class", "").startswith("label")] == ["loud"]
