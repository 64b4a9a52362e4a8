"""How an allocation is declared: a function that gives every layer the number of weights it drops.

Your own allocation is a function of the layout and the sparsity; it asks for what else it wants by keyword::

    def front_heavy(layout, sparsity, *, weights, scores):
        return {layer.name: ... for layer in layout.layers}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.registry import Registry
from multiflow.base.types import Budget, Layout

Tensors = Mapping[str, Tensor]
Allocation = Callable[[Layout, Sequence[float], Tensors, Tensors], list[Budget]]
"""``f(layout, sparsities, weights, scores) -> one budget a sparsity``; the tensors are computed when looked up."""

ALLOCATIONS: Registry[Allocation] = Registry("allocation")


def allocation(name: str) -> Callable[[Allocation], Allocation]:
    """Register a built-in allocation, which serves all sparsities in one call."""

    def register(function: Allocation) -> Allocation:
        ALLOCATIONS.add(name, function)
        return function

    return register


def find_allocation(given: str | Callable[..., Mapping[str, int]]) -> Allocation:
    """Look an allocation up by name, or wrap a user's function of ``(layout, sparsity)``."""
    if not callable(given):
        return ALLOCATIONS[given]
    asked = inspect.signature(given).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in asked.values())

    def users(layout: Layout, sparsities: Sequence[float], weights: Tensors, scores: Tensors) -> list[Budget]:
        extra: dict[str, Any] = {"weights": weights, "scores": scores}
        extra = {name: value for name, value in extra.items() if anything or name in asked}
        return [check_budget(given(layout, sparsity, **extra), layout, _name(given)) for sparsity in sparsities]

    return users


def check_budget(budget: Mapping[str, int], layout: Layout, source: str) -> Budget:
    """Return the budget in layout order, or say which layer it gets wrong."""
    if not isinstance(budget, Mapping):
        raise MultiflowError(
            f"allocation '{source}' gives a {type(budget).__name__}; expected a dict from layer name to the number of "
            "weights to drop"
        )
    for name in budget:
        if name not in layout:
            raise MultiflowError(f"allocation '{source}' gives a budget to '{name}', which is not in the layout")
    checked: dict[str, int] = {}
    for layer in layout.layers:
        count: Any = budget.get(layer.name)
        if count is None:
            raise MultiflowError(
                f"allocation '{source}' gives no budget to layer '{layer.name}'; every layer needs one"
            )
        if not _is_whole(count, layer.size):
            raise MultiflowError(
                f"allocation '{source}' gives layer '{layer.name}' a budget of {count}; expected a whole number "
                f"of weights to drop between 0 and {layer.size}"
            )
        checked[layer.name] = int(count)
    return Budget(checked)


def _is_whole(count: Any, most: int) -> bool:
    try:
        return bool(0 <= int(count) <= most and int(count) == count)
    except (TypeError, ValueError, OverflowError):  # lists, words, NaN, infinity
        return False


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
