from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from multiflow.base.types import Layer
from multiflow.report.bars import layer_bars
from multiflow.report.palette import Look

SVG = "{http://www.w3.org/2000/svg}"
BLUE = Look("blue", "circle")
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
