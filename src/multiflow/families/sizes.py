"""Sizes of a model in plain words: completed from defaults and checked, with errors that name the size."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from multiflow.base.errors import MultiflowError, unknown

Rule = tuple[str, str, bool]
"""Name of a size, what it must be, and whether it is."""


def complete(section: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the sizes of a section up with the defaults; a size that has no default is an error that names it.

    >>> complete("vision", {"layers": 4}, {"width": 768, "layers": 12})
    {'width': 768, 'layers': 4}
    """
    if not isinstance(given, Mapping):
        raise MultiflowError(f"{section} is {given!r}; it must map names to sizes: {', '.join(defaults)}")
    for key in given:
        if key not in defaults:
            raise unknown("size", f"{section}.{key}", [f"{section}.{name}" for name in defaults])
    return {**defaults, **given}


def check_sizes(sizes: Mapping[str, Any], *, fractions: Collection[str], may_be_zero: Collection[str]) -> None:
    """Check that sizes are whole numbers of at least 1 (0, or fractions, where said so)."""
    for name, size in sizes.items():
        least = 0 if name in may_be_zero else 1
        whole = isinstance(size, int) or name in fractions
        if not (whole and isinstance(size, int | float) and size >= least):
            raise MultiflowError(f"{name} is {size!r}; it must be a number of at least {least}")


def check_rules(sizes: Mapping[str, Any], rules: Iterable[Rule]) -> None:
    for name, rule, holds in rules:
        if not holds:
            raise MultiflowError(f"{name} is {sizes[name]}; it must be {rule}")


def check_activations(*names: Any) -> None:
    from transformers.activations import ACT2FN

    for name in names:
        if name not in ACT2FN:
            raise unknown("activation", str(name), sorted(ACT2FN))
