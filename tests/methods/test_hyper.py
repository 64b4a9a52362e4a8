from __future__ import annotations

import numpy as np
import pytest

from multiflow.base.errors import MultiflowError
from multiflow.methods.hyper import typed

DEFAULTS = {"steps": 60, "ridge": 1e-5, "schedule": "exp", "keep": True, "free": None}


@pytest.mark.parametrize(("name", "given", "expected"), [
    ("steps", 3, 3),
    ("steps", 3.0, 3),
    ("steps", np.int64(3), 3),
    ("ridge", 1, 1.0),
    ("ridge", np.float32(0.5), 0.5),
    ("schedule", "linear", "linear"),
    ("keep", False, False),
    ("free", "x", "x"),
    ("free", None, None),
])  # fmt: skip
def test_values_get_the_type_of_their_default(name, given, expected):
    value = typed("p", {name: given}, DEFAULTS)[name]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("name", "given", "said"), [
    ("steps", "x", "'steps' of pruner 'p' is 'x' (str); expected a whole number, such as its default 60"),
    ("steps", 2.5, "'steps' of pruner 'p' is 2.5 (float); expected a whole number"),
    ("steps", True, "'steps' of pruner 'p' is True (bool); expected a whole number"),
    ("steps", None, "'steps' of pruner 'p' is None (NoneType); expected a whole number"),
    ("steps", float("inf"), "'steps' of pruner 'p' is inf (float); expected a whole number"),
    ("ridge", "1e-5", "'ridge' of pruner 'p' is '1e-5' (str); expected a finite number, such as its default 1e-05"),
    ("ridge", float("nan"), "'ridge' of pruner 'p' is nan (float); expected a finite number"),
    ("ridge", [1.0], "'ridge' of pruner 'p' is [1.0] (list); expected a finite number"),
    ("schedule", 3, "'schedule' of pruner 'p' is 3 (int); expected a word, such as its default 'exp'"),
    ("keep", 1, "'keep' of pruner 'p' is 1 (int); expected True or False"),
])  # fmt: skip
def test_values_of_another_type_are_refused(name, given, said):
    with pytest.raises(MultiflowError) as caught:
        typed("p", {name: given}, DEFAULTS)
    assert str(caught.value).startswith(said)


def test_values_that_are_not_given_are_left_out():
    assert typed("p", {}, DEFAULTS) == {}
