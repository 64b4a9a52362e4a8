from __future__ import annotations

import re
from pathlib import Path

import multiflow.report.palette as palette
from multiflow import list_pruners
from multiflow.report.bench.parts import MOST_TINT
from multiflow.report.palette import COLOURS, DENSE, LOOKS, MARKERS, looks

CSS, BENCH = (Path(palette.__file__).with_name(name).read_text() for name in ("page.css", "bench.css"))


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


def test_quiet_marks_can_be_seen():
    found = re.findall(r"^\.quiet (?:polyline|\.point) \{.*opacity: ([.\d]+)", BENCH, re.M)
    assert len(found) == 2
    opacity = min(map(float, found))
    for grey, paper in zip(themes("grey"), themes("paper"), strict=True):
        assert contrast(mixed(grey, opacity, paper), paper) >= 3


def test_small_marks_have_the_colour_of_text():
    assert re.search(r"^\.few \{[^}]*color: var\(--ink\)", BENCH, re.M)
    assert not re.search(r"^\.lean small \{[^}]*color", BENCH, re.M)
