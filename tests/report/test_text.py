from __future__ import annotations

import pytest

from multiflow.report.text import count, day, millions, nominal, number, percent, seconds, setting, size

NBSP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [(0, 0, "0"), (1, 1, "100.0"), (0.996, 0, "99"), (0.00001, 1, "0.1"), (0.63, 0, "63"), (0.6349, 1, "63.5")],
)
def test_percent_never_rounds_to_nothing_or_to_everything(share, digits, text):
    assert percent(share, digits) == f"{text}{NBSP}%"


def test_numbers_with_units():
    assert [number(v) for v in (0.5, 100, 1 / 3)] == ["0.5", "100", "0.33"]
    assert [number(v, 0) for v in (10.4, 0.3, 30.0)] == ["10", "0", "30"]
    assert [nominal(v) for v in (0.975, 0.98)] == [f"97.5{NBSP}%", f"98{NBSP}%"]
    assert [seconds(v).split(NBSP)[0] for v in (0.05, 9.94, 9.96, 130)] == ["0.05", "9.9", "10", "130"]
    assert [size(v).replace(NBSP, " ") for v in (12, 1_234, 22_900_000)] == ["12 B", "1 kB", "22.9 MB"]


def test_small_words():
    assert (count(1, "layer"), count(0, "layer"), count(13, "scene")) == ("one layer", "no layers", "13 scenes")
    assert millions(184_025_088) == "184.0 million"
    assert setting((0.63, 0.9)) == "0.63, 0.9"
    assert day("yesterday") == "yesterday"
