"""Budgets: how many weights each layer drops, one function an allocation.

``global`` takes the lowest scores of all layers together, ``uniform`` the same share of every layer; an allocation that
belongs to a method stands beside it (``multimodal`` in `multiflow.methods.multiflow`). Your own is a function of the
layout and the sparsity; it asks for what else it wants by keyword::

    def front_heavy(layout, sparsity, *, weights, scores, stats):
        return {layer.name: ... for layer in layout.layers}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.order import smallest
from multiflow.base.registry import Registry
from multiflow.base.types import Budget, Layer, Layout, NofM, Pattern, PerRow
from multiflow.methods.declare import function_name

Tensors = Mapping[str, Tensor]
PROVIDED = ("weights", "scores")
"""Keywords of an allocation that are no statistics: layer name -> weights, and -> scores, computed when looked up."""
FITNESS = "fitness"
"""Keyword of an allocation that tries budgets out: ``f(budget, whole=True) -> loss`` (`multiflow.methods.search`)."""


@dataclass(frozen=True)
class Allocation:
    """An allocation as a record: its function, and what it needs.

    Args:
        name: how users call it.
        function: ``f(layout, sparsities, *, <needs>) -> a budget for each sparsity``; one from outside is
            ``f(layout, sparsity, *, <needs>) -> {layer name: number of weights to drop}``.
        needs: its keywords without a default: ``weights``, ``scores``, or the name of a statistic, of which it gets
            layer name -> tensor.
        several: whether the function serves all sparsities in one call.
    """

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    several: bool

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics it needs from calibration data."""
        return tuple(name for name in self.needs if name not in (*PROVIDED, FITNESS))

    @property
    def needs_data(self) -> bool:
        """Whether it needs calibration data."""
        return bool(self.statistics) or self.searches

    @property
    def searches(self) -> bool:
        """Whether it tries budgets out on the model."""
        return FITNESS in self.needs

    def budgets(self, layout: Layout, sparsities: Sequence[float], **given: Any) -> list[Budget]:
        """Give every layer the number of weights it drops, for each sparsity; what is given and not needed is left."""
        wanted = {name: given[name] for name in self.needs}
        if self.several:
            found = self.function(layout, sparsities, **wanted)
        else:
            found = [self.function(layout, sparsity, **wanted) for sparsity in sparsities]
        return [check_budget(budget, layout, self.name) for budget in found]


ALLOCATIONS: Registry[Allocation] = Registry("allocation", "multiflow.methods", order=lambda name, _: name)


def allocation(name: str) -> Callable[[Callable[..., list[Budget]]], Callable[..., list[Budget]]]:
    """Register a function ``f(layout, sparsities, *, <needs>)`` as an allocation."""

    def register(function: Callable[..., list[Budget]]) -> Callable[..., list[Budget]]:
        ALLOCATIONS.add(name, Allocation(name, function, _needs(function), several=True))
        return function

    return register


def find_allocation(given: str | Callable[..., Mapping[str, int]]) -> Allocation:
    """Look an allocation up by name, or make one of a user's function of ``(layout, sparsity)``."""
    if not callable(given):
        return ALLOCATIONS[given]
    return Allocation(function_name(given), given, _needs(given), several=False)


def _needs(function: Callable[..., Any]) -> tuple[str, ...]:
    """The keywords that a function must be given: those without a default, and what the pipeline has anyway."""
    asked = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in asked):
        return PROVIDED
    return tuple(p.name for p in asked if p.name in PROVIDED or (p.kind is p.KEYWORD_ONLY and p.default is p.empty))


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


@allocation("global")
def rank_all(layout: Layout, sparsities: Sequence[float], *, scores: Tensors) -> list[Budget]:
    """Drop the ``round(s * n)`` lowest scores of all layers together, however they fall on the layers."""
    return [Budget(budget) for budget in drop_smallest(layout.layers, sparsities, scores)]


def drop_smallest(layers: Sequence[Layer], sparsities: Sequence[float], values: Tensors) -> list[dict[str, int]]:
    """Count, for each sparsity, how many of the smallest values of all layers together lie in each layer."""
    sizes = [layer.size for layer in layers]
    tensors = [partial(values.__getitem__, layer.name) for layer in layers]
    cuts = smallest(tensors, sizes, [round(s * sum(sizes)) for s in sparsities])
    return [dict(zip((layer.name for layer in layers), cut.drops, strict=True)) for cut in cuts]


@allocation("uniform")
def uniform(layout: Layout, sparsities: Sequence[float]) -> list[Budget]:
    """Give every layer the same sparsity: each drops ``round(s * n)`` of its own weights."""
    return [Budget({layer.name: round(s * layer.size) for layer in layout.layers}) for s in sparsities]


def check_pattern(pattern: Pattern, layout: Layout) -> None:
    """Refuse an N:M pattern that does not divide the inputs of every layer."""
    if not isinstance(pattern, NofM):
        return
    for layer in layout.layers:
        if layer.shape[1] % pattern.of:
            raise MultiflowError(
                f"pattern '{pattern}' needs input sizes that {pattern.of} divides, but layer '{layer.name}' has "
                f"{layer.shape[1]} inputs; choose another N:M or leave the layer dense"
            )


def pattern_budget(layout: Layout, sparsity: float, pattern: PerRow | NofM) -> Budget:
    """Give the budget that a pattern means by itself: the same in every row, or in every block of every layer."""
    if isinstance(pattern, NofM):
        return Budget({layer.name: layer.size // pattern.of * (pattern.of - pattern.keep) for layer in layout.layers})
    return Budget({layer.name: round(sparsity * layer.shape[1]) * layer.shape[0] for layer in layout.layers})


def fit_budget(budget: Budget, layout: Layout) -> Budget:
    """Round a budget to the same whole number in every row of a layer, as `PerRow` needs.

    Layers round to the nearest; where the total moves by that, layers whose rounding was the closest call go the other
    way, one weight a row, as long as it brings the total nearer to that of the budget.
    """
    wished = {x.name: budget[x.name] / x.size * x.shape[1] if x.size else 0.0 for x in layout.layers}
    counts = {name: round(value) for name, value in wished.items()}
    short = sum(budget.values()) - sum(counts[x.name] * x.shape[0] for x in layout.layers)
    step = 1 if short > 0 else -1
    for layer in sorted(layout.layers, key=lambda x: step * (counts[x.name] - wished[x.name])):
        rows, columns = layer.shape
        if layer.size and abs(short - step * rows) < abs(short) and 0 <= counts[layer.name] + step <= columns:
            counts[layer.name] += step
            short -= step * rows
    return Budget({x.name: counts[x.name] * x.shape[0] for x in layout.layers})


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exp": lambda target, done: 1 - (1 - target) ** done,
    "linear": lambda target, done: target * done,
}


def sparsities_of(schedule: str, target: float, steps: int) -> list[float]:
    """Return the sparsity after each step; the last one is the target itself.

    >>> sparsities_of("exp", 0.75, 2)
    [0.5, 0.75]
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if steps < 1:
        raise MultiflowError(f"{{steps={steps}}} was given; expected at least 1", field="steps")
    return [SCHEDULES[schedule](target, step / steps) for step in range(1, steps)] + [target]
