from __future__ import annotations

import re
from pathlib import Path

import multiflow.report.palette as palette
from multiflow import list_pruners
from multiflow.report.palette import COLOURS, DENSE, LOOKS, MARKERS, looks

CSS = Path(palette.__file__).with_name("page.css").read_text()


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def themes(name: str) -> tuple[str, str]:
    match = re.search(rf"--{name}: light-dark\((#\w+), (#\w+)\)", CSS)
    assert match, name
    return match[1], match[2]


def test_every_pruner_has_a_look_of_its_own():
    assert set(list_pruners()) <= set(LOOKS)
    assert len(set(LOOKS.values())) == len(LOOKS)
    assert all(look.colour in COLOURS and look.marker in MARKERS for look in LOOKS.values())


def test_looks_do_not_depend_on_the_company():
    assert looks(["random", "multiflow"])["multiflow"] == looks(["multiflow", "mine"])["multiflow"]


def test_other_methods_get_looks_that_nobody_has():
    names = [*LOOKS, *(f"mine-{i}" for i in range(10))]
    found = looks(names)
    assert list(found) == names
    assert len({*found.values(), DENSE}) == len(names) + 1


def test_colours_can_be_read_in_both_themes():
    papers, cards = themes("paper"), themes("raised")
    for name in (*COLOURS, "red", "ink", "soft"):
        least = 4.5 if name in ("red", "ink", "soft") else 3.0  # text; marks and large text
        for colour, paper, card in zip(themes(name), papers, cards, strict=True):
            assert min(contrast(colour, paper), contrast(colour, card)) >= least, (name, colour)
    for red, wash in zip(themes("red"), themes("red-wash"), strict=True):
        assert contrast(red, wash) >= 4.5
