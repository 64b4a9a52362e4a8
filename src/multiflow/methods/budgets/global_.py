"""Global allocation: the ``round(s * n)`` lowest scores of all layers together, however they fall on the layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from multiflow.base.order import smallest
from multiflow.base.types import Budget, Layer, Layout
from multiflow.methods.budgets.base import Tensors, allocation


@allocation("global")
def global_(layout: Layout, sparsities: Sequence[float], weights: Tensors, scores: Tensors) -> list[Budget]:
    """Rank the scores of all layers together."""
    return [Budget(budget) for budget in drop_smallest(layout.layers, sparsities, scores)]


def drop_smallest(layers: Sequence[Layer], sparsities: Sequence[float], values: Tensors) -> list[dict[str, int]]:
    """Count, for each sparsity, how many of the smallest values of all layers together lie in each layer."""
    sizes = [layer.size for layer in layers]
    tensors = [partial(values.__getitem__, layer.name) for layer in layers]
    cuts = smallest(tensors, sizes, [round(s * sum(sizes)) for s in sparsities])
    return [dict(zip((layer.name for layer in layers), cut.drops, strict=True)) for cut in cuts]
