"""Budgets that a pattern can be filled with."""

from __future__ import annotations

from multiflow.base.errors import MultiflowError
from multiflow.base.types import Budget, Layout, NofM, Pattern, PerRow


def check_pattern(pattern: Pattern, layout: Layout) -> None:
    """Refuse an N:M pattern that does not divide the inputs of every layer."""
    if not isinstance(pattern, NofM):
        return
    for layer in layout.layers:
        if layer.shape[1] % pattern.of:
            raise MultiflowError(
                f"pattern '{pattern}' needs input sizes that {pattern.of} divides, but layer '{layer.name}' has "
                f"{layer.shape[1]} inputs; choose another N:M or leave the layer out with Adapter(exclude=...)"
            )


def pattern_budget(layout: Layout, sparsity: float, pattern: PerRow | NofM) -> Budget:
    """Give the budget that a pattern means by itself: the same in every row, or in every block of every layer."""
    if isinstance(pattern, NofM):
        return Budget({layer.name: layer.size // pattern.of * (pattern.of - pattern.keep) for layer in layout.layers})
    return Budget({layer.name: round(sparsity * layer.shape[1]) * layer.shape[0] for layer in layout.layers})


def fit_budget(budget: Budget, layout: Layout) -> Budget:
    """Round a budget to the same whole number in every row of a layer, as `PerRow` needs."""
    fitted = {}
    for layer in layout.layers:
        rows, columns = layer.shape
        fitted[layer.name] = round(budget[layer.name] / layer.size * columns) * rows if layer.size else 0
    return Budget(fitted)
