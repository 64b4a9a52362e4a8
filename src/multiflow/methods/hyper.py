"""Hyper-parameters as they are given: of the type of their defaults, or refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from multiflow.base.errors import MultiflowError

KINDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a word"}


def typed(pruner: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values given, each as the type of its default; a default that is None takes anything.

    A whole number does for a number, a number without a fraction for a whole one; numpy's numbers are numbers.

    >>> typed("itersnip", {"steps": 60.0, "ratio": 1}, {"steps": 10, "ratio": 0.5})
    {'steps': 60, 'ratio': 1.0}

    Raises:
        MultiflowError: a value of another type than the default.
    """
    return {name: _typed(pruner, name, value, defaults[name]) for name, value in given.items()}


def _typed(pruner: str, name: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if kind not in KINDS or (kind in (bool, str) and isinstance(value, kind)):
        return value
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if number and (kind is float or (kind is int and value == int(value))):
        return kind(value)
    raise MultiflowError(
        f"'{name}' of pruner '{pruner}' is {value!r} ({type(value).__name__}); expected {KINDS[kind]}, "
        f"such as its default {default!r}"
    )
