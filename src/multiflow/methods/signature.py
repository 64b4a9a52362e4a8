"""What a pruner's function takes: some things by position, by its kind, and everything else by keyword."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from multiflow.base.errors import MultiflowError

POSITIONAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "scorer": ("weight",),
        "fitter": ("weight", "choose"),
        "solver": ("weights", "count", "select"),
        "learner": ("model", "weights", "loss", "select"),
    }
)
"""What a pruner is given by position, by its kind."""


def check_positional(name: str, kind: str, function: Callable[..., Any]) -> None:
    """Refuse a function that cannot be called with what its kind is given by position."""
    given, signature = POSITIONAL[kind], inspect.signature(function)
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in signature.parameters.values() if p.kind in by_position and p.default is p.empty]
    try:
        signature.bind_partial(*given)
        fits = len(needed) <= len(given)
    except TypeError:
        fits = False
    if not fits:
        raise MultiflowError(
            f"{kind} '{name}' takes {', '.join(needed) or 'nothing'} by position, but is given {', '.join(given)}; "
            f"statistics and hyper-parameters come after a star: def {name}({', '.join(given)}, *, ...)"
        )


def taken(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return those keywords that a function takes."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in keywords.items() if name in parameters}
