from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

from PIL import Image

from multiflow.base.types import Layer
from multiflow.bench.demo import Demo, Example, Find, mask_path
from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.report.charts import LEAVES

LAYOUT = (
    Layer("vision.layers.0.q", (4, 4), "vision"),
    Layer("vision.layers.0.k", (4, 4), "vision"),
    Layer("vision.layers.1.q", (4, 4), "vision"),
    Layer("text.layer.0.q", (4, 8), "text"),
    Layer("fusion.layer.1.q", (8, 4), "fusion"),
)
HOSTILE = """a <script>alert("1")</script> star & a 'disc'"""
VERSIONS = {"multiflow": "0.1.0", "torch": "2.13.0"}


def read_page(html: str) -> ElementTree.Element:
    """The root of a page that is well-formed, has unique ids, runs our script alone and loads nothing."""
    assert html.startswith("<!doctype html>\n")
    assert html.count("<script") == 1
    assert set(re.findall(r"<(\w+)[^<>]*/>", html)) <= {*LEAVES, "img", "meta"}
    assert set(re.findall(r"\w+://[^\s\"'<>]*", html)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|<link|<iframe|import\(|fetch\(|XMLHttpRequest|srcset", html)
    root = ElementTree.fromstring(html.removeprefix("<!doctype html>"))
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert all(e.get("aria-labelledby") in ids for e in root.iter("section"))
    assert {e.get("href") for e in root.iter("a")} <= {f"#{one}" for one in ids}
    assert all(e.get("src", "").startswith("data:image/png;base64,") for e in root.iter("img"))
    return root


def text_of(element: ElementTree.Element) -> str:
    return re.sub(r"\s+", " ", "".join(element.itertext())).strip()


def section(root: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(s for s in root.iter("section") if s.get("id") == name)


def hits(tr1: float, ir1: float, scenes: int = 200) -> list[float]:
    """Hits that fit two recalls: the scenes in order, until they are used up."""
    return [50.0 * ((i < tr1 * scenes / 100) + (i < ir1 * scenes / 100)) for i in range(scenes)]


def make_row(
    method: str, sparsity: float, tr1: float, ir1: float, text: float | None = None, layer: float | None = None
) -> tuple[Cell, Pruning]:
    """One sparse model; ``text`` is the share of zeros of the text modality, ``layer`` that of the first layer."""
    figures = {
        f"{kind}{way}@{k}": of for kind in ("", "ITC ") for way, of in (("TR", tr1), ("IR", ir1)) for k in (1, 5, 10)
    }
    cell = Cell(
        *(f"{method}-{sparsity}", "xvlm-shapes", method, sparsity, "retrieval", 0, "demo"),
        score=(tr1 + ir1) / 2,
        metric="mean R@1",
        figures=figures,
        each=hits(tr1, ir1),
        versions=VERSIONS,
    )
    shares = {"vision.layers.0.q": layer, "text.layer.0.q": text}
    zeros = [m.size * (sparsity if shares.get(m.name) is None else shares[m.name]) for m in LAYOUT]
    layers = [(m.name, m.group, m.size) for m in LAYOUT]
    return cell, Pruning(method, "xvlm-shapes", method, 0, 1.0, 0.25, 512, 0, layers, {sparsity: zeros})


ROWS = (
    make_row("multiflow", 0.63, 80.0, 82.0),
    make_row("multiflow", 0.9, 40.0, 36.0),
    make_row("magnitude", 0.63, 70.0, 74.0),
    make_row("magnitude", 0.9, 9.0, 7.0, text=0.995, layer=0.9999),
    make_row("random", 0.63, 1.0, 2.0),
    make_row("random", 0.9, 0.5, 0.5),
)


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def make_demo(rows: Sequence[tuple[Cell, Pruning]] = ROWS, **changes: object) -> Demo:
    """A demo of three methods at two sparsities."""
    dense, _ = make_row(DENSE, 0.0, 92.5, 90.5)
    prunings: dict[str, Pruning] = {}
    for cell, pruning in rows:
        known = prunings.get(cell.pruner, pruning)
        prunings[cell.pruner] = replace(known, zeros={**known.zeros, **pruning.zeros})
    finds = (Find("dense", 3, 3), Find("multiflow", 3, 3), Find("magnitude", 7, 3), Find("random", 7, 7))
    values: dict[str, object] = {
        "model": "xvlm-shapes",
        "parameters": 4_321_000,
        "layout": LAYOUT,
        "scenes": 200,
        "shortlist": 16,
        "calibration": 512,
        "dense": dense,
        "cells": tuple(cell for cell, _ in rows),
        "prunings": tuple(prunings.values()),
        "shown": 0.9,
        "examples": (Example(3, finds),),
        "captions": {3: HOSTILE, 7: "a blue star"},
        "pictures": {3: png((255, 0, 0)), 7: png((0, 0, 255))},
        "image_size": 8,
        "phases": {"load": 1.0, "calibrate": 2.0, "evaluate": 37.0},
        "settings": {"out": "runs/demo", "sparsity": (0.63, 0.9), "seed": 5},
        "command": "multiflow demo --seed 5",
        "files": {mask_path(cell.pruner, cell.sparsity): 2345 for cell, _ in rows},
    }
    return Demo(**{**values, **changes})  # type: ignore[arg-type]
