from __future__ import annotations

from types import SimpleNamespace

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.families.family import check_rules, check_towers, complete


def check(**changes: object) -> None:
    """Check the sizes of a small model, some of which are others."""
    tower = {"width": 4, "heads": 2, "act": "gelu", "depth": 0}
    vision, text = tower, {**tower, "eps": 1e-6, "encoder_width": 4}
    for name, value in changes.items():
        vision = {**vision, name: value}
    config = SimpleNamespace(image_size=4, patch_size=2, vision=vision, text=text)
    check_towers(config, ("image_size",), fractions=("text.eps",), may_be_zero=("vision.depth", "text.depth"))


def test_sizes_are_completed_in_the_order_of_the_defaults():
    assert list(complete("text", {"b": 1}, {"a": 0, "b": 0}).items()) == [("a", 0), ("b", 1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"widht": 1}, "unknown size 'text.widht'; known: text.width; did you mean 'text.width'"),
        ("big", "text is 'big'"),
    ],
)
def test_a_section_that_is_wrong_is_named(given, message):
    with pytest.raises(MultiflowError, match=message):
        complete("text", given, {"width": 2})


@pytest.mark.parametrize("size", [0, 1.5, "4", None])
def test_a_size_is_a_whole_number_of_at_least_one(size):
    with pytest.raises(MultiflowError, match=rf"vision.heads is {size!r}; it must be a number of at least 1"):
        check(heads=size)


def test_fractions_and_zeros_where_they_are_said_to_be_fine():
    check()


def test_sizes_fit_together():
    with pytest.raises(MultiflowError, match="vision.width is 4; it must be a multiple of vision.heads"):
        check(heads=3)


def test_a_broken_rule_is_named():
    check_rules({"width": 4}, [("width", "even", True)])
    with pytest.raises(MultiflowError, match="width is 5; it must be even"):
        check_rules({"width": 5}, [("width", "even", False)])


def test_an_unknown_activation_is_named():
    with pytest.raises(MultiflowError, match="unknown activation 'gleu'.*did you mean 'gelu'"):
        check(act="gleu")
