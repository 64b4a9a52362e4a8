"""Uniform allocation: every layer loses the same share of its weights, ``round(s * n)`` of them."""

from __future__ import annotations

from collections.abc import Sequence

from multiflow.base.types import Budget, Layout
from multiflow.methods.budgets.base import Tensors, allocation


@allocation("uniform")
def uniform(layout: Layout, sparsities: Sequence[float], weights: Tensors, scores: Tensors) -> list[Budget]:
    """Give every layer the same sparsity."""
    return [Budget({layer.name: round(s * layer.size) for layer in layout.layers}) for s in sparsities]
